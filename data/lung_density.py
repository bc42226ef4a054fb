"""Attenuation and texture of scans in parts of the lungs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data.cache import CachedCase, cache_cases, load_case
from data.cohort import Case
from data.geometry import Volume
from data.regions import regions_of
from options.base_options import DataOptions
from util.metrics.regions import bounding_box, label_names
from util.metrics.texture import statistics_by_region
from util.parallel import map_threads

PARTS = ("lungs", "upper", "middle", "lower", "rim", "core")
TEXTURE_PARTS = ("upper", "middle", "lower", "rim", "core", "left_lung", "right_lung")
MIN_DETAIL_HU = 1.0  # smallest detail SD whose logarithm is taken
COARSE_MM = 3.0  # voxels closer together are skipped: the mean of a part does not need them


def lung_means(
    cases: Sequence[Case], options: DataOptions, cache: Path | None = None
) -> list[dict[str, float]]:
    """Return the mean HU of each case by part of the lungs, clipped to the window.

    Args:
        options: Window and labels, and the grid of prepared volumes.
        cache: Folder of prepared volumes, read without unpacking a scan; None reads the scans.

    Returns:
        HU by part (see `util.metrics.regions`) of each case; empty without a scan or lungs.
    """
    scans = _scans(cases, options, cache)
    return map_threads(partial(_means, options=options), scans, "Lung density")


def lung_statistics(
    cases: Sequence[Case], options: DataOptions, cache: Path | None = None
) -> list[dict[str, float]]:
    """Return density and texture of each case by part of the lungs, clipped to the window.

    Args:
        options: Window and labels, and the grid of prepared volumes.
        cache: Folder of prepared volumes, read without unpacking a scan; None reads the scans.

    Returns:
        For each case, the statistics of `util.metrics.texture` by "PART STATISTIC", such as "upper
        mean_hu", for the parts `TEXTURE_PARTS` that it has; without a chest, for all labels
        together (`lungs`) and for each. `log_detail_sd` stands in place of the detail SD, whose
        effects are factors. Empty without a scan or lungs.
    """
    scans = _scans(cases, options, cache)
    return map_threads(partial(_statistics, options=options), scans, "Lung texture")


def _statistics(case: Case | CachedCase, options: DataOptions) -> dict[str, float]:
    scan = _load(case)
    if scan is None:
        return {}
    # Every voxel counts: detail of skipped voxels would be another detail.
    image, mask = scan
    sides = mask.spacing
    tissue = mask.array > 0
    if options.terms.is_ct:
        tissue = np.isin(mask.array, (*options.lung_labels, options.airway_label))
    if not tissue.any():
        return {}
    box = bounding_box(tissue)
    regions = regions_of(mask.array[box], sides, options)
    measured = TEXTURE_PARTS if options.terms.is_ct else ("lungs", *label_names(regions))
    parts = {part: regions[part] for part in ("lungs", *measured) if part in regions}
    hu = image.array[box].astype(np.float64).clip(*options.hu_window)
    by_part = statistics_by_region(hu, parts, sides)
    values = {}
    for part in measured:
        for name, value in by_part.get(part, {}).items():
            if not options.terms.has(name):
                continue
            if name == "detail_sd_hu":
                values[f"{part} log_detail_sd"] = float(np.log(max(value, MIN_DETAIL_HU)))
            else:
                values[f"{part} {name}"] = value
    return values


def _means(case: Case | CachedCase, options: DataOptions) -> dict[str, float]:
    scan = _load(case)
    if scan is None:
        return {}
    image, mask = scan
    sides = mask.spacing
    strides = [max(1, round(COARSE_MM / side)) for side in sides]
    sparse = tuple(slice(None, None, stride) for stride in strides)
    spacing = [side * stride for side, stride in zip(sides, strides, strict=True)]
    parts = regions_of(mask.array[sparse], spacing, options)
    hu = image.array[sparse].astype(np.float64).clip(*options.hu_window)
    return {part: float(hu[parts[part]].mean()) for part in PARTS if part in parts}


def _scans(
    cases: Sequence[Case], options: DataOptions, cache: Path | None
) -> Sequence[Case | CachedCase]:
    """Return the cases, from the cache where there is one and a scan."""
    if cache is None:
        return cases
    scanned = [case for case in cases if case.image is not None]
    prepared = iter(cache_cases(scanned, options, cache))
    return [case if case.image is None else next(prepared) for case in cases]


def _load(case: Case | CachedCase) -> tuple[Volume, Volume] | None:
    """Return scan and mask on one grid; None without a scan."""
    if isinstance(case, CachedCase):
        return case.scan(), case.labelled()
    image, mask = load_case(case, None) if case.image is not None else (None, None)
    return None if image is None or mask is None else (image, mask)
