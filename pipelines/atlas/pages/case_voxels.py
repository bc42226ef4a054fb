"""A case's volumes for its page: written one by one as scripts, and measured by region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.atlas.statistics.regional import RegionOutcomes, RegionVoxels
from pipelines.atlas.statistics.zones import label_zones, zone_masks
from util.modality import CT, Terms
from util.web.figures import fullest_slices
from util.web.web_data import PageGrid, VolumeEntry, write_volume

Hu = NDArray[Any]
MASK = "mask"  # keys of volumes
ZONES = "zones"
FACTUAL = "factual"
NOISE = "noise"
REAL = "real"


class CaseVoxels:
    """The volumes of one case on one grid.

    Args:
        folder: Folder of the scripts.
        labels: Mask `(X, Y, Z)` in RAS.
        spacing: Voxel size in mm.
        regions: Masks of the regions by name.
        factual: HU, generated from the factual row.
        terms: Outcomes of the modality.
    """

    def __init__(
        self,
        folder: Path,
        labels: NDArray[np.integer],
        spacing: Sequence[float],
        regions: Mapping[str, NDArray[np.bool_]],
        factual: Hu,
        terms: Terms = CT,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.zones = zone_masks(regions)
        self._regions = RegionVoxels.from_masks({**regions, **self.zones})
        self._outcomes = RegionOutcomes.from_masks(regions, spacing, terms)
        self.labels = sorted(int(v) for v in np.unique(labels) if v)
        self.means: dict[str, dict[str, float]] = {}
        self.outcomes: dict[str, dict[str, float]] = {}
        self.written: dict[str, VolumeEntry] = {}
        zones = label_zones(self.zones, labels.shape)
        self.written[MASK] = write_volume(folder, MASK, labels, "mask")
        self.written[ZONES] = write_volume(folder, ZONES, zones, "mask")
        self.grid = PageGrid.around(zones if zones.any() else labels, spacing)
        self.centres = [fullest_slices(zones == k) for k in range(1, len(self.zones) + 1)]
        self.add(FACTUAL, factual)

    def add(self, key: str, volume: Hu) -> None:
        """Write a volume in HU under its key; keep its regional means and the lungs' outcomes."""
        self.written[key] = write_volume(self.folder, key, volume, "ct")
        self.means[key] = self._regions.means(volume)
        values = self._outcomes.measure(volume)
        self.outcomes[key] = {o: v for (o, region), v in values.items() if region == "lungs"}

    def change(self, start: str, end: str) -> dict[str, float]:
        """Return the mean of `end` minus `start` by region and zone, HU."""
        first = self.means[start]
        last = self.means[end]
        return {name: last[name] - first[name] for name in first}

    def zone_change(self, start: str, end: str) -> dict[str, float]:
        """Return the mean of `end` minus `start` by zone, HU."""
        change = self.change(start, end)
        return {name: change[name] for name in self.zones}

    def noise_level(self) -> float:
        """Return the largest change of a zone's mean by other noise, HU; 0 if it is not known."""
        if NOISE not in self.means:
            return 0.0
        return max(map(abs, self.zone_change(FACTUAL, NOISE).values()), default=0.0)

    def zone_numbers(self, names: Sequence[str]) -> list[int]:
        """Return the numbers of zones in the volume `ZONES`."""
        order = list(self.zones)
        return [order.index(name) + 1 for name in names]
