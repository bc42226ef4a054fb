"""Baselines of the benchmark of kinds: what a cohort shows without any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data.cohort import IMAGES
from data.phantom.anatomy import LEFT, RIGHT
from data.phantom.kinds.chest import Chest, Mask, relative_position
from data.phantom.kinds.cohort import KindsCohort
from data.phantom.rows import KEY, Row
from data.volumes import load_volume

Hu = NDArray[np.float32]
Index = NDArray[np.integer]
BINS = (6, 6, 8)  # of a location, from left to right, back to front, bottom to top
RIM_MM = 10.0
SMOOTH_MM = 10.0  # sigma of the Gaussian between the lungs' locations
LABELS = 4
MIN_DONORS = 2  # so that two noise draws have different residuals


@dataclass(frozen=True)
class LeastSquares:
    """Least squares at every location: conditional mean given the row's cells, without noise.

    A location is a label, a bin of each coordinate relative to the lungs, and rim or core. Numbers
    enter linearly, and columns add up.

    Attributes:
        cohort: The cohort; its training cases are fitted.
        coefficients: (terms, locations) in HU.
    """

    cohort: KindsCohort
    coefficients: NDArray[np.float64]

    @classmethod
    def from_cohort(cls, cohort: KindsCohort) -> LeastSquares:
        """Fit the training cases."""
        cases = cohort.splits["train"]
        means = np.stack([location_means(cohort.chest(c), _scan(cohort, c)) for c in cases])
        # A location that a case lacks counts as the mean of the others.
        known = np.isfinite(means)
        average = np.where(known, means, 0).sum(0) / np.maximum(known.sum(0), 1)
        means = np.where(known, means, average)
        design = np.stack([design_row(cohort, cohort.rows[case]) for case in cases])
        solution = np.linalg.lstsq(design, means, rcond=None)[0]
        return cls(cohort, np.asarray(solution, np.float64))

    def __call__(self, case: str, row: Row, draw: int = 0) -> Hu:
        """Return the mean volume of a case for a row."""
        chest = self.cohort.chest(case)
        values = design_row(self.cohort, row) @ self.coefficients
        return smooth_in_lungs(values[locations(chest)].astype(np.float32), chest)


@dataclass(frozen=True)
class MeanPlusResidual:
    """Conditional mean, plus the residual of a training patient with a row that is alike.

    Attributes:
        mean: The fitted means.
        seed: Decides between patients whose rows are equally alike.
    """

    mean: LeastSquares
    seed: int = 0
    _residuals: dict[str, Hu] = field(default_factory=dict)

    def __call__(self, case: str, row: Row, draw: int = 0) -> Hu:
        """Return the volume of a case for a row."""
        donor = self._donor(case, row, draw)
        chests = [self.mean.cohort.chest(name) for name in (donor, case)]
        moved = transfer(self._residual(donor), *chests)
        return self.mean(case, row) + moved

    @cached_property
    def _rows(self) -> Mapping[str, Row]:
        rows = self.mean.cohort.rows
        return {case: rows[case] for case in self.mean.cohort.splits["train"]}

    def _donor(self, case: str, row: Row, draw: int) -> str:
        """Return one of the training patients that share the most cells with a row."""
        scores = {
            name: sum(other[column] == value for column, value in row.items() if column != KEY)
            for name, other in self._rows.items()
        }
        lowest = sorted(scores.values())[-min(MIN_DONORS, len(scores))]
        best = [name for name, score in scores.items() if score >= lowest]
        number = list(self.mean.cohort.rows).index(case)
        order = np.random.default_rng([self.seed, number]).permutation(len(best))
        return best[order[draw % len(best)]]

    def _residual(self, case: str) -> Hu:
        if case not in self._residuals:
            scan = _scan(self.mean.cohort, case)
            self._residuals[case] = scan - self.mean(case, self.mean.cohort.rows[case])
        return self._residuals[case]


def design_row(cohort: KindsCohort, row: Row) -> NDArray[np.float64]:
    """Return a constant and the row's cells as numbers: 0 or 1, ages in decades."""
    terms = [1.0]
    for column in cohort.columns.all_columns:
        if column.values:
            terms.append(float(row[column.name] == column.values[-1]))
        else:
            terms.append(float(row[column.name]) / 10 - 6)
    return np.array(terms)


def locations(chest: Chest) -> Index:
    """Return the number of every voxel's location, (X, Y, Z)."""
    lungs = chest.lungs
    number = chest.anatomy.labels.astype(np.int64)
    for axis, bins in enumerate(BINS):
        position = relative_position(lungs, axis)
        number = number * bins + np.minimum((position * bins).astype(int), bins - 1)
    return np.asarray(number * 2 + (chest.anatomy.depth > RIM_MM))


def transfer(values: Hu, source: Chest, target: Chest) -> Hu:
    """Move values from one chest to another, to the same relative place with the same label."""
    moved = np.zeros(target.lungs.shape, np.float32)
    labels = source.anatomy.labels
    for label in np.unique(target.anatomy.labels):
        inside = target.anatomy.labels == label
        if not (labels == label).any():
            continue
        boxes = [_box(chest, int(label)) for chest in (source, target)]
        (start, extent), (target_start, target_extent) = boxes
        places = np.argwhere(inside)
        scaled = start + (places - target_start) / target_extent * extent
        index = np.clip(np.rint(scaled).astype(int), 0, np.array(labels.shape) - 1)
        nearest = ndimage.distance_transform_edt(
            labels != label, return_distances=False, return_indices=True
        )
        x, y, z = nearest[:, index[:, 0], index[:, 1], index[:, 2]]
        moved[inside] = values[x, y, z]
    return moved


def _box(chest: Chest, label: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return lowest corner and extent of a lung, or of both lungs for other labels, in voxels."""
    region: Mask = chest.lungs
    if label in (LEFT, RIGHT):
        region = chest.anatomy.labels == label
    places = np.argwhere(region)
    low = places.min(0)
    return low.astype(float), np.maximum(places.max(0) - low, 1).astype(float)


def location_means(chest: Chest, scan: Hu) -> NDArray[np.float64]:
    """Return the mean HU of a scan at every location; NaN where the chest lacks it."""
    count = LABELS * int(np.prod(BINS)) * 2
    place = locations(chest).ravel()
    total = np.bincount(place, scan.ravel(), count)
    voxels = np.bincount(place, minlength=count)
    return np.where(voxels > 0, total / np.maximum(voxels, 1), np.nan)


def smooth_in_lungs(volume: Hu, chest: Chest) -> Hu:
    """Smooth the lungs within themselves, because steps between locations would count as detail."""
    share = chest.smooth(chest.lungs.astype(np.float32), SMOOTH_MM)
    smooth = chest.smooth(volume * chest.lungs, SMOOTH_MM) / np.maximum(share, 1e-3)
    return np.where(chest.lungs, smooth, volume)


def _scan(cohort: KindsCohort, case: str) -> Hu:
    return load_volume(cohort.root / IMAGES / f"{case}.nii.gz").array.astype(np.float32)


def baselines(cohort: KindsCohort, seed: int) -> dict[str, LeastSquares | MeanPlusResidual]:
    """Return all baselines by name."""
    mean = LeastSquares.from_cohort(cohort)
    return {"least squares": mean, "mean + residual": MeanPlusResidual(mean, seed)}


BASELINE_NAMES: Sequence[str] = ("least squares", "mean + residual")
