"""Density and texture of the lungs: histogram, percentiles, shares of HU ranges, detail, power."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from pipelines.evaluation.baselines import (
    Index,
    Metric,
    ResamplingPlan,
    compare_with_baseline,
    finite_mean,
    finite_percentiles,
)
from pipelines.evaluation.measurements import HU_BINS, VolumeMeasurements
from util.metrics.fidelity import lung_densitometry
from util.metrics.texture import POWER_BANDS, SPECTRUM_BANDS, region_statistics, vessel_share

# 0.5 to 99.5 percentile of the lungs' median in MAISI (Guo et al. 2024, arXiv 2409.11169).
GATE_HU = (-937.0, -367.0)
NAMES = {
    "mean_lung_attenuation_hu": "Mean lung attenuation (HU)",
    "percentile_15_hu": "15th percentile of the lungs (HU)",
    "share_below_-950_hu": "Share of lung below -950 HU",
    "share_above_-700_hu": "Share of lung above -700 HU",
    "sd_hu": "SD of lung voxels (HU)",
    "percentile_5_hu": "5th percentile of the lungs (HU)",
    "percentile_95_hu": "95th percentile of the lungs (HU)",
    "percentile_99.5_hu": "99.5th percentile of the lungs (HU)",
    "share_below_-910_hu": "Share of lung below -910 HU",
}
TEXTURE_NAMES = {
    "detail_sd_hu": "Detail SD of the lungs (HU)",
    "vessel_share": "Share of lung 150 HU above its median",
}
Band = tuple[float, float]  # lowest and highest frequency, 1/mm
POWER_NAME = "Power of the lungs at {} to {} mm per period (log10 of HU^2 mm^3)"


def lung_density(
    hu: NDArray[np.floating], lungs: NDArray[np.bool_], bins: NDArray[np.int64] = HU_BINS
) -> tuple[dict[str, float], NDArray[np.int64]]:
    """Return densitometry with the median, and the histogram over `bins`.

    Without lung voxels the densitometry is empty and the histogram zero.
    """
    if not lungs.any():
        return {}, np.zeros(len(bins), np.int64)
    rounded = np.clip(np.rint(hu[lungs]), bins[0], bins[-1]).astype(np.int64)
    histogram = np.bincount(rounded - bins[0], minlength=len(bins))
    return lung_densitometry(hu, lungs) | {"median_hu": float(np.median(hu[lungs]))}, histogram


def lung_texture(
    hu: NDArray[np.floating],
    lungs: NDArray[np.bool_],
    spacing: Sequence[float],
    power: Mapping[Band, float],
) -> dict[str, float]:
    """Return percentiles, detail and the logarithm of the power of the lungs; empty without lungs.

    Args:
        hu: `(X, Y, Z)` in HU, on a grid that all compared volumes share: detail depends on it.
        lungs: Lungs of the same shape.
        spacing: Voxel size in mm.
        power: Power by band, HU^2 mm^3 (see `util.metrics.texture.radial_power`).
    """
    if not lungs.any():
        return {}
    statistics = region_statistics(hu, lungs, spacing)
    names = {**NAMES, **TEXTURE_NAMES}
    texture = {name: value for name, value in statistics.items() if name in names}
    texture["vessel_share"] = vessel_share(hu, lungs)
    for band in POWER_BANDS:
        if band in power:
            texture[_power_key(band)] = float(np.log10(max(power[band], 1.0)))
    return texture


def lung_spectrum(power: Mapping[Band, float]) -> NDArray[np.float64]:
    """Return the logarithm of the power in `SPECTRUM_BANDS`; NaN in bands not resolved."""
    return np.array(
        [np.log10(max(power[b], 1.0)) if b in power else np.nan for b in SPECTRUM_BANDS]
    )


def _power_key(band: Band) -> str:
    return f"log_power_{1 / band[0]:g}_to_{1 / band[1]:g}_mm"


def density_metrics(
    real: Sequence[VolumeMeasurements],
    synthetic: Sequence[VolumeMeasurements],
    plan: ResamplingPlan,
    bins: NDArray[np.int64] = HU_BINS,
) -> list[Metric]:
    """Return differences of means, synthetic minus real, and the distance of the histograms.

    Volumes without lungs are left out, and measures that no volume has. The share of volumes with
    the density of lungs is that of chest CT alone.
    """
    pool = [*real, *synthetic]
    with_lungs = np.array([bool(v.density) for v in pool])
    shares = _histogram_shares(pool)

    def histogram_distance(one: Index, two: Index) -> float:
        first = shares[one[with_lungs[one]]].sum(0)
        second = shares[two[with_lungs[two]]].sum(0)
        if not (first.any() and second.any()):
            return float("nan")
        return float(wasserstein_distance(bins, bins, first, second))

    name = "Lung histogram, Wasserstein-1 (HU)"
    metrics = [compare_with_baseline("hu", name, histogram_distance, plan, lower_bound=0.0)]
    metrics += _mean_differences("hu", NAMES, pool, plan)
    if bins is HU_BINS:
        metrics.append(_gate_share("synthetic", synthetic))
        metrics.append(_gate_share("real", real))
    return metrics


def texture_metrics(
    real: Sequence[VolumeMeasurements],
    synthetic: Sequence[VolumeMeasurements],
    plan: ResamplingPlan,
) -> list[Metric]:
    """Return differences of the means of detail, vessels and power, synthetic minus real."""
    names = dict(TEXTURE_NAMES)
    for band in POWER_BANDS:
        names[_power_key(band)] = POWER_NAME.format(f"{1 / band[0]:g}", f"{1 / band[1]:g}")
    return _mean_differences("texture", names, [*real, *synthetic], plan)


def _mean_differences(
    group: str,
    names: Mapping[str, str],
    pool: Sequence[VolumeMeasurements],
    plan: ResamplingPlan,
) -> list[Metric]:
    """Return the differences of those measures that a volume of the pool has."""
    metrics = []
    for key, name in names.items():
        values = np.array([v.density.get(key, np.nan) for v in pool])
        if np.isfinite(values).any():
            metrics.append(_mean_difference(group, name, values, plan))
    return metrics


def _histogram_shares(volumes: Sequence[VolumeMeasurements]) -> NDArray[np.float64]:
    """Return each histogram as shares of its lung, so that all volumes have the same weight."""
    counts = np.array([v.histogram for v in volumes], float)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _mean_difference(
    group: str, name: str, values: NDArray[np.float64], plan: ResamplingPlan
) -> Metric:
    """Return the difference of two means; its baseline is the absolute one of two parts."""

    def difference(one: Index, two: Index) -> float:
        return finite_mean(values[two]) - finite_mean(values[one])

    signed = compare_with_baseline(group, name, difference, plan)
    sizes = np.abs([difference(one, two) for one, two in plan.parts])
    real = finite_mean(values[plan.real])
    synthetic = finite_mean(values[plan.synthetic])
    return Metric(
        group,
        f"{name}, synthetic minus real",
        signed.value,
        signed.low,
        signed.high,
        baseline=finite_mean(sizes),
        baseline_high=finite_percentiles(sizes, (95,))[0],
        better="zero",
        note=f"real {real:.4g}, synthetic {synthetic:.4g}",
    )


def _gate_share(title: str, volumes: Sequence[VolumeMeasurements]) -> Metric:
    """Return the share of volumes whose lung median lies within `GATE_HU`."""
    low, high = GATE_HU
    medians = np.array([v.density["median_hu"] for v in volumes if v.density])
    inside = float("nan")
    if len(medians):
        inside = float(((medians >= low) & (medians <= high)).mean())
    name = f"Share of {title} volumes whose lung median lies in {low:g} to {high:g} HU"
    return Metric("hu", name, inside, better="high")
