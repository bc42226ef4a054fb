"""Metrics of one generated volume: density and texture of the lungs, distance to the real scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from util.metrics.regions import body_mask
from util.metrics.texture import radial_power, region_statistics, vessel_share

METRIC_COLUMNS = ("case", "region", "metric", "value")
SSIM_WINDOW = 7  # voxels
MIN_DETAIL_RATIO = 0.5  # of detail SD, generated over real; below, lungs are visibly too smooth
MAX_DETAIL_RATIO = 2.0  # above, they are visibly rougher than the scan
MAX_NOISE_CORRELATION = 0.9  # of detail between two noises; above, noise changes nearly nothing

Volume = NDArray[np.floating]


def lung_densitometry(hu: Volume, lungs: NDArray[np.bool_]) -> dict[str, float]:
    """Return densitometric measures of the lungs, in HU or as shares of lung voxels."""
    inside = hu[lungs].astype(np.float64)
    return {
        "mean_lung_attenuation_hu": float(inside.mean()),
        "percentile_15_hu": float(np.percentile(inside, 15)),
        "sd_hu": float(inside.std()),
        "share_below_-950_hu": float((inside < -950).mean()),
        "share_above_-700_hu": float((inside > -700).mean()),
    }


def lung_metrics(
    hu: Volume, lungs: NDArray[np.bool_], spacing: Sequence[float]
) -> dict[str, float]:
    """Return density and texture of the lungs: HU, shares of voxels, and HU^2 mm^3 for power.

    Args:
        hu: `(X, Y, Z)` in HU.
        lungs: Mask of the lungs, with at least one voxel.
        spacing: Voxel size in mm.
    """
    statistics = region_statistics(hu, lungs, spacing)
    del statistics["mean_hu"]  # the mean lung attenuation
    metrics = lung_densitometry(hu, lungs) | statistics
    metrics["vessel_share"] = vessel_share(hu, lungs)
    for (low, high), power in radial_power(hu, lungs, spacing).items():
        metrics[f"power_{1 / low:g}_to_{1 / high:g}_mm"] = power
    return metrics


def texture_notes(detail_ratio: float | None, noise_correlation: float | None) -> list[str]:
    """Return sentences for readers on volumes that are too smooth or too rough, or do not vary.

    Args:
        detail_ratio: Detail SD in the lungs, generated over real; None without a real scan.
        noise_correlation: Correlation of the lungs' detail between volumes of the same text with
            different noise; None for a single volume.
    """
    notes = []
    if detail_ratio is not None and detail_ratio < MIN_DETAIL_RATIO:
        notes.append(
            f"The generated lungs are too smooth: their detail has {detail_ratio:.2f} of the "
            "contrast of the real scan (detail_sd_hu). They do not show texture as a scan does."
        )
    if detail_ratio is not None and detail_ratio > MAX_DETAIL_RATIO:
        notes.append(
            f"The generated lungs are too rough: their detail has {detail_ratio:.1f} times the "
            "contrast of the real scan (detail_sd_hu). Train longer, and do not judge texture, "
            "percentiles or shares by them."
        )
    if noise_correlation is not None and noise_correlation > MAX_NOISE_CORRELATION:
        notes.append(
            "The volumes hardly vary with the noise: the correlation of the lungs' detail between "
            f"two noises is {noise_correlation:.2f}. They show one answer, not the range of what "
            "is possible."
        )
    return notes


def ssim_map(a: Volume, b: Volume, data_range: float) -> Volume:
    """Return the structural similarity (Wang et al. 2004) of each voxel, `(X, Y, Z)`.

    MONAI computes it with a uniform window.
    """
    from monai.metrics.regression import compute_ssim_and_cs  # slow to import

    half = SSIM_WINDOW // 2
    pads = [(half, half)] * 3
    x, y = (
        torch.from_numpy(np.pad(v.astype(np.float32), pads, mode="edge"))[None, None]
        for v in (a, b)
    )
    full, _ = compute_ssim_and_cs(
        x,
        y,
        spatial_dims=3,
        data_range=data_range,
        kernel_size=[SSIM_WINDOW] * 3,
        kernel_sigma=[1.5] * 3,
        kernel_type="uniform",
    )
    return full[0, 0].numpy()


def fidelity_by_region(
    generated: Volume,
    real: Volume,
    masks: Mapping[str, NDArray[np.bool_]],
    window: tuple[float, float],
) -> dict[str, dict[str, float]]:
    """Return MAE (HU), PSNR (dB over the window's width) and SSIM of a volume, by region.

    Args:
        generated: Generated volume, `(X, Y, Z)` in HU.
        real: Real scan, clipped here to the window, which the generator cannot leave.
        masks: Masks of the regions.
        window: Lowest and highest HU.
    """
    width = window[1] - window[0]
    real = np.clip(real, *window)
    similarity = ssim_map(generated, real, width)
    by_region = {}
    for name, mask in masks.items():
        error = (generated[mask] - real[mask]).astype(np.float64)
        mse = max(float(np.square(error).mean()), 1e-12)
        by_region[name] = {
            "mae_hu": float(np.abs(error).mean()),
            "psnr_db": float(10 * np.log10(width**2 / mse)),
            "ssim": float(similarity[mask].mean()),
        }
    return by_region


def compared_masks(
    real: Volume, lungs: NDArray[np.bool_], is_ct: bool
) -> dict[str, NDArray[np.bool_]]:
    """Return where a volume is compared with its scan: in the body, else in the whole volume."""
    if is_ct:
        return {"body": body_mask(real) | lungs}
    return {"volume": np.ones(real.shape, bool)}


def metric_row(case: str, region: str, metric: str, value: float) -> dict[str, str | float]:
    """Return a row of metrics.csv."""
    return dict(zip(METRIC_COLUMNS, (case, region, metric, round(value, 5)), strict=True))


def metric_rows(
    case: str,
    generated: Volume,
    real: Volume | None,
    lungs: NDArray[np.bool_],
    window: tuple[float, float],
    spacing: Sequence[float],
    is_ct: bool = True,
) -> list[dict[str, str | float]]:
    """Return the rows of metrics.csv for one case.

    Args:
        case: Id of the case.
        generated: Generated volume, `(X, Y, Z)` in HU.
        real: Real scan, if there is one. Its density and texture and its distance from the
            generated volume are added.
        lungs: Mask of the lungs.
        window: Lowest and highest HU.
        spacing: Voxel size in mm.
        is_ct: Whether values are HU, by which the body is found; else the whole volume is compared.
    """
    rows: list[dict[str, str | float]] = []

    def add(region: str, metrics: Mapping[str, float], prefix: str = "") -> None:
        for name, value in metrics.items():
            rows.append(metric_row(case, region, f"{prefix}{name}", value))

    has_lungs = bool(lungs.any())
    if has_lungs:
        add("lungs", lung_metrics(generated, lungs, spacing))
    if real is None:
        return rows
    masks = compared_masks(real, lungs, is_ct)
    if has_lungs:
        add("lungs", lung_metrics(real, lungs, spacing), "real_")
        masks["lungs"] = lungs
    for region, metrics in fidelity_by_region(generated, real, masks, window).items():
        add(region, metrics)
    return rows
