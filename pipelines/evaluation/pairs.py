"""Closeness of a volume to the real scan of its own case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pipelines.evaluation.baselines import Metric, bootstrap_mean
from util.cli import counted

NAMES = {
    "mae_hu": ("Mean absolute error (HU)", "low"),
    "psnr_db": ("PSNR (dB)", "high"),
    "ssim": ("SSIM", "high"),
}


def pair_metrics(rows: Sequence[Mapping[str, Any]], resamples: int, seed: int) -> list[Metric]:
    """Return means over cases of rows with case, region, metric and value.

    There is no baseline, because that would need two scans of one patient.
    """
    if not rows:
        return []
    metrics = []
    for (key, region), part in pd.DataFrame(rows).groupby(["metric", "region"], sort=False):
        values = part["value"].to_numpy(float)
        name, better = NAMES[str(key)]
        low, high = bootstrap_mean(values, resamples, seed)
        metrics.append(
            Metric(
                "pairs",
                f"{name}, {region}",
                float(values.mean()),
                low,
                high,
                better=better,
                note=counted(len(values), "case"),
            )
        )
    return metrics
