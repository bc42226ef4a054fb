"""Whether a synthetic volume is a copy of a training scan: nearest neighbours against what real
scans give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from util.cli import UserError

FALSE_ALARM = (
    1e-4  # chance that a real scan of a new patient is called a copy, by the fitted distances
)
MIN_REFERENCES = (
    5  # reference distances for a fit; with fewer the threshold is half of the smallest of them
)
BLOCK_SIZE = 64  # scans compared at a time

Vectors = NDArray[np.floating]


class NearestScan(NamedTuple):
    """The training case nearest to a volume, its distance, and what that is held against."""

    case: str
    distance: float
    threshold: float  # closer than this is called a copy
    closest_real: float  # the smallest distance of any real scan

    @property
    def copied(self) -> bool:
        return self.distance < self.threshold

    @property
    def closer_than_real(self) -> bool:
        return self.distance < self.closest_real


@dataclass(frozen=True)
class CopyVerdict:
    """What the check says of one volume.

    Attributes:
        image: Nearest by the detail inside the lungs (1 - correlation).
        feature: Nearest by features (standardised Euclidean), or `None` where there are none.
        copy: Whether the volume is called a copy.
        alarm: Whether it is closer to a training scan than any real scan is; a copy, or worth a
            look.
    """

    image: NearestScan
    feature: NearestScan | None
    copy: bool
    alarm: bool


@dataclass(frozen=True)
class ScanDistance:
    """One kind of distance to the training scans, with the distances that real scans have."""

    train: Vectors
    centre: NDArray[np.float32]
    scale: NDArray[np.float32]
    angular: bool
    reference: NDArray[np.float64]

    @property
    def threshold(self) -> float:
        """The distance below which a volume is called a copy (see `copy_threshold`)."""
        return copy_threshold(self.reference)

    def distances(self, query: Vectors) -> NDArray[np.float64]:
        """`(N, M)` from N volumes to the M training scans."""
        own = self._prepare(query)
        return np.concatenate(
            [_pairwise(own, self._prepare(block), self.angular) for block in _blocks(self.train)], 1
        )

    def _prepare(self, vectors: Vectors) -> NDArray[np.float32]:
        moved = (np.asarray(vectors, np.float32) - self.centre) / self.scale
        if not self.angular:
            return moved
        return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)


def _blocks(vectors: Vectors) -> Iterator[Vectors]:
    return (vectors[i : i + BLOCK_SIZE] for i in range(0, len(vectors), BLOCK_SIZE))


def _pairwise(
    one: NDArray[np.float32], two: NDArray[np.float32], angular: bool
) -> NDArray[np.float64]:
    product = one.astype(np.float64) @ two.astype(np.float64).T
    if angular:
        return np.maximum(1 - product, 0)
    squares = (np.square(v, dtype=np.float64).sum(1) for v in (one, two))
    return np.sqrt(np.maximum(np.add.outer(*squares) - 2 * product, 0))


def copy_threshold(reference: NDArray[np.floating]) -> float:
    """The distance that a new real scan falls below with chance `FALSE_ALARM`.

    A prediction bound (Student's t) for the logarithm of nearest-neighbour distances, which allows
    for few of them; half of the smallest where there are fewer than `FEWEST`, 0 where there is
    none.
    """
    n = len(reference)
    if n < MIN_REFERENCES:
        return 0.5 * float(min(reference, default=0.0))
    logs = np.log(np.maximum(reference, 1e-12))
    return float(
        np.exp(
            logs.mean() + stats.t.ppf(FALSE_ALARM, n - 1) * logs.std(ddof=1) * np.sqrt(1 + 1 / n)
        )
    )


def leave_one_out(train: Vectors) -> NDArray[np.float64]:
    """1 - correlation `(M, M)` of each training scan (row) with the others, about the mean of those
    others.

    Were the scan itself part of the mean, it would seem further from the others than a new scan
    does.
    """
    vectors = np.asarray(train, np.float32)
    n = len(vectors)
    products = np.concatenate(
        [block.astype(np.float64) @ vectors.astype(np.float64).T for block in _blocks(vectors)]
    )
    squares, sums = products.diagonal(), products.sum(1)
    to_mean = (sums[None] - products) / (n - 1)  # row i: products with the mean without scan i
    mean_square = ((sums.sum() - 2 * sums + squares) / (n - 1) ** 2)[:, None]
    lengths = np.sqrt(np.maximum(squares[None] - 2 * to_mean + mean_square, 1e-24))
    moved = products - to_mean.diagonal()[:, None] - to_mean + mean_square
    return np.maximum(1 - moved / (lengths * lengths.diagonal()[:, None]), 0)


def make_measure(
    train: Vectors, test: Vectors | None, patients: Sequence[str], angular: bool
) -> ScanDistance:
    """The distance of one kind; its reference are test scans, or else each training scan against
    the others.

    Args:
        train: `(M, D)`, may be memory-mapped.
        test: `(T, D)` of real scans that are no training scans; fewer than `FEWEST` are not enough.
        patients: The patient of each training scan: scans of one patient are no reference for each
            other.
        angular: 1 - correlation, instead of Euclidean distance in units of the training scans' SD.
    """
    centre: NDArray[np.float32] = np.asarray(np.mean(train, axis=0, dtype=np.float64), np.float32)
    # What all scans have in common is no detail of a patient; with two scans their mean is half of
    # each, so it stays.
    centre = centre if len(train) >= MIN_REFERENCES else np.zeros_like(centre)
    spread = np.ones_like(centre)
    if not angular:
        spread = np.asarray(np.maximum(np.std(train, axis=0, dtype=np.float64), 1e-6), np.float32)
    measure = ScanDistance(train, centre, spread, angular, np.empty(0))
    if test is not None and len(test) >= MIN_REFERENCES:
        reference = measure.distances(test).min(1)
    else:
        distances = (
            leave_one_out(train) if angular and len(train) >= MIN_REFERENCES else measure.distances(train)
        )
        names = np.asarray(patients)
        distances[names[:, None] == names[None]] = np.inf
        reference = distances.min(1, initial=np.inf)
    return ScanDistance(train, centre, spread, angular, reference[np.isfinite(reference)])


@dataclass(frozen=True)
class CopyCheck:
    """Compares volumes with the training scans; made by `CopyCheck.fit`."""

    cases: tuple[str, ...]
    image: ScanDistance
    feature: ScanDistance | None

    @staticmethod
    def from_scans(
        cases: Sequence[str],
        image: Vectors,
        features: Vectors | None = None,
        *,
        test_image: Vectors | None = None,
        test_features: Vectors | None = None,
        patients: Sequence[str] | None = None,
    ) -> CopyCheck:
        """Learns how close real scans are to the training scans.

        Args:
            cases: Names of the M training scans.
            image: `(M, D)` of `pipelines.evaluation.detail.detail_vector`.
            features: `(M, F)` of a 3D network (see `pipelines.evaluation.extractors`).
            test_image: `(T, D)` of real scans outside the training set; without at least `FEWEST`
                of them, every training scan is compared with the others.
            test_features: `(T, F)`.
            patients: Patient of each training scan, where some have several.

        Raises:
            UserError: Fewer than two training scans.
        """
        if len(cases) < 2:
            raise UserError(
                f"A check for copies needs at least two training scans, and there are {len(cases)}."
            )
        owners = cases if patients is None else patients
        feature = None if features is None else make_measure(features, test_features, owners, False)
        return CopyCheck(tuple(cases), make_measure(image, test_image, owners, True), feature)

    @property
    def conclusive(self) -> bool:
        """Whether there are enough real scans to say what is too close."""
        return len(self.image.reference) >= MIN_REFERENCES

    def __call__(
        self, image: Vectors, features: Vectors | None = None, sources: Sequence[str] | None = None
    ) -> list[CopyVerdict]:
        """The verdict on each of N volumes.

        Args:
            image: `(N, D)`.
            features: `(N, F)`.
            sources: The case whose mask each was made from, "" where none. A volume has the shape
                of that case's lungs by design, so for this pair features say nothing and the detail
                inside the lungs alone decides.
        """
        near = self._nearest(self.image, image, None)
        by_feature: Sequence[NearestScan | None] = [None] * len(near)
        if self.feature is not None and features is not None:
            by_feature = self._nearest(self.feature, features, sources)
        return [
            CopyVerdict(
                i,
                f,
                i.copied or (f is not None and f.copied),
                i.closer_than_real or (f is not None and f.closer_than_real),
            )
            for i, f in zip(near, by_feature, strict=True)
        ]

    def _nearest(
        self, measure: ScanDistance, vectors: Vectors, leave_out: Sequence[str] | None
    ) -> list[NearestScan]:
        threshold, closest = measure.threshold, float(min(measure.reference, default=0.0))
        distances = np.concatenate([measure.distances(block) for block in _blocks(vectors)])
        if leave_out is not None:
            distances[np.asarray(leave_out)[:, None] == np.asarray(self.cases)[None]] = np.inf
        return [
            NearestScan(self.cases[i], float(row[i]), threshold, closest)
            for row, i in zip(distances, distances.argmin(1), strict=True)
        ]
