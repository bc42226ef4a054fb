"""Outcomes by region.

Every voxel of a region counts. Leaving out dense voxels (vessels, by a threshold) would be a
selection on the outcome: fibrosis and consolidation are dense, and would vanish from real scans. A
second mean without vessels takes them by their shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.atlas.statistics.outcomes import (
    DETAIL_SD,
    HIGH_SHARE,
    LOW_SHARE,
    MEAN,
    MEAN_WITHOUT_VESSELS,
    OUTCOMES,
    Outcome,
    Values,
)
from pipelines.atlas.statistics.vessels import find_vessels
from util.metrics.regions import bounding_box, label_names
from util.metrics.texture import HIGH_HU, LOW_HU, detail, statistics_by_region
from util.modality import CT, Terms

Mask = NDArray[np.bool_]
Hu = NDArray[np.floating]
Indices = NDArray[np.integer]

# Parts of the lungs where an effect may be strongest.
SUBREGIONS = ("upper", "middle", "lower", "core", "rim")
LOCAL_OUTCOMES = (DETAIL_SD, LOW_SHARE, HIGH_SHARE)  # have a value in every voxel
# Regions where effects are tested.
LUNG_REGIONS = ("lungs", "left_lung", "right_lung", *SUBREGIONS)


def tested_regions(regions: Iterable[str]) -> list[str]:
    """Return those regions where effects are tested: of lungs, or each label without a chest."""
    names = list(regions)
    is_chest = "upper" in names or "lungs" not in names
    return [
        name for name in (*LUNG_REGIONS, *([] if is_chest else label_names(names))) if name in names
    ]


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


@dataclass(frozen=True)
class RegionOutcomes:
    """Outcomes of volumes on one grid.

    Attributes:
        voxels: All regions, for the means.
        lungs: Regions of the lungs within `box`, for the other outcomes; empty without lungs.
        box: Slices of the grid that hold the lungs.
        spacing: Voxel size in mm.
        tissue: Regions of the lungs without vessels; None where vessels stay.
        outcomes: What is measured.
    """

    voxels: RegionVoxels
    lungs: Mapping[str, Mask]
    box: tuple[slice, ...]
    spacing: Sequence[float]
    tissue: RegionVoxels | None = None
    outcomes: Sequence[Outcome] = tuple(OUTCOMES.values())

    @classmethod
    def from_masks(
        cls, masks: Mapping[str, Mask], spacing: Sequence[float], terms: Terms = CT
    ) -> RegionOutcomes:
        """Prepare regions, each `(X, Y, Z)`; outcomes are those that the modality has."""
        voxels = RegionVoxels.from_masks(masks)
        outcomes = tuple(one for one in OUTCOMES.values() if terms.has(one.statistic))
        if "lungs" not in masks:
            return cls(voxels, {}, (), spacing, outcomes=outcomes)
        box = bounding_box(masks["lungs"])
        lungs = {name: masks[name][box] for name in tested_regions(masks)}
        return cls(voxels, lungs, box, spacing, outcomes=outcomes)

    def without_vessels(self, masks: Mapping[str, Mask], volume: Hu) -> RegionOutcomes:
        """Return these outcomes with a second mean, without the vessels of one volume.

        All volumes of a case lose the same voxels, so that no change decides which these are.

        Args:
            masks: The regions.
            volume: The factual volume, or the scan, in HU.
        """
        vessels = find_vessels(volume, masks, self.spacing)
        lungs = {name: masks[name] & ~vessels for name in self.lungs}
        return replace(self, tissue=RegionVoxels.from_masks(lungs))

    def local(self, volume: Hu, outcome: str) -> Hu:
        """Return one of `LOCAL_OUTCOMES` in every voxel of the lungs, `(X, Y, Z)` float32.

        These are the shares beyond a limit (0 or 100 points in a voxel) and the size of the detail
        in HU. A percentile belongs to a region and has no map. Other voxels are 0.
        """
        values = np.zeros(volume.shape, np.float32)
        if not self.lungs:
            return values
        lungs, part = self.lungs["lungs"], volume[self.box]
        if outcome == DETAIL_SD:
            local = np.abs(detail(part, lungs, self.spacing))
        else:
            beyond = part < min(LOW_HU) if outcome == LOW_SHARE else part > HIGH_HU
            local = 100.0 * beyond
        values[self.box] = np.where(lungs, local, 0)
        return values

    def measure(self, volume: Hu) -> Values:
        """Return the values of a volume, HU, by (outcome, region).

        The mean is that of every region; the other outcomes are those of the lungs' regions.
        """
        values = {(MEAN, region): mean for region, mean in self.voxels.means(volume).items()}
        if self.tissue is not None:
            for region, mean in self.tissue.means(volume).items():
                values[MEAN_WITHOUT_VESSELS, region] = mean
        if not self.lungs:
            return values
        statistics = statistics_by_region(volume[self.box], self.lungs, self.spacing)
        for outcome in self.outcomes:
            if outcome.name != MEAN:
                for region, by_name in statistics.items():
                    values[outcome.name, region] = outcome.scale * by_name[outcome.statistic]
        return values
