"""Metrics of one generated volume: densitometry of the lungs, and distance to the real scan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from monai.metrics.regression import compute_ssim_and_cs
from numpy.typing import NDArray

from util.metrics.regions import body_mask

METRIC_COLUMNS = ("case", "region", "metric", "value")
SSIM_WINDOW = 7  # voxels

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


def ssim_map(a: Volume, b: Volume, data_range: float) -> Volume:
    """Return the structural similarity (Wang et al. 2004) of each voxel, `(X, Y, Z)`.

    MONAI computes it with a uniform window.
    """
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


def metric_rows(
    case: str,
    generated: Volume,
    real: Volume | None,
    lungs: NDArray[np.bool_],
    window: tuple[float, float],
) -> list[dict[str, str | float]]:
    """Return the rows of metrics.csv for one case.

    Args:
        case: Id of the case.
        generated: Generated volume, `(X, Y, Z)` in HU.
        real: Real scan, if there is one. Its densitometry and its distance from the generated
            volume are added.
        lungs: Mask of the lungs.
        window: Lowest and highest HU.
    """
    rows: list[dict[str, str | float]] = []

    def add(region: str, metrics: Mapping[str, float], prefix: str = "") -> None:
        for name, value in metrics.items():
            cells = (case, region, f"{prefix}{name}", round(value, 5))
            rows.append(dict(zip(METRIC_COLUMNS, cells, strict=True)))

    has_lungs = bool(lungs.any())
    if has_lungs:
        add("lungs", lung_densitometry(generated, lungs))
    if real is None:
        return rows
    masks = {"body": body_mask(real) | lungs}
    if has_lungs:
        add("lungs", lung_densitometry(real, lungs), "real_")
        masks["lungs"] = lungs
    for region, metrics in fidelity_by_region(generated, real, masks, window).items():
        add(region, metrics)
    return rows
