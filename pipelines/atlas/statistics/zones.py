"""Zones of the lungs: side, third and depth together, small enough to locate a difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from util.metrics.regions import DEPTH_NAMES, label_names, region_name

Mask = NDArray[np.bool_]

SIDES = {"left_lung": "left ", "right_lung": "right ", "lungs": ""}
THIRDS = ("upper", "middle", "lower")
MAX_ZONES = 3  # zones that are named
MIN_SHARE = 0.5  # of the strongest zone's change, to be named beside it
MIN_CHANGE_HU = 1.0  # generated volumes are stored in whole HU


def zone_masks(masks: Mapping[str, Mask]) -> dict[str, Mask]:
    """Return the zones that are not empty, such as "right lower third, subpleural".

    Args:
        masks: Regions of `util.metrics.regions.chest_regions`, each `(X, Y, Z)`. Without two
            sides, both lungs count as one. Of `label_regions`, the labels are the zones.
    """
    sides = [name for name in ("right_lung", "left_lung") if name in masks] or ["lungs"]
    zones = {}
    if "lungs" in masks and "upper" not in masks:  # not a chest: labels
        return {region_name(name): masks[name] for name in label_names(masks)}
    for side, third, (depth, name) in product(sides, THIRDS, DEPTH_NAMES.items()):
        if {side, third, depth} <= set(masks):
            mask = masks[side] & masks[third] & masks[depth]
            if mask.any():
                zones[f"{SIDES[side]}{third} third, {name}"] = mask
    return zones


def top_zones(means: Mapping[str, float], floor: float) -> list[str]:
    """Return the zones that change most, the strongest first.

    Args:
        means: Mean change of each zone, HU.
        floor: Change by chance alone, HU; zones at or below it are not named.
    """
    floor = max(floor, MIN_CHANGE_HU)
    largest = max(map(abs, means.values()), default=0.0)
    named = []
    for name, change in means.items():
        if abs(change) > floor and abs(change) >= MIN_SHARE * largest:
            named.append(name)
    return sorted(named, key=lambda name: -abs(means[name]))[:MAX_ZONES]


def label_zones(masks: Mapping[str, Mask], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return the zones as labels 1, 2, ... in their order, `shape`; 0 elsewhere."""
    labels = np.zeros(tuple(shape), np.uint8)
    for number, mask in enumerate(masks.values(), 1):
        labels[mask] = number
    return labels
