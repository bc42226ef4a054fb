"""Whether volumes differ as real ones do: multi-scale structural similarity of pairs (MS-SSIM, Wang
et al. 2003).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import MultiScaleSSIMMetric
from numpy.typing import NDArray

from pipelines.evaluation.baselines import Metric, bootstrap_mean
from pipelines.evaluation.measurements import VolumeMeasurements

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
KERNEL = 4  # voxels; the usual 11 leave few scales on a coarse grid
PAIRS = 60


def ms_ssim(
    one: NDArray[np.floating], two: NDArray[np.floating], window: tuple[float, float]
) -> float:
    """MS-SSIM of two volumes `(X, Y, Z)`, with as many of the five scales as the smallest side
    allows.
    """
    scales = max(1, min(len(WEIGHTS), int(np.log2(max(min(one.shape) / KERNEL, 1))) + 1))
    while scales > 1 and min(one.shape) // 2 ** (scales - 1) < KERNEL:
        scales -= 1
    weights = np.array(WEIGHTS[:scales])
    metric = MultiScaleSSIMMetric(
        spatial_dims=3,
        data_range=window[1] - window[0],
        kernel_type="uniform",
        kernel_size=KERNEL,
        weights=tuple(weights / weights.sum()),
    )
    x, y = (
        torch.from_numpy(np.clip(v.astype(np.float32), *window) - window[0])[None, None]
        for v in (one, two)
    )
    return float(metric(x, y))


def _pairs(n: int, seed: int) -> list[tuple[int, int]]:
    every = [(i, j) for i in range(n) for j in range(i)]
    order = np.random.default_rng([seed, n]).permutation(len(every))[:PAIRS]
    return [every[k] for k in order]


def diversity_metrics(
    real: Sequence[VolumeMeasurements],
    synthetic: Sequence[VolumeMeasurements],
    again: Sequence[Sequence[VolumeMeasurements]],
    window: tuple[float, float],
    seed: int,
) -> list[Metric]:
    """MS-SSIM of pairs of different cases, and of the same condition with new noise where there are
    such volumes.
    """

    def between(group: Sequence[VolumeMeasurements]) -> NDArray[np.float64]:
        return np.array(
            [ms_ssim(group[i].small, group[j].small, window) for i, j in _pairs(len(group), seed)]
        )

    made, scans = between(synthetic), between(real)
    note = "near the real pairs is right; higher means volumes that are too much alike"
    found = [_figure("MS-SSIM of pairs of different cases", made, scans, seed, note)]
    first = {v.case: v for v in synthetic}
    same = np.array(
        [
            ms_ssim(first[v.case].small, v.small, window)
            for group in again
            for v in group
            if v.case in first
        ]
    )
    if again:
        note = "mask and text equal: near 1 means that noise changes nothing; the real pairs are of different patients"
        found.append(
            _figure("MS-SSIM of pairs of one condition, new noise", same, scans, seed, note)
        )
    return found


def _figure(
    name: str, made: NDArray[np.float64], scans: NDArray[np.float64], seed: int, note: str
) -> Metric:
    low, high = bootstrap_mean(made, 500, seed)
    value, floor = (float(v.mean()) if len(v) else float("nan") for v in (made, scans))
    top = float(np.percentile(scans, 95)) if len(scans) else float("nan")
    return Metric(
        "diversity", name, value, low, high, floor=floor, floor_high=top, better="near", note=note
    )
