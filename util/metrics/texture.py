"""Density and texture of regions: percentiles, detail, power spectrum, vessels.

The SD of a whole lung measures its gradient from front to back, which gravity makes. Texture is
measured in the detail instead: HU minus their Gaussian mean within the tissue. The outermost voxels
of a tissue hold some of its neighbour, such as the pleura. In real lungs at 2 mm they make a third
of the detail and of the dense voxels, so they do not count as texture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from util.metrics.regions import bounding_box, label_names

DETAIL_MM = 3.0  # SD of the Gaussian whose result is subtracted; one voxel where voxels are larger
TREND_MM = 24.0  # the same for the power spectrum, whose coarse bands are detail too
TAPER_MM = 8.0  # depth below the border over which the window of the power spectrum rises
MIN_INTERIOR = 0.25  # share of a region within its tissue's border; with less, all voxels count
VESSEL_HU = 150.0  # above the lungs' median
# Octaves in 1/mm: structures of 64 to 32, 32 to 16, 16 to 8 and 8 to 4 mm per period.
POWER_BANDS = ((1 / 64, 1 / 32), (1 / 32, 1 / 16), (1 / 16, 1 / 8), (1 / 8, 1 / 4))
# Third octaves from 64 to 2 mm per period, for curves.
SPECTRUM_BANDS = tuple((2 ** (k / 3) / 64, 2 ** ((k + 1) / 3) / 64) for k in range(15))
PERCENTILES = (5.0, 15.0, 95.0, 99.5)
LOW_HU = (-950.0, -910.0)
HIGH_HU = -700.0
STATISTICS = (
    "mean_hu",
    "detail_sd_hu",
    *(f"percentile_{p:g}_hu" for p in PERCENTILES),
    *(f"share_below_{hu:g}_hu" for hu in LOW_HU),
    f"share_above_{HIGH_HU:g}_hu",
)
# Disjoint tissues of `util.metrics.regions.chest_regions`. Each is smoothed by itself, so that the
# border between two of them is not detail.
TISSUES = ("lungs", "airway", "outside")

Volume = NDArray[np.floating]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def detail(hu: Volume, mask: Mask, spacing: Sequence[float], length_mm: float = DETAIL_MM) -> Array:
    """Return HU minus their Gaussian mean within the mask (normalised convolution).

    Args:
        hu: `(X, Y, Z)` in HU.
        mask: Of the same shape.
        spacing: Voxel size in mm.
        length_mm: SD of the Gaussian; at least one voxel along each axis.

    Returns:
        `(X, Y, Z)` in HU; 0 outside the mask.
    """
    result = np.zeros(hu.shape)
    if not mask.any():
        return result
    box = bounding_box(mask)
    inside = mask[box]
    sigma = [max(length_mm / side, 1.0) for side in spacing]
    values = np.where(inside, hu[box].astype(np.float64), 0.0)
    share = ndimage.gaussian_filter(inside.astype(np.float64), sigma, mode="constant")
    mean = ndimage.gaussian_filter(values, sigma, mode="constant")
    result[box][inside] = values[inside] - mean[inside] / share[inside]
    return result


def interior(mask: Mask) -> Mask:
    """Return a mask without its outermost voxels; the whole mask where hardly any remain."""
    inside = ndimage.binary_erosion(mask)
    return inside if inside.sum() >= MIN_INTERIOR * mask.sum() else mask


def region_statistics(hu: Volume, mask: Mask, spacing: Sequence[float]) -> dict[str, float]:
    """Return `STATISTICS` of one region, in HU or as shares of its voxels; empty without a voxel.

    Args:
        hu: `(X, Y, Z)` in HU.
        mask: The region, taken as a tissue of its own.
        spacing: Voxel size in mm.
    """
    return statistics_by_region(hu, {TISSUES[0]: mask}, spacing).get(TISSUES[0], {})


def statistics_by_region(
    hu: Volume, masks: Mapping[str, Mask], spacing: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Return `STATISTICS` of every region of one volume, which is smoothed once per tissue.

    The lungs' parts are smoothed within the lungs, airways and the rest by themselves; without
    parts of lungs, each label by itself.

    Args:
        hu: `(X, Y, Z)` in HU.
        masks: Regions of `util.metrics.regions.chest_regions`.
        spacing: Voxel size in mm.
    """
    tissues = [masks[tissue] for tissue in _tissues(masks) if tissue in masks]
    inner = [interior(tissue) for tissue in tissues]
    fine = _detail_of_all(hu, inner, spacing)
    inside = np.logical_or.reduce(inner)
    border: list[str] = []  # regions with hardly a voxel inside
    statistics = {}
    for name, mask in masks.items():
        if mask.any():
            region = mask & inside
            if region.sum() < MIN_INTERIOR * mask.sum():
                border.append(name)
            statistics[name] = _statistics(hu[mask].astype(np.float64), fine[region])
    if border:
        whole = _detail_of_all(hu, tissues, spacing)
        for name in border:
            statistics[name]["detail_sd_hu"] = float(whole[masks[name]].std())
    return statistics


