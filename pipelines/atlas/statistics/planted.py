"""Recovery of a planted effect: how much of it is generated, where, and what appears elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.atlas.statistics.regional import LUNG_REGIONS

ELSEWHERE = "elsewhere"  # the lungs without the planted region
MIN_PLANTED_HU = 1.0  # planted effect of a region below which no recovered share is given

Mask = NDArray[np.bool_]


def planted_share(masks: Mapping[str, Mask], planted: str) -> dict[str, float]:
    """Return the share of each region's voxels that the planted effect was added to."""
    where = masks.get(planted)
    if where is None:
        return dict.fromkeys(masks, 0.0)
    return {name: float((mask & where).sum() / mask.sum()) for name, mask in masks.items()}


def interval_columns(
    name: str, planted: pd.Series, estimates: pd.DataFrame, sign: float
) -> pd.DataFrame:
    """Return the bounds of estimates of planted effects, and whether they hold the truth.

    Args:
        name: Start of the new columns: `generated` or `real`.
        planted: Planted effect by region, HU.
        estimates: Bounds `low` and `high` by region, HU.
        sign: 1, or -1 where the estimates are of the reverse contrast.
    """
    bounds = estimates.reindex(planted.index)[["low", "high"]].astype(float) * sign
    low, high = bounds.min(axis=1, skipna=False), bounds.max(axis=1, skipna=False)
    holds = np.where((low <= planted) & (planted <= high), "yes", "no")
    columns = {
        f"{name}_low_hu": low,
        f"{name}_high_hu": high,
        f"{name}_holds": np.where(low.isna(), "", holds),
    }
    return pd.DataFrame(columns, index=planted.index)


def planted_sentence(frame: pd.DataFrame) -> str:
    """Return bias and coverage of a planted effect over the regions of the lungs."""
    regions = frame[frame["region"].isin(LUNG_REGIONS)]
    bias = float(regions["leaked_hu"].abs().mean())
    parts = [f"Over {len(regions)} regions of the lungs the mean absolute bias is {bias:.1f} HU"]
    for name, text in (("generated", "generated"), ("real", "real scans'")):
        known = regions.loc[regions[f"{name}_holds"].isin(["yes", "no"]), f"{name}_holds"]
        if len(known):
            held = int((known == "yes").sum())
            parts.append(f"the {text} 95 % intervals hold the truth in {held} of {len(known)}")
    if len(parts) == 1:
        parts.append("there are no intervals, because there are too few refits and scans")
    return f"{'; '.join(parts)}."


def planted_effect_rows(
    planted: Mapping[str, float], generated: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return the rows of spike.csv from the planted and the generated effect by region, HU."""
    rows = []
    for region, planted_hu in planted.items():
        if region not in generated:
            continue
        generated_hu = generated[region]
        recovered = generated_hu / planted_hu if abs(planted_hu) >= MIN_PLANTED_HU else None
        rows.append(
            {
                "region": region,
                "planted_hu": planted_hu,
                "generated_hu": generated_hu,
                "recovered": recovered,
                "leaked_hu": generated_hu - planted_hu,
            }
        )
    return rows
