"""Whether the lungs' HU are right: histogram, mean, 15th percentile, shares of very thin and of
dense lung, MAISI's gate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from pipelines.evaluation.baselines import Index, Metric, ResamplingPlan, compare_with_baseline
from pipelines.evaluation.measurements import HU_BINS, VolumeMeasurements
from util.metrics.fidelity import densitometry

GATE_HU = (
    -937.0,
    -367.0,
)  # MAISI (Guo et al. 2024, arXiv 2409.11169): 0.5 to 99.5 percentile of the lungs' median
NAMES = {
    "mean_lung_attenuation_hu": "Mean lung attenuation (HU)",
    "percentile_15_hu": "15th percentile of the lungs (HU)",
    "share_below_-950_hu": "Share of lung below -950 HU",
    "share_above_-700_hu": "Share of lung above -700 HU",
    "sd_hu": "SD of lung voxels (HU)",
}


def lung_density(
    hu: NDArray[np.floating], lungs: NDArray[np.bool_]
) -> tuple[dict[str, float], NDArray[np.int64]]:
    """Densitometry with the median, and the histogram over `HU_BINS`; empty and zeros where there
    are no lungs.
    """
    if not lungs.any():
        return {}, np.zeros(len(HU_BINS), np.int64)
    whole = np.clip(np.rint(hu[lungs]), HU_BINS[0], HU_BINS[-1]).astype(np.int64)
    histogram = np.bincount(whole - HU_BINS[0], minlength=len(HU_BINS))
    return densitometry(hu, lungs) | {"median_hu": float(np.median(hu[lungs]))}, histogram


def _shares(volumes: Sequence[VolumeMeasurements]) -> NDArray[np.float64]:
    """Each volume's histogram as shares of its lung, so that large lungs count no more than small
    ones.
    """
    counts = np.array([v.histogram for v in volumes], float)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def density_metrics(
    real: Sequence[VolumeMeasurements],
    synthetic: Sequence[VolumeMeasurements],
    draws: ResamplingPlan,
) -> list[Metric]:
    """Differences of the means, synthetic minus real, and the histograms' distance; volumes without
    lungs are left out.
    """
    pool = [*real, *synthetic]
    seen = np.array([bool(v.density) for v in pool])
    shares = _shares(pool)

    def histogram(one: Index, two: Index) -> float:
        first, second = (shares[g[seen[g]]].sum(0) for g in (one, two))
        return (
            float(wasserstein_distance(HU_BINS, HU_BINS, first, second))
            if first.any() and second.any()
            else np.nan
        )

    found = [compare_with_baseline("hu", "Lung histogram, Wasserstein-1 (HU)", histogram, draws, least=0.0)]
    for key, name in NAMES.items():
        found.append(_difference(name, np.array([v.density.get(key, np.nan) for v in pool]), draws))
    for title, group in (("synthetic", synthetic), ("real", real)):
        medians = np.array([v.density["median_hu"] for v in group if v.density])
        inside = (
            float(((medians >= GATE_HU[0]) & (medians <= GATE_HU[1])).mean())
            if len(medians)
            else float("nan")
        )
        found.append(
            Metric(
                "hu",
                f"Share of {title} volumes whose lung median lies in {GATE_HU[0]:g} to "
                f"{GATE_HU[1]:g} HU",
                inside,
                better="high",
            )
        )
    return found


def _difference(name: str, values: NDArray[np.float64], draws: ResamplingPlan) -> Metric:
    """The difference of two means; its floor is the size of that of two halves."""
    signed = compare_with_baseline(
        "hu", name, lambda a, b: _mean_of(values, b) - _mean_of(values, a), draws
    )
    sizes = np.abs([_mean_of(values, b) - _mean_of(values, a) for a, b in draws.halves])
    finite = sizes[np.isfinite(sizes)]
    floor, high = (
        (float(finite.mean()), float(np.percentile(finite, 95)))
        if finite.size
        else (np.nan, np.nan)
    )
    note = f"real {_mean_of(values, draws.real):.4g}, synthetic {_mean_of(values, draws.synthetic):.4g}"
    return Metric(
        "hu",
        f"{name}, synthetic minus real",
        signed.value,
        signed.low,
        signed.high,
        floor=floor,
        floor_high=high,
        better="zero",
        note=note,
    )


def _mean_of(values: NDArray[np.float64], index: Index) -> float:
    finite = values[index][np.isfinite(values[index])]
    return float(finite.mean()) if finite.size else float("nan")
