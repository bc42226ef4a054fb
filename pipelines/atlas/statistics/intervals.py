"""Effects over patients: intervals from resampled refits, null distributions from permuted ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95
MIN_REFITS = 3  # resampled refits for an SD
MIN_PERMUTED = 5  # permuted refits for a verdict

REFIT_COLUMNS = (
    "refits",
    "refit_mean",
    "refit_sd",
    "refit_low",
    "refit_high",
    "permuted",
    "permuted_max",
    "permuted_sd",
    "permuted_p",
)


def effects_over_patients(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the generated effect of each contrast, outcome and region over cases.

    Args:
        rows: Rows of effects_by_case.csv.
    """
    keys = ["contrast", "column", "kind", "from", "to", "outcome", "region"]
    grouped = rows.groupby(keys, sort=False, dropna=False)
    return grouped.agg(
        patients=("case", "nunique"),
        generated=("effect", "mean"),
        mean_abs_hu=("mean_abs_hu", "mean"),
        patients_sd=("effect", "std"),
        patients_low=("effect", "min"),
        patients_high=("effect", "max"),
        noise_change=("noise_change", "max"),
    ).reset_index()


def refit_interval(effect: float, refits: Sequence[float]) -> dict[str, Any]:
    """Return the 95 % interval of an effect: Student's t times the SD over refits, to both sides.

    Only the number of refits is returned where there are fewer than `MIN_REFITS`.
    """
    summary: dict[str, Any] = {"refits": len(refits)}
    if len(refits) < MIN_REFITS:
        return summary
    sd = float(np.std(refits, ddof=1))
    half_width = float(stats.t.ppf(0.5 + LEVEL / 2, len(refits) - 1)) * sd
    return summary | {
        "refit_mean": float(np.mean(refits)),
        "refit_sd": sd,
        "refit_low": effect - half_width,
        "refit_high": effect + half_width,
    }


def permuted_null(effect: float, permuted: Sequence[float]) -> dict[str, Any]:
    """Compare an effect with those of permuted refits: their maximum and SD, and a p value.

    The p value is (1 + refits at least as large) / (1 + refits).
    """
    summary: dict[str, Any] = {"permuted": len(permuted)}
    if not permuted:
        return summary
    sizes = np.abs(permuted)
    return summary | {
        "permuted_max": float(sizes.max()),
        "permuted_sd": float(np.sqrt(np.mean(sizes**2))),
        "permuted_p": float((1 + (sizes >= abs(effect)).sum()) / (1 + len(sizes))),
    }


def add_refits(effects: pd.DataFrame, refits: pd.DataFrame) -> pd.DataFrame:
    """Return effects.csv: effects with their intervals and null distributions.

    Args:
        effects: Table of `effects_over_patients`.
        refits: Columns `refit`, `kind` (resampled, permuted), `contrast`, `outcome`, `region`,
            `effect` (mean over cases).
    """
    keys = ["contrast", "outcome", "region"]
    by_kind = refits.groupby([*keys, "kind"])["effect"].apply(list).to_dict()
    rows = []
    for row in effects.to_dict("records"):
        place = (row["contrast"], row["outcome"], row["region"])
        effect = row["generated"]
        rows.append(
            {
                **{str(name): value for name, value in row.items()},
                **refit_interval(effect, by_kind.get((*place, "resampled"), [])),
                **permuted_null(effect, by_kind.get((*place, "permuted"), [])),
            }
        )
    return pd.DataFrame(rows).reindex(columns=[*effects.columns, *REFIT_COLUMNS])
