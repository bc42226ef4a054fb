"""Mean attenuation by region, with and without vessels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Hu = NDArray[np.floating]

LUNG_REGIONS = (
    "lungs",
    "left_lung",
    "right_lung",
    "upper",
    "middle",
    "lower",
    "core",
    "rim",
)  # where effects are tested
SUBREGIONS = (
    "upper",
    "middle",
    "lower",
    "core",
    "rim",
)  # within the lungs: where an effect may be strongest


def find_vessels(hu: Hu, lungs: Mask, above: float) -> Mask:
    """Lung voxels more than `above` HU over the median of the lungs; none where `above` is 0."""
    if not above or not lungs.any():
        return np.zeros(lungs.shape, bool)
    return np.asarray(lungs & (hu > np.median(hu[lungs]) + above), bool)


@dataclass(frozen=True)
class RegionVoxels:
    """Flat indices of each region's voxels: `kept` without vessels, `all` with them; regions that
    lose all keep all.
    """

    kept: Mapping[str, NDArray[np.integer]]
    all: Mapping[str, NDArray[np.integer]]

    @staticmethod
    def from_masks(masks: Mapping[str, Mask], vessels: Mask) -> RegionVoxels:
        every = {name: np.flatnonzero(mask) for name, mask in masks.items()}
        less = {name: np.flatnonzero(mask & ~vessels) for name, mask in masks.items()}
        return RegionVoxels(
            {name: less[name] if len(less[name]) else every[name] for name in masks}, every
        )

    def means(self, volume: Hu) -> dict[str, float]:
        """Mean of a volume in each region, without vessels."""
        flat = volume.ravel()
        return {
            name: float(flat[index].mean(dtype=np.float64)) for name, index in self.kept.items()
        }

    def all_means(self, volume: Hu) -> dict[str, float]:
        """Mean of a volume in each region, vessels included."""
        flat = volume.ravel()
        return {name: float(flat[index].mean(dtype=np.float64)) for name, index in self.all.items()}
