"""Checks of intensities: whether a scan is in HU, or can be scaled to arbitrary units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.fact_store import Facts
from data.intensity import IntensityScale
from data.volumes import load_volume

# HU are recognised by the lungs and by air, never by a single voxel: scanners pad with -2000 or
# -3024 outside the field of view. Volumes scaled to 0..1 or -1..1, z-scores, 8-bit pictures and raw
# detector values (HU + 1024) fail both rules.
LUNG_MEDIAN_HU = (-980.0, -250.0)  # from emphysema to consolidated lungs
AIR_HU = (-1100.0, -850.0)  # what lies below is padding
MIN_AIR_SHARE = 0.005  # of the voxels that are not padding
MAX_CUT_SHARE = 0.5  # of the width of --intensity_window that values lie beyond it
RANGE_PERCENTILES = (0.1, 99.9)
MAX_DENSE_VOXELS = 2**22


def hu_facts(image: np.ndarray, lungs: np.ndarray | None = None) -> Facts:
    """Measure what `hu_fact_problems` needs of a CT.

    Args:
        image: (X, Y, Z).
        lungs: Bool array on the same grid; None where no mask is known.

    Returns:
        `low`, `high`, `finite`, the `range` of nearly all voxels, `air_share` of the voxels that
        are not padding, `air_range` of the voxels in `AIR_HU` (empty where there are none), and
        `lung_median`, None without lungs.
    """
    low = float(image.min())
    high = float(image.max())
    finite = bool(np.isfinite(low) and np.isfinite(high))
    lung_median = None
    if finite and lungs is not None and lungs.any():
        lung_median = float(np.median(image[lungs]))
    tissue = int(np.count_nonzero(image >= AIR_HU[0]))
    air = image[(image >= AIR_HU[0]) & (image <= AIR_HU[1])]
    return {
        "low": low,
        "high": high,
        "finite": finite,
        "range": np.percentile(_sparse(image), RANGE_PERCENTILES).tolist() if finite else [],
        "air_share": air.size / max(1, tissue),
        "air_range": [float(air.min()), float(air.max())] if air.size else [],
        "lung_median": lung_median,
    }


def _sparse(image: np.ndarray) -> np.ndarray:
    """Return every second voxel of a large volume along each axis."""
    return image[::2, ::2, ::2] if image.size > MAX_DENSE_VOXELS else image


def hu_fact_problems(facts: Facts) -> list[str]:
    """Return what shows that a CT is not finite, constant, or not in HU, without its name."""
    low = facts["low"]
    high = facts["high"]
    if not facts["finite"]:
        return ["holds values that are not finite (NaN or infinite). Export it again."]
    if low == high:
        return [f"is constant ({low:g} everywhere). Export it again or remove the case."]
    median = facts["lung_median"]
    reasons = []
    remedy = "Apply the rescale slope and intercept; do not normalise."
    if median is not None and not LUNG_MEDIAN_HU[0] <= median <= LUNG_MEDIAN_HU[1]:
        reasons.append(
            f"the lungs under its mask have a median of {median:g}, expected are "
            f"{LUNG_MEDIAN_HU[0]:g} to {LUNG_MEDIAN_HU[1]:g} HU"
        )
    if facts["air_share"] < MIN_AIR_SHARE:
        reasons.append(
            f"{facts['air_share']:.1%} of its voxels are air ({AIR_HU[0]:g} to {AIR_HU[1]:g} HU; "
            "padding is left out), and a chest CT holds more"
        )
        remedy += " Its values may also be cut to a window."
    elif reasons:
        remedy += " If the scan is in HU, its mask or the lung labels are wrong."
    if not reasons:
        return []
    return [
        f"is not in HU: its values run from {low:g} to {high:g}; {'; '.join(reasons)}. {remedy} "
        "If it is not CT, give --modality mr or custom."
    ]


def constant_air_problems(facts: Facts) -> list[str]:
    """Return what shows that the air of a CT is padding, without its name.

    Raw detector values (HU + 1024) whose outside is padded with -1000 hold enough "air". Real air
    varies by the noise of the scanner and with the partial volume of the lungs, so that several
    values occur, also where a scan is cut at -1000. Where lungs are known, their median decides.
    """
    air = facts["air_range"]
    if not air or air[0] != air[1]:
        return []
    return [
        f"is not in HU: all its air ({AIR_HU[0]:g} to {AIR_HU[1]:g} HU) has the one value "
        f"{air[0]:g}, as padding has, and the values of a scan vary. Apply the rescale slope and "
        "intercept, also outside the field of view."
    ]


def intensity_problems(facts: Facts, scale: IntensityScale) -> list[str]:
    """Return what shows that a scan cannot be scaled to arbitrary units, without its name."""
    low, high = facts["low"], facts["high"]
    if not facts["finite"] or low == high:
        return hu_fact_problems(facts)
    window = scale.window
    if window is not None and (high <= window[0] or low >= window[1]):
        return [
            f"has values from {low:g} to {high:g}, all of them outside --intensity_window "
            f"{window[0]:g},{window[1]:g}. Give the range that the scans have."
        ]
    return []


def intensity_warnings(path: Path, facts: Facts, scale: IntensityScale) -> list[str]:
    """Return what a person should know of a scan that is scaled to arbitrary units."""
    if scale.window is not None:
        low, high = facts["range"]
        width = scale.window[1] - scale.window[0]
        lost = max(scale.window[0] - low, high - scale.window[1])
        if lost <= MAX_CUT_SHARE * width:
            return []
        return [
            f"{path}: 99.8 % of its values run from {low:g} to {high:g}, and --intensity_window "
            f"{scale.window[0]:g},{scale.window[1]:g} cuts off what lies beyond. Check the unit."
        ]
    if facts["range"][0] >= 0:
        return []
    return [
        f"{path} has negative values (from {facts['low']:g}), which MR scans do not have. If it is "
        "CT, use --modality ct; z-scores and the like have lost what percentiles could compare."
    ]


def image_facts(path: Path, mask: Path | None = None, lung_labels: Sequence[int] = (1, 2)) -> Facts:
    """Measure what `image_problems` needs of a CT (see `hu_facts`).

    Args:
        path: The CT.
        mask: Its mask on the same grid; None where no mask is known.
    """
    array = load_volume(path).array
    lungs = None if mask is None else np.isin(load_volume(mask).array, lung_labels)
    return hu_facts(array, lungs)


def image_problems(path: Path, facts: Facts, scale: IntensityScale | None = None) -> list[str]:
    """Return messages on a scan that is not finite, constant, or not in HU.

    With a scale, HU are not expected.
    """
    problems = hu_fact_problems(facts) if scale is None else intensity_problems(facts, scale)
    return [f"{path} {problem}" for problem in problems]
