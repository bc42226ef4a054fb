"""Diversity of volumes: similarity (MS-SSIM, Wang et al. 2003) and detail of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import MultiScaleSSIMMetric
from numpy.typing import NDArray
from torch import Tensor

from pipelines.evaluation.baselines import Metric, bootstrap_mean, finite_mean, finite_percentiles
from pipelines.evaluation.measurements import VolumeMeasurements

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
KERNEL = 4  # voxels; the usual 11 leave few scales on a coarse grid
MAX_PAIRS = 60
BOOTSTRAPS = 500


def ms_ssim(
    one: NDArray[np.floating], two: NDArray[np.floating], window: tuple[float, float]
) -> float:
    """Return the MS-SSIM of two volumes `(X, Y, Z)` in HU.

    It has as many of the five scales as the smallest side allows.
    """
    side = min(one.shape)
    scales = len(WEIGHTS)
    # The coarsest scale needs a kernel's voxels, and MONAI asks for the second number.
    while scales > 1 and side // max(2 ** (scales - 1), (scales - 1) ** 2) < KERNEL:
        scales -= 1
    weights = np.array(WEIGHTS[:scales])
    metric = MultiScaleSSIMMetric(
        spatial_dims=3,
        data_range=window[1] - window[0],
        kernel_type="uniform",
        kernel_size=KERNEL,
        weights=tuple(weights / weights.sum()),
    )
    value = metric(_to_tensor(one, window), _to_tensor(two, window))
    return float(value)  # type: ignore[arg-type]  # a tensor, or lists of them for lists


def _to_tensor(volume: NDArray[np.floating], window: tuple[float, float]) -> Tensor:
    clipped = np.clip(volume.astype(np.float32), *window)
    return torch.from_numpy(clipped - window[0])[None, None]


def diversity_metrics(
    real: Sequence[VolumeMeasurements],
    synthetic: Sequence[VolumeMeasurements],
    again: Sequence[Sequence[VolumeMeasurements]],
    window: tuple[float, float],
    seed: int,
) -> list[Metric]:
    """Return the MS-SSIM of pairs of different cases, and of one condition with new noise.

    The correlation of detail under new noise stands beside the latter.

    Args:
        real: Real scans.
        again: Sets of synthetic volumes of the same cases with other noise; may be empty.
        window: HU compared.
        seed: Seed of the pairs and of the resamples.
    """
    between_real = _similarities(real, window, seed)
    between_synthetic = _similarities(synthetic, window, seed)
    metrics = [
        _similarity_metric(
            "MS-SSIM of pairs of different cases",
            between_synthetic,
            between_real,
            seed,
            "near the real pairs is right; higher means volumes that are too much alike",
        )
    ]
    if again:
        metrics.append(
            _similarity_metric(
                "MS-SSIM of pairs of one condition, new noise",
                _similarities_under_new_noise(synthetic, again, window),
                between_real,
                seed,
                "mask and text equal: near 1 means that noise changes nothing; the real pairs are "
                "of different patients",
            )
        )
        metrics.append(
            _similarity_metric(
                "Correlation of lung detail of pairs of one condition, new noise",
                _detail_under_new_noise(synthetic, again),
                _detail_between_cases(real, seed),
                seed,
                "detail of 6 to 15 mm, mask and text equal: above 0.9 noise changes nearly "
                "nothing; the real pairs are of different patients",
            )
        )
    return metrics


def _similarities(
    volumes: Sequence[VolumeMeasurements], window: tuple[float, float], seed: int
) -> NDArray[np.float64]:
    """Return the MS-SSIM of at most `MAX_PAIRS` random pairs."""
    pairs = _random_pairs(len(volumes), seed)
    return np.array([ms_ssim(volumes[i].small, volumes[j].small, window) for i, j in pairs])


def _random_pairs(count: int, seed: int) -> list[tuple[int, int]]:
    """Return at most `MAX_PAIRS` random pairs of different volumes."""
    rows, columns = np.tril_indices(count, -1)
    order = np.random.default_rng([seed, count]).permutation(len(rows))[:MAX_PAIRS]
    return [(int(i), int(j)) for i, j in zip(rows[order], columns[order], strict=True)]


def _similarities_under_new_noise(
    synthetic: Sequence[VolumeMeasurements],
    again: Sequence[Sequence[VolumeMeasurements]],
    window: tuple[float, float],
) -> NDArray[np.float64]:
    first = {v.case: v.small for v in synthetic}
    pairs = [(first[v.case], v.small) for volumes in again for v in volumes if v.case in first]
    return np.array([ms_ssim(one, two, window) for one, two in pairs])


def _detail_under_new_noise(
    synthetic: Sequence[VolumeMeasurements], again: Sequence[Sequence[VolumeMeasurements]]
) -> NDArray[np.float64]:
    first = {v.case: v for v in synthetic}
    pairs = [(first[v.case], v) for volumes in again for v in volumes if v.case in first]
    return np.array([_detail_correlation(one, two) for one, two in pairs])


def _detail_between_cases(volumes: Sequence[VolumeMeasurements], seed: int) -> NDArray[np.float64]:
    pairs = _random_pairs(len(volumes), seed)
    return np.array([_detail_correlation(volumes[i], volumes[j]) for i, j in pairs])


def _detail_correlation(one: VolumeMeasurements, two: VolumeMeasurements) -> float:
    """Return the correlation of detail; the vectors have length 1."""
    return float(np.dot(one.detail.astype(np.float64), two.detail.astype(np.float64)))


def _similarity_metric(
    name: str,
    synthetic: NDArray[np.float64],
    real: NDArray[np.float64],
    seed: int,
    note: str,
) -> Metric:
    low, high = bootstrap_mean(synthetic, BOOTSTRAPS, seed)
    return Metric(
        "diversity",
        name,
        finite_mean(synthetic),
        low,
        high,
        baseline=finite_mean(real),
        baseline_high=finite_percentiles(real, (95,))[0],
        better="near",
        note=note,
    )