def _tissues(masks: Mapping[str, Mask]) -> Sequence[str]:
    """Return the names of disjoint tissues among regions of a chest, or of labels alone."""
    labels = label_names(masks)
    is_chest = "upper" in masks or "airway" in masks or "lungs" not in masks
    return TISSUES if is_chest or not labels else (*labels, "outside")


def _detail_of_all(hu: Volume, tissues: Sequence[Mask], spacing: Sequence[float]) -> Array:
    """Return the detail of disjoint tissues in one volume."""
    total = np.zeros(hu.shape)
    for tissue in tissues:
        total += detail(hu, tissue, spacing)
    return total


def _statistics(values: Array, residual: Array) -> dict[str, float]:
    numbers = [
        values.mean(),
        residual.std() if len(residual) else 0.0,
        *np.percentile(values, PERCENTILES),
        *((values < limit).mean() for limit in LOW_HU),
        (values > HIGH_HU).mean(),
    ]
    return {name: float(number) for name, number in zip(STATISTICS, numbers, strict=True)}


def radial_power(
    hu: Volume,
    lungs: Mask,
    spacing: Sequence[float],
    bands: Sequence[tuple[float, float]] = POWER_BANDS,
) -> dict[tuple[float, float], float]:
    """Return the power spectral density of the lungs in bands of radial frequency, HU^2 mm^3.

    A linear gradient and the trend (`TREND_MM`) are subtracted, and a window falls to 0 at the
    pleura. The lungs' outermost voxels do not count. White noise of SD s
    has the density s^2 times the volume of a voxel in every band.

    Args:
        hu: `(X, Y, Z)` in HU.
        spacing: Voxel size in mm.
        bands: Lowest and highest frequency of each band, 1/mm.

    Returns:
        Density by band; bands that the grid does not resolve are left out.
    """
    if not lungs.any():
        return {}
    inside = interior(lungs)
    box = bounding_box(inside)
    padded = np.pad(inside[box], 1)  # lungs cut by the border of the volume end there
    depth = ndimage.distance_transform_edt(padded, sampling=spacing)[1:-1, 1:-1, 1:-1]
    window = np.sin(np.pi / 2 * np.minimum(depth / TAPER_MM, 1)) ** 2
    flat = _without_gradient(hu[box], inside[box])
    signal = window * detail(flat, inside[box], spacing, TREND_MM)
    shape = [fft.next_fast_len(n, real=True) for n in signal.shape]
    power = np.abs(fft.rfftn(signal, shape)) ** 2
    power *= float(np.prod(spacing)) / float(np.square(window).sum())
    axes = [fft.fftfreq(n, side) for n, side in zip(shape[:2], spacing[:2], strict=True)]
    axes.append(fft.rfftfreq(shape[2], spacing[2]))
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    frequency = np.sqrt(x**2 + y**2 + z**2)
    # The half spectrum holds one of each two conjugate coefficients, except at both ends.
    count = np.full(shape[2] // 2 + 1, 2.0)
    count[0] = 1
    if shape[2] % 2 == 0:
        count[-1] = 1
    weight = np.broadcast_to(count, frequency.shape)
    nyquist = 0.5 / max(spacing)
    densities = {}
    for low, high in bands:
        within = (frequency >= low) & (frequency < high)
        if high <= nyquist * (1 + 1e-6) and within.any():
            densities[low, high] = float(np.average(power[within], weights=weight[within]))
    return densities


def _without_gradient(hu: Volume, mask: Mask) -> Array:
    """Return HU minus their least-squares linear function of the position within the mask."""
    positions = np.argwhere(mask)
    design = np.column_stack([positions - positions.mean(0), np.ones(len(positions))])
    values = hu[mask].astype(np.float64)
    normal = design.T @ design  # 4 by 4; singular where the mask is flat
    fit = design @ (np.linalg.pinv(normal) @ (design.T @ values))
    result = np.zeros(hu.shape)
    result[mask] = values - fit
    return result


def vessel_share(hu: Volume, lungs: Mask) -> float:
    """Return the share of lung voxels more than `VESSEL_HU` above the lungs' own median.

    The lungs' outermost voxels do not count. nan without a lung voxel.
    """
    values = hu[interior(lungs)].astype(np.float64)
    return float((values > np.median(values) + VESSEL_HU).mean()) if len(values) else float("nan")


def detail_correlation(a: Volume, b: Volume, lungs: Mask, spacing: Sequence[float]) -> float:
    """Return the correlation of the lungs' detail between two volumes, such as two noise seeds.

    The lungs' outermost voxels do not count. Equal volumes give 1, even without detail; a volume
    without detail beside another gives 0. nan without a lung voxel.
    """
    inside = interior(lungs)
    if not inside.any():
        return float("nan")
    if np.array_equal(a[inside], b[inside]):
        return 1.0
    one, two = (detail(volume, inside, spacing)[inside] for volume in (a, b))
    if min(one.std(), two.std()) < 1e-6:
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])


def detail_ratio(
    generated: Volume, real: Volume, lungs: Mask, spacing: Sequence[float]
) -> float | None:
    """Return the lungs' detail SD, generated over real; None without lungs or real detail."""
    before = region_statistics(real, lungs, spacing).get("detail_sd_hu", 0.0)
    if before < 1e-6:
        return None
    return region_statistics(generated, lungs, spacing)["detail_sd_hu"] / before
