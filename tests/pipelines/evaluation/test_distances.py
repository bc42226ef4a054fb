"""Distances between sets of volumes: against direct computations, and zero for a set and itself."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg

from pipelines.evaluation.baselines import (
    ResamplingPlan,
)
from pipelines.evaluation.distances import KernelDistance, frechet
from pipelines.evaluation.realism import realism_metrics
from pipelines.evaluation.verdict import interpret_metric
from tests.measured_volumes import RNG, group


@pytest.mark.parametrize("n, width", [(200, 8), (20, 40)])  # by eigenvalues, and by singular values
def test_frechet_is_that_of_the_matrix_root(n: int, width: int) -> None:
    mix = RNG.normal(size=(width, width))
    x, y = RNG.normal(size=(n, width)) @ mix, RNG.normal(0.5, 2, size=(n + 7, width)) @ mix
    one, two = np.cov(x.T), np.cov(y.T)
    if n > width:
        root = linalg.sqrtm(one @ two).real
        trace = np.trace(root)
    else:  # a singular product has no root that the library finds exactly
        trace = np.sqrt(np.maximum(linalg.eigvals(one @ two).real, 0)).sum()
    direct = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(one) + np.trace(two) - 2 * trace
    assert frechet(x, y) == pytest.approx(direct, rel=1e-3 if n < width else 1e-8)
    assert frechet(x, x) == pytest.approx(0, abs=1e-6 * np.trace(one))


def test_frechet_of_known_gaussians() -> None:
    x = RNG.normal(size=(20000, 3))
    assert frechet(x, 2 * x + 3) == pytest.approx(3 * 9 + 3 * 1, rel=0.05)
    assert np.isnan(frechet(x[:1], x))


@pytest.mark.parametrize("kernel", ["polynomial", "rbf"])
def test_kernel_distance_is_the_mean_over_pairs_of_volumes(kernel: str) -> None:
    features = RNG.normal(size=(9, 4, 5))
    features[5:] += 0.7
    names = [f"r{i}" for i in range(5)] + [
        "r0",
        "s1",
        "s2",
        "s3",
    ]  # the first synthetic volume is of the case r0
    real, synthetic = np.arange(5), np.arange(5, 9)
    flat = features[:5].reshape(-1, 5)
    apart = [np.linalg.norm(a - b) for i, a in enumerate(flat) for b in flat[:i]]
    width = 2 * np.median(apart) ** 2

    def k(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
        return float(
            (p @ q / 5 + 1) ** 3
            if kernel == "polynomial"
            else np.exp(-np.square(p - q).sum() / width)
        )

    def mean(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> float:
        return float(
            np.mean(
                [
                    np.mean([k(p, q) for p in features[i] for q in features[j]])
                    for i in rows
                    for j in columns
                    if names[i] != names[j]
                ]
            )
        )

    direct = mean(real, real) + mean(synthetic, synthetic) - 2 * mean(real, synthetic)
    distance = KernelDistance(features, names, kernel, real)
    assert distance(real, synthetic) == pytest.approx(direct, rel=1e-9)
    assert (
        KernelDistance(features[[*real, *real]], names[:5] * 2, kernel, real)(real, real + 5) == 0
    )
    assert np.isnan(distance(real[:1], synthetic[:1]))


def test_one_vector_a_volume_is_the_usual_unbiased_estimator() -> None:
    x, y = RNG.normal(size=(12, 6)), RNG.normal(0.5, 1, size=(9, 6))
    distance = KernelDistance(
        np.concatenate([x, y])[:, None], [str(i) for i in range(21)], "polynomial"
    )
    kxx, kyy, kxy = ((a @ b.T / 6 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    usual = (
        (kxx.sum() - np.trace(kxx)) / (12 * 11)
        + (kyy.sum() - np.trace(kyy)) / (9 * 8)
        - 2 * kxy.mean()
    )
    assert distance(np.arange(12), np.arange(12, 21)) == pytest.approx(usual, rel=1e-9)


def test_distances_of_sets_rank_and_are_zero_for_a_set_and_itself() -> None:
    real = group(24)
    near, far = group(24, "made", 0.2, seed=1), group(24, "made", 1.0, seed=1)
    plan = ResamplingPlan.from_counts(24, 24, 10, 0)
    by_set = [
        {
            f.name: f
            for f in realism_metrics(real, volumes, plan, {"net": "a"}, {"net3": "b"})
            if f.group == "realism"
        }
        for volumes in (real, near, far)
    ]
    assert {n.split(",")[0] for n in by_set[0]} == {
        "2.5D FID",
        "2.5D KID",
        "2.5D MMD",
        "3D Fréchet distance",
        "3D KID",
        "3D MMD",
    }
    for name in by_set[0]:
        same, one, two = (f[name].value for f in by_set)
        assert abs(same) < 1e-6 and one < two
        assert (
            interpret_metric(by_set[2][name]) == "beyond the baseline"
            and by_set[2][name].low < two < by_set[2][name].high
        )
