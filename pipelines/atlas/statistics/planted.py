"""Recovery of a planted effect: how much of it is generated, where, and what appears elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

ELSEWHERE = "elsewhere"  # the lungs without the planted region
MIN_PLANTED_HU = 1.0  # planted effect of a region below which no recovered share is given

Mask = NDArray[np.bool_]


def planted_share(masks: Mapping[str, Mask], planted: str) -> dict[str, float]:
    """Return the share of each region's voxels that the planted effect was added to."""
    where = masks.get(planted)
    if where is None:
        return dict.fromkeys(masks, 0.0)
    return {name: float((mask & where).sum() / mask.sum()) for name, mask in masks.items()}


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
