"""How far two volumes of a case differ in HU, in and outside the lungs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.geometry import grids_match
from data.integrity import volume_fingerprint
from pipelines.evaluation.counterfactuals.axiom_rows import LUNGS, OUTSIDE
from pipelines.evaluation.volume_measurer import ComparisonGrid, VolumeMeasurer, load_or_compute
from pipelines.evaluation.volume_sets import VolumeFile

VERSION = 1  # part of the cache keys


def difference_hu(
    file: VolumeFile, reference: VolumeFile, measurer: VolumeMeasurer
) -> dict[str, float]:
    """Return the mean absolute difference of two volumes in HU, in and outside the lungs.

    It is empty where the volumes are not on one grid, and without outside where there is no mask.
    """
    if file.path == reference.path:
        return {LUNGS: 0.0, OUTSIDE: 0.0}
    mask = file.mask or reference.mask
    key = [
        VERSION,
        "difference",
        *file.key,
        *reference.key,
        *([volume_fingerprint(mask)] if mask else []),
        list(measurer.grid.window),
        list(measurer.grid.lung_labels),
        measurer.grid.airway_label,
    ]
    compute = partial(_difference, file, reference, mask, measurer.grid)
    arrays = load_or_compute(measurer.cache, key, compute)
    return {region: float(value) for region, value in arrays.items() if np.isfinite(value)}


def _difference(
    file: VolumeFile, reference: VolumeFile, mask: Path | None, grid: ComparisonGrid
) -> dict[str, Any]:
    nothing = {LUNGS: np.array(np.nan), OUTSIDE: np.array(np.nan)}
    volume, start = file.load(), reference.load()
    same = volume.shape == start.shape and grids_match(start.shape, start.affine, volume.affine)
    if not same or mask is None:
        return nothing
    pair = [np.clip(v.array.astype(np.float32), *grid.window) for v in (volume, start)]
    change = np.abs(pair[0] - pair[1])
    regions = grid.regions(grid.load_labels(mask, start), start.spacing)
    means = {r: np.array(change[regions[r]].mean()) for r in (LUNGS, OUTSIDE) if r in regions}
    return nothing | means
