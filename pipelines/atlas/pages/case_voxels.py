"""A case's volumes for its page: written one by one as scripts, and measured on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.atlas.statistics.regional import RegionVoxels, find_vessels
from pipelines.atlas.statistics.zones import label_zones, zone_masks
from util.metrics.regions import regions
from util.web.figures import fullest_slices
from util.web.web_data import block, shrink, write_volume

Hu = NDArray[Any]
MAX_SIZE = 192  # volumes longer than this along an axis are averaged in blocks, for the page alone


class CaseVoxels:
    """The volumes of one case on one grid.

    Args:
        folder: Where the scripts go.
        labels: `(X, Y, Z)` in RAS.
        spacing: Voxel size in mm.
        lung_labels: Labels of the left and the right lung.
        airway_label: Label of the airways.
        own: HU, generated from the own row: what counts as a vessel is decided in it.
        vessel_hu: See `find_vessels`.
    """

    def __init__(
        self,
        folder: Path,
        labels: NDArray[np.integer],
        spacing: Sequence[float],
        lung_labels: Sequence[int],
        airway_label: int,
        own: Hu,
        vessel_hu: float,
    ) -> None:
        self.folder, self.shape = folder, labels.shape
        folder.mkdir(parents=True, exist_ok=True)
        masks = regions(labels, spacing, lung_labels, airway_label)
        self.zones = zone_masks(masks)
        lungs = np.isin(labels, lung_labels)
        self.measured = RegionVoxels.from_masks(
            {**masks, **self.zones}, find_vessels(own, lungs, vessel_hu)
        )
        self.factors = block(self.shape, MAX_SIZE)
        self.labels = sorted(int(v) for v in np.unique(labels) if v)
        self.means: dict[str, dict[str, float]] = {}
        self.written: dict[str, dict[str, Any]] = {}
        shown = shrink(labels, self.factors, average=False)
        zoned = shrink(label_zones(self.zones, self.shape), self.factors, average=False)
        self._write("mask", shown, "mask")
        self._write("zones", zoned, "mask")
        self.grid = {
            "shape": shown.shape,
            "spacing": [float(s) * f for s, f in zip(spacing, self.factors, strict=True)],
            "start": fullest_slices(zoned if zoned.any() else shown),
            "range": _extent(zoned if zoned.any() else shown),
        }
        self.centres = [fullest_slices(zoned == k) for k in range(1, len(self.zones) + 1)]
        self.add("own", own)

    def add(self, key: str, volume: Hu) -> None:
        """Writes a volume in HU under its key, and keeps its regional means."""
        self._write(key, shrink(volume, self.factors, average=True), "ct")
        self.means[key] = self.measured.means(volume)

    def change(self, start: str, end: str) -> dict[str, float]:
        """Mean of `end` minus `start` by region and zone, HU."""
        first, last = self.means[start], self.means[end]
        return {name: last[name] - first[name] for name in first}

    def zone_change(self, start: str, end: str) -> dict[str, float]:
        """Mean of `end` minus `start` by zone, HU."""
        change = self.change(start, end)
        return {name: change[name] for name in self.zones}

    def _write(self, key: str, array: Hu, kind: Any) -> None:
        self.written[key] = {
            "kind": kind,
            "step": write_volume(self.folder / f"{key}.js", key, array, kind),
        }


def _extent(mask: NDArray[Any]) -> list[tuple[int, int]]:
    """First and last slice along each axis that hold something of the mask."""
    found = []
    for axis in range(3):
        there = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
        found.append((int(there[0]), int(there[-1])) if len(there) else (0, mask.shape[axis] - 1))
    return found


def noise_floor(voxels: CaseVoxels, control: Mapping[str, float] | None) -> float:
    """The largest change of a zone's mean by other noise, HU; 0 where that is not known."""
    return max((abs(control[name]) for name in voxels.zones), default=0.0) if control else 0.0
