"""Attenuation and texture of scans in parts of the lungs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.cache import CachedCase, cache_cases, load_case
from data.cohort import Case
from data.geometry import Volume
from data.regions import regions_of
from options.base_options import DataOptions
from util.metrics.regions import Mask, bounding_box, label_names
from util.metrics.texture import statistics_by_region
from util.parallel import map_threads

PARTS = ("lungs", "upper", "middle", "lower", "rim", "core")
TEXTURE_PARTS = ("upper", "middle", "lower", "rim", "core", "left_lung", "right_lung")
# Many organs with all statistics would outweigh the lungs.
OF_OTHER_PARTS = ("mean_hu", "detail_sd_hu")
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


def text_statistics(
    cases: Sequence[Case],
    options: DataOptions,
    cache: Path | None = None,
    *,
    body: int | None = None,
    everywhere: bool = False,
) -> list[dict[str, float]]:
    """Return density and texture of each case where text may change it, clipped to the window.

    Args:
        options: Window and labels, and the grid of prepared volumes.
        cache: Folder of prepared volumes, read without unpacking a scan; None reads the scans.
        body: Label of the body, which does not count as an organ.
        everywhere: Whether text may also change voxels outside organs (`--text_region everywhere`).

    Returns:
        For each case, the statistics of `util.metrics.texture` by "PART STATISTIC", such as "upper
        mean_hu": all of them for the parts `TEXTURE_PARTS` that it has, and `OF_OTHER_PARTS` alone
        for other organs that all masks label; without a chest, for all labels together (`lungs`)
        and for each. With `everywhere`, the body is a part, too, or, where it is not labelled, all
        that is neither lung nor airway. `log_detail_sd` stands in place of the detail SD, whose
        effects are factors. Empty without a scan or lungs.
    """
    scans = _scans(cases, options, cache)
    measure = partial(_statistics, options=options, body=body, everywhere=everywhere)
    statistics = map_threads(measure, scans, "Lung texture")
    if not options.terms.is_ct:
        return statistics
    # A case without a part of the lungs is left out of regressions; one without an organ is not.
    filled = [set(values) for values in statistics if values]
    common = set.intersection(*filled) if filled else set()
    return [
        {name: v for name, v in values.items() if not _is_label(name) or name in common}
        for values in statistics
    ]


def _is_label(name: str) -> bool:
    return name.startswith("label_")


def _other_parts(
    regions: Mapping[str, Mask], options: DataOptions, body: int | None, everywhere: bool
) -> list[str]:
    """Return the regions of a chest, other than lungs, that text may change."""
    known = {*options.lung_labels, *options.lesion_labels, options.airway_label}
    others = [
        name for name in label_names(regions) if int(name.removeprefix("label_")) not in known
    ]
    if body is not None and not everywhere:
        return [name for name in others if name != f"label_{body}"]
    return [*others, "outside"] if everywhere and body is None else others


def _changeable_box(
    labels: NDArray[np.integer], options: DataOptions, body: int | None, everywhere: bool
) -> tuple[slice, ...] | None:
    """Return the box of what text may change; None without a lung, airway or other target."""
    tissue = labels > 0
    if options.terms.is_ct:
        if not np.isin(labels, (*options.lung_labels, options.airway_label)).any():
            return None
        if everywhere:
            return tuple(slice(0, side) for side in labels.shape)
        tissue &= labels != (0 if body is None else body)
    return bounding_box(tissue) if tissue.any() else None


def _statistics(
    case: Case | CachedCase, options: DataOptions, body: int | None, everywhere: bool
) -> dict[str, float]:
    scan = _load(case)
    if scan is None:
        return {}
    # Every voxel counts: detail of skipped voxels would be another detail.
    image, mask = scan
    sides = mask.spacing
    box = _changeable_box(mask.array, options, body, everywhere)
    if box is None:
        return {}
    regions = regions_of(mask.array[box], sides, options)
    if options.terms.is_ct:
        others = _other_parts(regions, options, body, everywhere)
        measured: Sequence[str] = (*TEXTURE_PARTS, *others)
    else:
        others, measured = [], ("lungs", *label_names(regions))
    tissues = ("lungs", "outside") if others else ("lungs",)  # each is smoothed by itself
    parts = {part: regions[part] for part in (*tissues, *measured) if part in regions}
    hu = image.array[box].astype(np.float64).clip(*options.hu_window)
    by_part = statistics_by_region(hu, parts, sides)
    values = {}
    for part in measured:
        for name, value in by_part.get(part, {}).items():
            if not options.terms.has(name) or (part in others and name not in OF_OTHER_PARTS):
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
