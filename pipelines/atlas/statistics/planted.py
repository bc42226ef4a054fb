"""How much of a planted effect came back, where, and what leaked elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

ELSEWHERE = "elsewhere"  # the lungs without the planted region
MIN_PLANTED_HU = 1.0  # of the planted effect in a region, below which a share of it means nothing

Mask = NDArray[np.bool_]


def planted_share(masks: Mapping[str, Mask], planted: str) -> dict[str, float]:
    """The share of each region's voxels that the planted effect was added to."""
    where = masks.get(planted)
    if where is None:
        return dict.fromkeys(masks, 0.0)
    return {name: float((mask & where).sum() / mask.sum()) for name, mask in masks.items()}


def planted_effect_rows(
    planted: Mapping[str, float], generated: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Rows of spike.csv from the planted and the generated effect by region, HU."""
    rows = []
    for region, true in planted.items():
        if region not in generated:
            continue
        made = generated[region]
        rows.append(
            {
                "region": region,
                "planted_hu": true,
                "generated_hu": made,
                "recovered": made / true if abs(true) >= MIN_PLANTED_HU else None,
                "leaked_hu": made - true,
            }
        )
    return rows
