"""Mean attenuation by region, with and without vessels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Hu = NDArray[np.floating]
Indices = NDArray[np.integer]

# Parts of the lungs where an effect may be strongest.
SUBREGIONS = ("upper", "middle", "lower", "core", "rim")
# Regions where effects are tested.
LUNG_REGIONS = ("lungs", "left_lung", "right_lung", *SUBREGIONS)


def find_vessels(hu: Hu, lungs: Mask, above: float) -> Mask:
    """Return the lung voxels more than `above` HU over the lungs' median; none if `above` is 0."""
    if not above or not lungs.any():
        return np.zeros(lungs.shape, bool)
    return np.asarray(lungs & (hu > np.median(hu[lungs]) + above), bool)


@dataclass(frozen=True)
class RegionVoxels:
    """Flat indices of each region's voxels.

    Attributes:
        without_vessels: A region that would lose all its voxels keeps them.
        all: Vessels included.
    """

    without_vessels: Mapping[str, Indices]
    all: Mapping[str, Indices]

    @classmethod
    def from_masks(cls, masks: Mapping[str, Mask], vessels: Mask) -> RegionVoxels:
        """Index regions, each `(X, Y, Z)`, with and without the vessels."""
        every = {}
        without = {}
        for name, mask in masks.items():
            every[name] = np.flatnonzero(mask)
            rest = np.flatnonzero(mask & ~vessels)
            without[name] = rest if len(rest) else every[name]
        return cls(without, every)

    def means(self, volume: Hu) -> dict[str, float]:
        """Return the mean of a volume in each region, without vessels."""
        return _means(volume, self.without_vessels)

    def all_means(self, volume: Hu) -> dict[str, float]:
        """Return the mean of a volume in each region, vessels included."""
        return _means(volume, self.all)


def _means(volume: Hu, indices: Mapping[str, Indices]) -> dict[str, float]:
    flat = volume.ravel()
    return {name: float(flat[index].mean(dtype=np.float64)) for name, index in indices.items()}
