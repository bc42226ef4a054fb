"""Maps averaged over patients in a frame that every patient's lungs are stretched to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

FRAME = (80, 64, 72)  # voxels: two lungs of 40 side by side, back to front, bottom to top
MIN_TISSUE = 0.5  # share of lung that a voxel of the frame needs in a patient to count
MIN_COVERAGE = 0.5  # share of patients that must have lung in a voxel of the frame


class LungFrame:
    """One patient's way into the frame: each lung's bounding box is stretched to one half of it.

    Args:
        labels: `(X, Y, Z)` in RAS.
        lung_labels: Labels of the lungs; unless there are just two of them, one box holds both
            lungs.
        tissue: `(X, Y, Z)`, the voxels that count (lungs without vessels).
    """

    def __init__(
        self, labels: NDArray[np.integer], lung_labels: Sequence[int], tissue: Mask
    ) -> None:
        sides = [labels == k for k in lung_labels if (labels == k).any()]
        if len(sides) != 2:
            sides = [np.isin(labels, lung_labels)]
        sides.sort(key=lambda side: float(np.flatnonzero(side.any((1, 2))).mean()))
        width = FRAME[0] // len(sides)
        self.parts = [(side & tissue, _places(side, (width, *FRAME[1:]))) for side in sides]
        self.weight = np.concatenate(
            [_sample(part.astype(np.float32), at) for part, at in self.parts]
        )

    def __call__(self, volume: NDArray[np.floating]) -> Array:
        """A volume in the frame, float32 `FRAME`; NaN where the patient has no lung."""
        found = np.concatenate(
            [_sample(np.where(part, volume, 0).astype(np.float32), at) for part, at in self.parts]
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.weight >= MIN_TISSUE, found / self.weight, np.nan).astype(
                np.float32
            )


def _places(side: Mask, size: Sequence[int]) -> NDArray[np.float32]:
    """Where the voxels of a box of the frame lie in the patient: `(3, x, y, z)` voxel indices."""
    axes = []
    for axis, n in enumerate(size):
        inside = np.flatnonzero(side.any(tuple(a for a in range(3) if a != axis)))
        low, high = inside[0] - 0.5, inside[-1] + 0.5
        axes.append(low + (np.arange(n, dtype=np.float32) + 0.5) / n * (high - low))
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _sample(volume: Array, at: NDArray[np.float32]) -> Array:
    return np.asarray(ndimage.map_coordinates(volume, at, order=1, mode="nearest"), np.float32)


@dataclass
class RunningAverage:
    """A running mean over patients."""

    total: Array = field(default_factory=lambda: np.zeros(FRAME, np.float32))
    square: Array = field(default_factory=lambda: np.zeros(FRAME, np.float32))
    count: Array = field(default_factory=lambda: np.zeros(FRAME, np.float32))
    cases: int = 0

    def add(self, mapped: Array) -> None:
        there = np.isfinite(mapped)
        value = np.where(there, mapped, 0)
        self.total += value
        self.square += value**2
        self.count += there
        self.cases += 1

    @property
    def coverage(self) -> Array:
        """Share of patients with lung."""
        return np.asarray(self.count / max(self.cases, 1), np.float32)

    def mean(self) -> Array:
        """Mean over the patients that have lung there; NaN where fewer than `COVERAGE` of them
        have.
        """
        enough = self.coverage >= MIN_COVERAGE
        return np.where(enough, self.total / np.maximum(self.count, 1), np.nan).astype(np.float32)

    def sd(self) -> Array:
        """Standard deviation over patients; NaN where fewer than two have lung."""
        n = np.maximum(self.count, 2)
        variance = np.maximum(self.square - self.total**2 / np.maximum(self.count, 1), 0) / (n - 1)
        return np.where(
            (self.count >= 2) & np.isfinite(self.mean()), np.sqrt(variance), np.nan
        ).astype(np.float32)


Key = tuple[str, str, str]  # kind, contrast, refit


class PopulationMaps:
    """Every averaged map by (kind, contrast, refit)."""

    def __init__(self) -> None:
        self.averages: dict[Key, RunningAverage] = {}

    def add(self, key: Key, mapped: Array) -> None:
        self.averages.setdefault(key, RunningAverage()).add(mapped)

    def summary_maps(self) -> list[tuple[str, str, int, Array]]:
        """(kind, contrast, cases, array) of every map.

        Of resampled refits it is their spread; of permuted ones the first, for a mean over them
        would look smaller than what chance does in one network.
        """
        made: list[tuple[str, str, int, Array]] = []
        refits: dict[tuple[str, str], list[RunningAverage]] = {}
        for (kind, contrast, refit), average in self.averages.items():
            if refit:
                refits.setdefault((kind, contrast), []).append(average)
                continue
            made.append((kind, contrast, average.cases, average.mean()))
            if kind == "effect":
                made.append(("effect_sd", contrast, average.cases, average.sd()))
            if kind == "generated":
                made.append(("coverage", "", average.cases, average.coverage))
        for (kind, contrast), averages in refits.items():
            if kind == "permuted":
                made.append((kind, contrast, averages[0].cases, averages[0].mean()))
            elif len(averages) > 1:
                spread = np.stack([average.mean() for average in averages]).std(0, ddof=1)
                made.append(("refit_sd", contrast, averages[0].cases, spread))
        return made
