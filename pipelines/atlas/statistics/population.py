"""Maps averaged over patients, in a frame that every patient's lungs are stretched to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from util.metrics.regions import bounding_box

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

FRAME = (80, 64, 72)  # voxels: two lungs of 40 side by side, back to front, bottom to top
MIN_TISSUE = 0.5  # share of lung that a voxel of the frame needs in a patient
MIN_COVERAGE = 0.5  # share of patients with lung that a voxel of the frame needs


class LungFrame:
    """One patient's mapping to the frame: each lung's bounding box is stretched to one half of it.

    Args:
        labels: `(X, Y, Z)` in RAS.
        lung_labels: Labels of the left and the right lung, of which a patient may have one; unless
            they are exactly two, one box holds both lungs.
        sides: Whether two labels are those of the left and the right lung.
    """

    def __init__(
        self, labels: NDArray[np.integer], lung_labels: Sequence[int], sides: bool = True
    ) -> None:
        lungs = [labels == label for label in lung_labels]
        if len(lungs) != 2 or not sides:
            lungs = [np.isin(labels, lung_labels)]
        elif all(lung.any() for lung in lungs):
            lungs.sort(key=lambda lung: float(np.flatnonzero(lung.any((1, 2))).mean()))
        width = FRAME[0] // len(lungs)
        self.parts = [(lung, _box_coordinates(lung, (width, *FRAME[1:]))) for lung in lungs]
        self.weight = self._to_frame(np.ones(labels.shape))

    def __call__(self, volume: NDArray[np.floating]) -> Array:
        """Return a volume in the frame, float32 `FRAME`; NaN where the patient has no lung."""
        total = self._to_frame(volume)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(self.weight >= MIN_TISSUE, total / self.weight, np.nan)
        return mean.astype(np.float32)

    def _to_frame(self, volume: NDArray[np.floating]) -> Array:
        halves = []
        for part, coordinates in self.parts:
            values = np.where(part, volume, 0).astype(np.float32)
            half = ndimage.map_coordinates(values, coordinates, order=1, mode="nearest")
            halves.append(np.asarray(half, np.float32))
        return np.concatenate(halves)


def _box_coordinates(side: Mask, size: Sequence[int]) -> NDArray[np.float32]:
    """Return the patient's voxel indices `(3, x, y, z)` of a box of the frame.

    Without the lung these are those of the whole volume, where the lung's voxels are none.
    """
    if not side.any():
        side = np.ones_like(side)
    axes = []
    for extent, n in zip(bounding_box(side), size, strict=True):
        low = extent.start - 0.5
        high = extent.stop - 0.5
        axes.append(low + (np.arange(n) + 0.5) / n * (high - low))
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _zeros() -> Array:
    return np.zeros(FRAME, np.float32)


@dataclass
class RunningAverage:
    """A running mean and standard deviation over patients."""

    total: Array = field(default_factory=_zeros)
    square: Array = field(default_factory=_zeros)
    count: Array = field(default_factory=_zeros)
    cases: int = 0

    def add(self, mapped: Array) -> None:
        """Add one patient's map, NaN where there is no lung."""
        has_lung = np.isfinite(mapped)
        value = np.where(has_lung, mapped, 0)
        self.total += value
        self.square += value**2
        self.count += has_lung
        self.cases += 1

    @property
    def coverage(self) -> Array:
        """Share of patients with lung."""
        return np.asarray(self.count / max(self.cases, 1), np.float32)

    def mean(self) -> Array:
        """Return the mean over patients with lung; NaN where fewer than `MIN_COVERAGE` have it."""
        covered = self.coverage >= MIN_COVERAGE
        mean = np.where(covered, self.total / np.maximum(self.count, 1), np.nan)
        return mean.astype(np.float32)

    def sd(self) -> Array:
        """Return the standard deviation over patients; NaN where fewer than two have lung."""
        squares = self.square - self.total**2 / np.maximum(self.count, 1)
        variance = np.maximum(squares, 0) / (np.maximum(self.count, 2) - 1)
        is_known = (self.count >= 2) & np.isfinite(self.mean())
        return np.where(is_known, np.sqrt(variance), np.nan).astype(np.float32)


@dataclass(frozen=True)
class PopulationMap:
    """One map of maps.npz.

    Attributes:
        kind: Such as effect, effect_sd, permuted, refit_sd, generated, real or coverage.
        contrast: Id of the contrast; "" for volumes and controls.
        cases: Cases that it was made of.
        array: float32 `FRAME`.
    """

    kind: str
    contrast: str
    cases: int
    array: Array


Key = tuple[str, str, str]  # kind, contrast, refit


class PopulationMaps:
    """Every averaged map by (kind, contrast, refit)."""

    def __init__(self) -> None:
        self.averages: dict[Key, RunningAverage] = {}

    def add(self, key: Key, mapped: Array) -> None:
        """Add one patient's map."""
        self.averages.setdefault(key, RunningAverage()).add(mapped)

    def summary_maps(self) -> list[PopulationMap]:
        """Return the maps of the run, then those over its refits.

        For resampled refits this is their SD. For permuted ones it is the first, because a mean
        over them would be smaller than the changes by chance in one network.
        """
        maps = []
        refits: dict[tuple[str, str], list[RunningAverage]] = {}
        for (kind, contrast, refit), average in self.averages.items():
            if refit:
                refits.setdefault((kind, contrast), []).append(average)
                continue
            maps.append(PopulationMap(kind, contrast, average.cases, average.mean()))
            if kind == "effect":
                maps.append(PopulationMap("effect_sd", contrast, average.cases, average.sd()))
            if kind == "generated":
                maps.append(PopulationMap("coverage", "", average.cases, average.coverage))
        for (kind, contrast), averages in refits.items():
            first = averages[0]
            if kind == "permuted":
                maps.append(PopulationMap(kind, contrast, first.cases, first.mean()))
            elif len(averages) > 1:
                spread = np.stack([average.mean() for average in averages]).std(0, ddof=1)
                maps.append(PopulationMap("refit_sd", contrast, first.cases, spread))
        return maps
