"""Zones of the lungs: side, third and depth together, small enough to say where a difference
lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

SIDES = {"left_lung": "left ", "right_lung": "right ", "lungs": ""}
DEPTHS = {"rim": "subpleural", "core": "core"}
THIRDS = ("upper", "middle", "lower")
MAX_ZONES = 3  # zones that are named
MIN_SHARE = 0.5  # of the strongest zone's change, which a zone needs to be named beside it
MIN_CHANGE_HU = 1.0  # generated volumes are stored in whole HU


def zone_masks(masks: Mapping[str, Mask]) -> dict[str, Mask]:
    """Side by third by depth, as far as they are there: "right lower third, subpleural".

    Args:
        masks: Regions of `util.metrics.fidelity.regions`, each `(X, Y, Z)`; without two sides both
            lungs are one.
    """
    sides = [name for name in ("right_lung", "left_lung") if name in masks] or ["lungs"]
    found = {}
    for side in sides:
        for third in THIRDS:
            for depth, said in DEPTHS.items():
                if {side, third, depth} <= set(masks):
                    mask = masks[side] & masks[third] & masks[depth]
                    if mask.any():
                        found[f"{SIDES[side]}{third} third, {said}"] = mask
    return found


def top_zones(means: Mapping[str, float], floor: float) -> list[str]:
    """The zones that change most, the strongest first.

    Args:
        means: Mean change of each zone, HU.
        floor: What chance alone changes, HU; zones at or below it are not named.
    """
    floor = max(floor, MIN_CHANGE_HU)
    most = max(map(abs, means.values()), default=0.0)
    named = [
        name
        for name, value in means.items()
        if abs(value) > floor and abs(value) >= MIN_SHARE * most
    ]
    return sorted(named, key=lambda name: -abs(means[name]))[:MAX_ZONES]


def label_zones(masks: Mapping[str, Mask], shape: Sequence[int]) -> NDArray[np.uint8]:
    """The zones as labels 1, 2, ... in their order, `shape`; 0 elsewhere."""
    labels = np.zeros(tuple(shape), np.uint8)
    for number, mask in enumerate(masks.values(), 1):
        labels[mask] = number
    return labels
