"""Measurements of volumes with known values, for tests of an evaluation's metrics."""

from __future__ import annotations

import numpy as np

from pipelines.evaluation.density import (
    lung_density,
)
from pipelines.evaluation.measurements import (
    PLANES,
    REGION_STATISTICS,
    REGIONS,
    VolumeMeasurements,
)
from util.metrics.texture import SPECTRUM_BANDS

RNG = np.random.default_rng(0)


def measured(
    case: str, rng: np.random.Generator, move: float = 0.0, mean: float = -850.0
) -> VolumeMeasurements:
    """A volume of random features, all moved by `move`, with lungs around `mean` HU."""
    hu = rng.normal(mean, 40, 3000).astype(np.float32)
    density, histogram = lung_density(hu, np.ones(hu.shape, bool))
    vector = rng.normal(0, 1, 50)
    return VolumeMeasurements(
        case,
        [rng.normal(move, 1, (len(PLANES), 5, 6)).astype(np.float32)],
        [rng.normal(move, 1, 4).astype(np.float32)],
        (vector / np.linalg.norm(vector)).astype(np.float16),
        histogram,
        density,
        np.full(len(REGIONS) * len(REGION_STATISTICS), mean)
        + rng.normal(0, 5, len(REGIONS) * len(REGION_STATISTICS)),
        rng.normal(-500, 100, (12, 12, 12)).astype(np.float16),
        np.full(len(SPECTRUM_BANDS), np.nan),
        {},
    )


def group(
    n: int, prefix: str = "case", move: float = 0.0, mean: float = -850.0, seed: int = 0
) -> list[VolumeMeasurements]:
    rng = np.random.default_rng(seed)
    return [measured(f"{prefix}{i}", rng, move, mean) for i in range(n)]
