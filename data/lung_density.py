"""Mean attenuation of scans in parts of the lungs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes

from data.cache import cache_case, load_case
from data.cohort import Case
from data.geometry import Volume
from options.base_options import DataOptions
from util.metrics.regions import chest_regions
from util.parallel import map_threads

PARTS = ("lungs", "upper", "middle", "lower", "rim", "core")
COARSE_MM = 3.0  # voxels closer together are skipped: the mean of a part does not need them


def lung_means(
    cases: Sequence[Case], options: DataOptions, cache: Path | None = None
) -> list[dict[str, float]]:
    """Return the mean HU of each case by part of the lungs, clipped to the window.

    Args:
        cases: The cases.
        options: Window and labels, and the grid of prepared volumes.
        cache: Folder of prepared volumes, read without unpacking a scan; None reads the scans.

    Returns:
        HU by part (see `util.metrics.regions`) of each case; empty without a scan or lungs.
    """
    return map_threads(partial(_means, options=options, cache=cache), cases, "Lung density")


def _means(case: Case, options: DataOptions, cache: Path | None) -> dict[str, float]:
    if case.image is None:
        return {}
    image, mask = load_case(case, None) if cache is None else _load_cached(case, options, cache)
    assert image is not None
    sides = voxel_sizes(mask.affine)
    strides = [max(1, round(COARSE_MM / side)) for side in sides]
    sparse = tuple(slice(None, None, stride) for stride in strides)
    spacing = [side * stride for side, stride in zip(sides, strides, strict=True)]
    parts = chest_regions(mask.array[sparse], spacing, options.lung_labels, options.airway_label)
    hu = image.array[sparse].astype(np.float64).clip(*options.hu_window)
    return {part: float(hu[parts[part]].mean()) for part in PARTS if part in parts}


def _load_cached(case: Case, options: DataOptions, cache: Path) -> tuple[Volume, Volume]:
    prepared = cache_case(case, options, cache)
    affine = prepared.affine()
    return Volume(prepared.image(), affine), Volume(prepared.mask(), affine)
