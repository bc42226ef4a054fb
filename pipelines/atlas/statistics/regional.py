"""Mean attenuation by region.

Every voxel of a region counts. Leaving out dense voxels (vessels, by a threshold) would be a
selection on the outcome: fibrosis and consolidation are dense, and would vanish from real scans.
"""

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


@dataclass(frozen=True)
class RegionVoxels:
    """Flat indices of each region's voxels."""

    indices: Mapping[str, Indices]

    @classmethod
    def from_masks(cls, masks: Mapping[str, Mask]) -> RegionVoxels:
        """Index regions, each `(X, Y, Z)`."""
        return cls({name: np.flatnonzero(mask) for name, mask in masks.items()})

    def means(self, volume: Hu) -> dict[str, float]:
        """Return the mean of a volume in each region."""
        flat = volume.ravel()
        return {
            name: float(flat[index].mean(dtype=np.float64)) for name, index in self.indices.items()
        }
