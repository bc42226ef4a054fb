"""Check for copies: distances to the training scans beside those between real scans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from util.cli import UserError

FALSE_ALARM = 1e-4  # chance that a real scan of a new patient is called a copy
MIN_REFERENCES = 5  # for a fit; with fewer the threshold is half of the smallest distance
BLOCK_SIZE = 64  # scans compared at a time

Vectors = NDArray[np.floating]


@dataclass(frozen=True)
class NearestScan:
    """The training scan nearest to a volume.

    Attributes:
        case: Case of the scan.
        distance: Distance of the volume to it.
        threshold: Distance below which a volume is called a copy.
        closest_real: Smallest distance of any real scan.
    """

    case: str = ""
    distance: float = 0.0
    threshold: float = 0.0
    closest_real: float = 0.0

    @property
    def copied(self) -> bool:
        """Return whether the volume is called a copy."""
        return self.distance < self.threshold

    @property
    def closer_than_real(self) -> bool:
        """Return whether the volume is closer than any real scan."""
        return self.distance < self.closest_real


@dataclass(frozen=True)
class CopyVerdict:
    """The verdict on one volume.

    Attributes:
        image: Nearest by the detail inside the lungs (1 - correlation).
        feature: Nearest by features (standardised Euclidean), or `None` where there are none.
        edit_of: The case whose scan the volume declares to be an edit of, which is not compared; ""
            for a generated volume.
    """

    image: NearestScan
    feature: NearestScan | None
    edit_of: str = ""

    @property
    def copy(self) -> bool:
        """Return whether the volume is called a copy."""
        return self.image.copied or (self.feature is not None and self.feature.copied)

    @property
    def alarm(self) -> bool:
        """Return whether the volume is closer to a training scan than any real scan is."""
        by_feature = self.feature is not None and self.feature.closer_than_real
        return self.image.closer_than_real or by_feature


@dataclass(frozen=True)
class ScanDistance:
    """One kind of distance to the training scans, with the distances of real scans.

    Attributes:
        train: `(M, D)` vectors of the training scans.
        centre: `(D,)` subtracted from every vector.
        scale: `(D,)` by which every vector is divided.
        angular: 1 - correlation, instead of Euclidean distance.
        reference: Distances of real scans to the nearest other scan.
    """

    train: Vectors
    centre: NDArray[np.float32]
    scale: NDArray[np.float32]
    angular: bool
    reference: NDArray[np.float64]

    @classmethod
    def from_scans(
        cls, train: Vectors, test: Vectors | None, patients: Sequence[str], angular: bool
    ) -> ScanDistance:
        """Fit a distance; its reference is test scans, or each training scan against the others.

        Args:
            train: `(M, D)`, may be memory-mapped.
            test: `(T, D)` of real scans outside the training set; fewer than `MIN_REFERENCES` are
                not used.
            patients: The patient of each training scan: scans of one patient are not a reference
                for each other.
            angular: 1 - correlation, instead of Euclidean distance in units of the training scans'
                SD.
        """
        centre: NDArray[np.float32] = np.asarray(
            np.mean(train, axis=0, dtype=np.float64), np.float32
        )
        # The mean of all scans is not a detail of a patient. With two scans it is half of each, so
        # it stays.
        if len(train) < MIN_REFERENCES:
            centre = np.zeros_like(centre)
        scale = np.ones_like(centre)
        if not angular:
            sd = np.std(train, axis=0, dtype=np.float64)
            scale = np.asarray(np.maximum(sd, 1e-6), np.float32)
        fitted = cls(train, centre, scale, angular, np.empty(0))
        if test is not None and len(test) >= MIN_REFERENCES:
            reference = fitted.distances(test).min(1)
        else:
            if angular and len(train) >= MIN_REFERENCES:
                distances = leave_one_out(train)
            else:
                distances = fitted.distances(train)
            names = np.asarray(patients)
            distances[names[:, None] == names[None]] = np.inf
            reference = distances.min(1, initial=np.inf)
        return replace(fitted, reference=reference[np.isfinite(reference)])

    @property
    def threshold(self) -> float:
        """Distance below which a volume is called a copy (see `copy_threshold`)."""
        return copy_threshold(self.reference)

    def distances(self, query: Vectors) -> NDArray[np.float64]:
        """Return distances `(N, M)` from N volumes to the M training scans."""
        vectors = self._standardise(query)
        blocks = [
            _pairwise(vectors, self._standardise(block), self.angular)
            for block in _blocks(self.train)
        ]
        return np.concatenate(blocks, 1)

    def _standardise(self, vectors: Vectors) -> NDArray[np.float32]:
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
    one_squared = np.square(one, dtype=np.float64).sum(1)
    two_squared = np.square(two, dtype=np.float64).sum(1)
    return np.sqrt(np.maximum(np.add.outer(one_squared, two_squared) - 2 * product, 0))


def copy_threshold(reference: NDArray[np.floating]) -> float:
    """Return the distance that a new real scan falls below with chance `FALSE_ALARM`.

    It is a prediction bound (Student's t) for the logarithm of nearest-neighbour distances, which
    allows for few of them. With fewer than `MIN_REFERENCES` it is half of the smallest distance,
    and 0 without any.
    """
    n = len(reference)
    if n < MIN_REFERENCES:
        return 0.5 * float(min(reference, default=0.0))
    logs = np.log(np.maximum(reference, 1e-12))
    width = stats.t.ppf(FALSE_ALARM, n - 1) * logs.std(ddof=1) * np.sqrt(1 + 1 / n)
    return float(np.exp(logs.mean() + width))


def leave_one_out(train: Vectors) -> NDArray[np.float64]:
    """Return 1 - correlation `(M, M)` of each training scan (row) with the others.

    The correlation is taken about the mean of those others. If the scan itself were part of the
    mean, it would seem further from the others than a new scan does.
    """
    vectors = np.asarray(train, np.float32)
    n = len(vectors)
    transposed = vectors.astype(np.float64).T
    products = np.concatenate([block.astype(np.float64) @ transposed for block in _blocks(vectors)])
    squares = products.diagonal()
    sums = products.sum(1)
    to_mean = (sums[None] - products) / (n - 1)  # row i: products with the mean without scan i
    mean_square = ((sums.sum() - 2 * sums + squares) / (n - 1) ** 2)[:, None]
    lengths = np.sqrt(np.maximum(squares[None] - 2 * to_mean + mean_square, 1e-24))
    moved = products - to_mean.diagonal()[:, None] - to_mean + mean_square
    return np.maximum(1 - moved / (lengths * lengths.diagonal()[:, None]), 0)


@dataclass(frozen=True)
class CopyCheck:
    """Comparison of volumes with the training scans.

    Attributes:
        cases: Names of the training scans.
        image: Distance by the detail inside the lungs.
        feature: Distance by features, or `None`.
    """

    cases: tuple[str, ...]
    image: ScanDistance
    feature: ScanDistance | None

    @classmethod
    def from_scans(
        cls,
        cases: Sequence[str],
        image: Vectors,
        features: Vectors | None = None,
        *,
        test_image: Vectors | None = None,
        test_features: Vectors | None = None,
        patients: Sequence[str] | None = None,
    ) -> CopyCheck:
        """Learn how close real scans are to the training scans.

        Args:
            cases: Names of the M training scans.
            image: `(M, D)` of `pipelines.evaluation.detail.detail_vector`.
            features: `(M, F)` of a 3D network (see `pipelines.evaluation.extractors`).
            test_image: `(T, D)` of real scans outside the training set; without at least
                `MIN_REFERENCES` of them, every training scan is compared with the others.
            test_features: `(T, F)`.
            patients: Patient of each training scan, where some have several.

        Raises:
            UserError: Fewer than two training scans.
        """
        if len(cases) < 2:
            raise UserError(
                f"A check for copies needs at least two training scans, and there are {len(cases)}."
            )
        patients = cases if patients is None else patients
        feature = None
        if features is not None:
            feature = ScanDistance.from_scans(features, test_features, patients, angular=False)
        by_image = ScanDistance.from_scans(image, test_image, patients, angular=True)
        return cls(tuple(cases), by_image, feature)

    @property
    def conclusive(self) -> bool:
        """Return whether there are enough real scans to say how close is too close."""
        return len(self.image.reference) >= MIN_REFERENCES

    def __call__(
        self,
        image: Vectors,
        features: Vectors | None = None,
        sources: Sequence[str] | None = None,
        edit_sources: Sequence[str] | None = None,
    ) -> list[CopyVerdict]:
        """Return the verdict on each of N volumes.

        Args:
            image: `(N, D)`.
            features: `(N, F)`.
            sources: The case whose mask each was made from, "" where none. A volume has the shape
                of that case's lungs by design. For this pair features are not compared, and the
                detail inside the lungs alone decides.
            edit_sources: The case whose scan each is a declared edit of, "" where none. It is close
                to that scan by design, so that only the other scans are compared.
        """
        nearest = self._nearest(self.image, image, [edit_sources])
        by_feature: Sequence[NearestScan | None] = [None] * len(nearest)
        if self.feature is not None and features is not None:
            by_feature = self._nearest(self.feature, features, [sources, edit_sources])
        edits = [""] * len(nearest) if edit_sources is None else edit_sources
        return [CopyVerdict(*one) for one in zip(nearest, by_feature, edits, strict=True)]

    def _nearest(
        self, kind: ScanDistance, vectors: Vectors, left_out: Sequence[Sequence[str] | None]
    ) -> list[NearestScan]:
        threshold = kind.threshold
        closest_real = float(min(kind.reference, default=0.0))
        distances = np.concatenate([kind.distances(block) for block in _blocks(vectors)])
        for cases in left_out:
            if cases is not None:
                distances[np.asarray(cases)[:, None] == np.asarray(self.cases)[None]] = np.inf
        nearest = []
        for row in distances:
            i = row.argmin()
            nearest.append(NearestScan(self.cases[i], float(row[i]), threshold, closest_real))
        return nearest
