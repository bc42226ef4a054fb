"""Mean attenuation of scans in parts of the lungs."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.cache import cache_case, load_case
from data.cohort import Case
from data.geometry import Volume, voxel_sizes
from options.base_options import DataOptions
from util.cli import main_rank
from util.metrics.regions import regions

PARTS = ("lungs", "upper", "middle", "lower", "rim", "core")
COARSE_MM = 3.0  # voxels closer together are skipped: a mean over a part needs no more


def lung_means(
    cases: Sequence[Case], options: DataOptions, cache: Path | None = None
) -> list[dict[str, float]]:
    """Of each case the mean HU by part (see `util.metrics.fidelity.regions`), within the window;
    empty without a scan or lungs.

    Args:
        cases: Whose.
        options: Window and labels, and the grid of prepared volumes.
        cache: Folder of prepared volumes, read without unpacking a scan; None takes the scans as
            they are.
    """
    with ThreadPoolExecutor(4) as pool:
        jobs = pool.map(partial(_means, options=options, cache=cache), cases)
        return list(
            tqdm(
                jobs,
                "Lung density",
                len(cases),
                disable=not main_rank() or len(cases) < 20,
                leave=False,
            )
        )


def _means(case: Case, options: DataOptions, cache: Path | None) -> dict[str, float]:
    if case.image is None:
        return {}
    image, mask = load_case(case, None) if cache is None else _prepared(case, options, cache)
    assert image is not None
    steps = tuple(
        slice(None, None, max(1, round(COARSE_MM / side))) for side in voxel_sizes(mask.affine)
    )
    spacing = [side * step.step for side, step in zip(voxel_sizes(mask.affine), steps, strict=True)]
    found = regions(mask.array[steps], spacing, options.lung_labels, options.airway_label)
    hu = image.array[steps].astype(np.float64).clip(*options.hu_window)
    return {part: float(hu[found[part]].mean()) for part in PARTS if part in found}


def _prepared(case: Case, options: DataOptions, cache: Path) -> tuple[Volume, Volume]:
    prepared = cache_case(case, options, cache)
    return Volume(prepared.image(), prepared.affine()), Volume(prepared.mask(), prepared.affine())
