"""Figures of one generated volume: densitometry of the lungs, and the distance to the real scan
where there is one.
"""

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


def densitometry(hu: Volume, lungs: NDArray[np.bool_]) -> dict[str, float]:
    """Mean lung attenuation (HU), 15th percentile (HU), share of lung voxels below -950 HU and
    above -700 HU.
    """
    inside = hu[lungs].astype(np.float64)
    return {
        "mean_lung_attenuation_hu": float(inside.mean()),
        "percentile_15_hu": float(np.percentile(inside, 15)),
        "sd_hu": float(inside.std()),
        "share_below_-950_hu": float((inside < -950).mean()),
        "share_above_-700_hu": float((inside > -700).mean()),
    }


def ssim_map(a: Volume, b: Volume, data_range: float) -> Volume:
    """Structural similarity of each voxel (Wang et al. 2004), `(X, Y, Z)`; MONAI's with a uniform
    window.
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


def fidelity(
    generated: Volume,
    real: Volume,
    masks: Mapping[str, NDArray[np.bool_]],
    window: tuple[float, float],
) -> dict[str, dict[str, float]]:
    """MAE (HU), PSNR (dB over the window's width) and SSIM of a generated volume, by region.

    Args:
        generated: `(X, Y, Z)` HU.
        real: The scan itself, clipped to the window, as the generator cannot leave it.
        masks: Regions by name.
        window: Lowest and highest HU.
    """
    width = window[1] - window[0]
    real = np.clip(real, *window)
    similarity = ssim_map(generated, real, width)
    found = {}
    for name, mask in masks.items():
        error = (generated[mask] - real[mask]).astype(np.float64)
        mse = max(float(np.square(error).mean()), 1e-12)
        found[name] = {
            "mae_hu": float(np.abs(error).mean()),
            "psnr_db": float(10 * np.log10(width**2 / mse)),
            "ssim": float(similarity[mask].mean()),
        }
    return found


def metric_rows(
    case: str,
    generated: Volume,
    real: Volume | None,
    lungs: NDArray[np.bool_],
    window: tuple[float, float],
) -> list[dict[str, str | float]]:
    """Rows of metrics.csv for one case; the real scan's densitometry stands beside the generated
    one's.
    """
    found: list[tuple[str, str, float]] = []
    if lungs.any():
        found += [("lungs", k, v) for k, v in densitometry(generated, lungs).items()]
    if real is not None:
        if lungs.any():
            found += [("lungs", f"real_{k}", v) for k, v in densitometry(real, lungs).items()]
        masks = {"body": body_mask(real) | lungs} | ({"lungs": lungs} if lungs.any() else {})
        found += [
            (region, k, v)
            for region, d in fidelity(generated, real, masks, window).items()
            for k, v in d.items()
        ]
    return [
        dict(zip(METRIC_COLUMNS, (case, region, k, round(v, 5)), strict=True))
        for region, k, v in found
    ]
