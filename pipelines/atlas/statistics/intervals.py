"""What repeated training says of an effect: intervals from refits on resampled patients, nulls from
permuted ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95
MIN_REFITS = 3  # below this an SD over refits says nothing
MIN_PERMUTED = 5  # below this nothing is judged


def effects_over_patients(rows: pd.DataFrame) -> pd.DataFrame:
    """The generated effect of each contrast and region over cases, from rows of
    effects_by_case.csv.
    """
    keys = ["contrast", "column", "kind", "from", "to", "region"]
    grouped = rows.groupby(keys, sort=False, dropna=False)
    return grouped.agg(
        patients=("case", "nunique"),
        generated_hu=("mean_diff_hu", "mean"),
        generated_all_hu=("mean_diff_all_hu", "mean"),
        mean_abs_hu=("mean_abs_hu", "mean"),
        patients_sd_hu=("mean_diff_hu", "std"),
        patients_low_hu=("mean_diff_hu", "min"),
        patients_high_hu=("mean_diff_hu", "max"),
        noise_change_hu=("noise_change_hu", "max"),
    ).reset_index()


def refit_interval(effect: float, refits: Sequence[float]) -> dict[str, Any]:
    """95 % interval of an effect: plus and minus Student's t times the SD over refits; empty for
    fewer than three.
    """
    found: dict[str, Any] = {"refits": len(refits)}
    if len(refits) < MIN_REFITS:
        return found
    sd = float(np.std(refits, ddof=1))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(refits) - 1)) * sd
    return found | {
        "refit_mean_hu": float(np.mean(refits)),
        "refit_sd_hu": sd,
        "refit_low_hu": effect - half,
        "refit_high_hu": effect + half,
    }


def permuted_null(effect: float, permuted: Sequence[float]) -> dict[str, Any]:
    """How an effect stands among those of permuted refits: largest, SD, and (1 + as large) / (1 +
    refits).
    """
    found: dict[str, Any] = {"permuted": len(permuted)}
    if not permuted:
        return found
    sizes = np.abs(permuted)
    return found | {
        "permuted_max_hu": float(sizes.max()),
        "permuted_sd_hu": float(np.sqrt(np.mean(sizes**2))),
        "permuted_p": float((1 + (sizes >= abs(effect)).sum()) / (1 + len(sizes))),
    }


def add_refits(effects: pd.DataFrame, refits: pd.DataFrame) -> pd.DataFrame:
    """effects.csv with what refits say.

    Args:
        effects: Of `over_patients`.
        refits: Columns `refit`, `kind` (resampled, permuted), `contrast`, `region`, `effect_hu`
            (mean over cases).
    """
    rows = []
    for row in effects.to_dict("records"):
        part = refits[(refits["contrast"] == row["contrast"]) & (refits["region"] == row["region"])]
        drawn, null = (
            part.loc[part["kind"] == kind, "effect_hu"].tolist()
            for kind in ("resampled", "permuted")
        )
        effect = row["generated_hu"]
        rows.append(
            {
                **{str(k): v for k, v in row.items()},
                **refit_interval(effect, drawn),
                **permuted_null(effect, null),
            }
        )
    columns = [
        *effects.columns,
        "refits",
        "refit_mean_hu",
        "refit_sd_hu",
        "refit_low_hu",
        "refit_high_hu",
        "permuted",
        "permuted_max_hu",
        "permuted_sd_hu",
        "permuted_p",
    ]
    return pd.DataFrame(rows).reindex(columns=columns)
