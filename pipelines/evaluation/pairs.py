"""Closeness of a volume to the real scan of its own case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pipelines.evaluation.baselines import Metric, bootstrap_mean

NAMES = {
    "mae_hu": ("Mean absolute error (HU)", "low"),
    "psnr_db": ("PSNR (dB)", "high"),
    "ssim": ("SSIM", "high"),
}


def pair_metrics(rows: Sequence[Mapping[str, Any]], draws: int, seed: int) -> list[Metric]:
    """Means over cases of rows case, region, metric, value; there is no floor without two scans of
    one patient.
    """
    found: list[Metric] = []
    if not rows:
        return found
    for (metric, region), part in pd.DataFrame(rows).groupby(["metric", "region"], sort=False):
        values = part["value"].to_numpy(float)
        name, better = NAMES[str(metric)]
        low, high = bootstrap_mean(values, draws, seed)
        found.append(
            Metric(
                "pairs",
                f"{name}, {region}",
                float(values.mean()),
                low,
                high,
                better=better,
                note=f"{len(values)} cases",
            )
        )
    return found
