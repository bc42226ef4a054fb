"""Effects over patients: intervals from resampled refits, null distributions from permuted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from pipelines.atlas.statistics.regional import tested_regions

LEVEL = 0.95
MIN_REFITS = 3  # resampled refits for an SD
MAX_PERMUTED_P = 0.05  # of a finding
MIN_PERMUTED = 19  # permuted refits for a verdict: fewer cannot give so small a p value

SPREAD_COLUMNS = (
    "patients",
    "generated",
    "mean_abs_hu",
    "patients_sd",
    "patients_low",
    "patients_high",
    "noise_change",
)
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


def effects_over_patients(
    rows: pd.DataFrame, patients: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Return the generated effect of each contrast, outcome and region: its mean over cases.

    Its spread is that of patients, each with the mean of their scans.

    Args:
        rows: Rows of effects_by_case.csv.
        patients: The patient of each case; by default every case is a patient.
    """
    keys = ["contrast", "column", "kind", "from", "to", "outcome", "region"]
    rows = rows.assign(patient=rows["case"].map(patients) if patients else rows["case"])
    grouped = rows.groupby(keys, sort=False, dropna=False)
    over_cases = grouped.agg(
        generated=("effect", "mean"),
        mean_abs_hu=("mean_abs_hu", "mean"),
        noise_change=("noise_change", "max"),
    )
    means = rows.groupby([*keys, "patient"], sort=False, dropna=False)["effect"].mean()
    spread = means.groupby(level=keys, sort=False, dropna=False).agg(
        patients="count", patients_sd="std", patients_low="min", patients_high="max"
    )
    return over_cases.join(spread).reset_index()[[*keys, *SPREAD_COLUMNS]]


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


def permuted_null(
    effect: float, permuted: Sequence[float], largest: Sequence[float] = ()
) -> dict[str, Any]:
    """Compare an effect with those of permuted refits: their maximum and SD, and a p value.

    The p value is (1 + refits at least as large) / (1 + refits), which holds for any number of
    refits (Phipson and Smyth 2010). Where several regions are tested, a refit counts with its
    largest effect in any of them (Westfall and Young 1993).

    Args:
        effect: The effect in a region.
        permuted: Effects of the refits in that region.
        largest: Largest absolute effect of each refit in any region tested; default: that of
            this region.
    """
    summary: dict[str, Any] = {"permuted": len(permuted)}
    if not permuted:
        return summary
    sizes = np.abs(largest if len(largest) else permuted)
    return summary | {
        "permuted_max": float(sizes.max()),
        "permuted_sd": float(np.sqrt(np.mean(np.square(permuted)))),
        "permuted_p": float((1 + (sizes >= abs(effect)).sum()) / (1 + len(sizes))),
    }


def largest_effects(refits: pd.DataFrame) -> dict[tuple[str, str], list[float]]:
    """Return each permuted refit's largest absolute effect in any lung region that is tested.

    Args:
        refits: As of `add_refits`.

    Returns:
        One number per refit, by contrast and outcome.
    """
    is_tested = (refits["kind"] == "permuted") & refits["region"].isin(
        tested_regions(refits["region"].unique())
    )
    sizes = refits[is_tested].assign(size=refits["effect"].abs())
    by_refit = sizes.groupby(["contrast", "outcome", "refit"], sort=False)["size"].max()
    grouped = by_refit.groupby(["contrast", "outcome"]).apply(list)
    return {(str(c), str(o)): values for (c, o), values in grouped.items()}


def add_refits(effects: pd.DataFrame, refits: pd.DataFrame) -> pd.DataFrame:
    """Return effects.csv: effects with their intervals and null distributions.

    Args:
        effects: Table of `effects_over_patients`.
        refits: Columns `refit`, `kind` (resampled, permuted), `contrast`, `outcome`, `region`,
            `effect` (mean over cases).
    """
    keys = ["contrast", "outcome", "region"]
    by_kind = refits.groupby([*keys, "kind"])["effect"].apply(list).to_dict()
    largest = largest_effects(refits)
    tested = tested_regions(effects["region"].unique())
    rows = []
    for row in effects.to_dict("records"):
        place = (row["contrast"], row["outcome"], row["region"])
        effect = row["generated"]
        rows.append(
            {
                **{str(name): value for name, value in row.items()},
                **refit_interval(effect, by_kind.get((*place, "resampled"), [])),
                **permuted_null(
                    effect,
                    by_kind.get((*place, "permuted"), []),
                    largest.get(place[:2], []) if place[2] in tested else [],
                ),
            }
        )
    return pd.DataFrame(rows).reindex(columns=[*effects.columns, *REFIT_COLUMNS])
