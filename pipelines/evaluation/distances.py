"""Distances between two sets of scans in the space of a network's features, in float64.

Every set consists of volumes, each with the same number of feature vectors (its slices in one
plane, or one for the whole volume). Volumes are resampled, never slices, because the slices of one
volume are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from sklearn.metrics.pairwise import euclidean_distances, polynomial_kernel, rbf_kernel

Features = NDArray[np.floating]
Index = NDArray[np.integer]

MAX_WIDTH_VECTORS = 2000  # that set the width of the Gaussian kernel


def frechet(one: Features, two: Features) -> float:
    """Return the Fréchet distance of Gaussians fitted to vectors `(n, F)`, `(m, F)`.

    See Heusel et al. 2017. The trace of the root of the covariances' product is the sum of the
    singular values of the product of the centred features, or of the roots of eigenvalues where
    there are more vectors than features. No root of a singular matrix is needed.
    """
    a = np.asarray(one, np.float64)
    b = np.asarray(two, np.float64)
    if min(len(a), len(b)) < 2:
        return float("nan")
    means = a.mean(0) - b.mean(0)
    a = (a - a.mean(0)) / np.sqrt(len(a) - 1)
    b = (b - b.mean(0)) / np.sqrt(len(b) - 1)
    total = float(means @ means + np.square(a).sum() + np.square(b).sum())
    return max(total - 2 * _root_trace(a, b), 0.0)


def _root_trace(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if min(len(a), len(b)) < a.shape[1]:
        return float(linalg.svdvals(a @ b.T).sum())
    values, vectors = linalg.eigh(a.T @ a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return float(np.sqrt(np.maximum(linalg.eigvalsh(root @ (b.T @ b) @ root), 0)).sum())


class FrechetDistance:
    """Fréchet distance between any two groups of a pool of volumes.

    Args:
        features: `(N, S, F)`.
    """

    def __init__(self, features: Features) -> None:
        self.features = features

    def __call__(self, one: Index, two: Index) -> float:
        """Return the distance of two groups, given by their indices."""
        width = self.features.shape[-1]
        return frechet(self.features[one].reshape(-1, width), self.features[two].reshape(-1, width))


class KernelDistance:
    """Squared maximum mean discrepancy between any two groups of a pool of volumes, unbiased.

    See Gretton et al. 2012. The kernel is averaged over the slices of every pair of volumes once;
    each distance is then a mean of those. A volume is not compared with itself, nor with one of the
    same case (a synthetic one from the same mask, a scan with itself), because they are not
    independent. With one vector per volume and no shared case this is the usual estimator.

    Args:
        features: `(N, S, F)`.
        cases: The case of each volume.
        kernel: "polynomial": (x·y / F + 1)³, the kernel inception distance of Binkowski et al.
            2018; "rbf": Gaussian as wide as the median distance between the vectors of `reference`.
        reference: The volumes, by index, whose distances set the width of the Gaussian.
    """

    def __init__(
        self, features: Features, cases: Sequence[str], kernel: str, reference: Index | None = None
    ) -> None:
        n, slices, width = features.shape
        vectors = np.asarray(features, np.float64)
        flat = vectors.reshape(n * slices, width)
        gamma = 1 / width
        if kernel == "rbf":
            gamma = _median_gamma(vectors if reference is None else vectors[reference])
        self.means = np.empty((n, n))
        for i in range(n):  # one row of volumes at a time, for memory
            rows = flat[i * slices : (i + 1) * slices]
            if kernel == "polynomial":
                values = polynomial_kernel(rows, flat, 3, gamma, 1)
            else:
                values = rbf_kernel(rows, flat, gamma)
            self.means[i] = values.reshape(slices, n, slices).mean((0, 2))
        names = np.asarray(cases)
        self.comparable = names[:, None] != names[None]

    def __call__(self, one: Index, two: Index) -> float:
        """Return the distance of two groups, given by their indices."""
        return self._mean(one, one) + self._mean(two, two) - 2 * self._mean(one, two)

    def _mean(self, rows: Index, columns: Index) -> float:
        block = np.ix_(rows, columns)
        comparable = self.comparable[block]
        return float(self.means[block][comparable].mean()) if comparable.any() else float("nan")


def _median_gamma(features: Features) -> float:
    """Return 1 / (2 m²) for the median distance m of at most `MAX_WIDTH_VECTORS` vectors."""
    flat = features.reshape(-1, features.shape[-1])
    count = min(MAX_WIDTH_VECTORS, len(flat))
    evenly = flat[np.linspace(0, len(flat) - 1, count).astype(int)]
    distances = euclidean_distances(evenly)[np.triu_indices(count, 1)]
    median = float(np.median(distances)) if len(distances) else 0.0
    return 1 / (2 * median**2) if median > 0 else 1.0
