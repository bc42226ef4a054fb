"""Overlap of the requested mask with the lungs that a segmentation finds in the volume."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from numpy.typing import NDArray

from pipelines.evaluation.baselines import Metric, bootstrap_mean
from pipelines.evaluation.measurements import VolumeMeasurements

Labels = NDArray[np.integer]


def overlap(
    mask: Labels,
    segmented: Labels,
    spacing: Sequence[float],
    lung_labels: Sequence[int] = (1, 2),
) -> dict[str, float]:
    """Return Dice and 95th-percentile Hausdorff distance (mm) of both lungs and of each side.

    Args:
        mask: Requested labels `(X, Y, Z)`.
        segmented: Labels segmented from the volume, left lung 1 and right lung 2.
        spacing: Voxel size in mm.
        lung_labels: The mask's labels of the left and the right lung.

    Returns:
        `dice_<region>` and `hd95_mm_<region>`; NaN where one of the two has no voxel there.
    """
    parts = {"lungs": (np.isin(mask, lung_labels), np.isin(segmented, (1, 2)))}
    if len(lung_labels) == 2:
        left, right = lung_labels
        parts["left_lung"] = (mask == left, segmented == 1)
        parts["right_lung"] = (mask == right, segmented == 2)
    values = {}
    for name, (requested, present) in parts.items():
        dice = hausdorff = float("nan")
        if requested.any():
            dice = 0.0
            if present.any():
                one = torch.from_numpy(present)[None, None]
                two = torch.from_numpy(requested)[None, None]
                dice = float(compute_dice(one, two))
                hausdorff = _hausdorff(one, two, spacing)
        values[f"dice_{name}"] = dice
        values[f"hd95_mm_{name}"] = hausdorff
    return values


def _hausdorff(one: torch.Tensor, two: torch.Tensor, spacing: Sequence[float]) -> float:
    with warnings.catch_warnings():  # MONAI warns of its own calls
        warnings.simplefilter("ignore", FutureWarning)
        return float(
            compute_hausdorff_distance(
                one,
                two,
                include_background=True,
                percentile=95,
                spacing=[float(side) for side in spacing],
            )
        )


def overlap_metrics(
    real: Sequence[VolumeMeasurements],
    synthetic: Sequence[VolumeMeasurements],
    resamples: int,
    seed: int,
) -> list[Metric]:
    """Return the mean overlap of the synthetic volumes, with that of the real scans as ceiling.

    The list is empty where no volume has a mask.
    """
    names = dict.fromkeys(name for v in synthetic for name in v.overlap)
    metrics = []
    for name in names:
        values = _values(synthetic, name)
        scans = _values(real, name)
        if not np.isfinite(values).any():
            continue
        low, high = bootstrap_mean(values, resamples, seed)
        is_dice = name.startswith("dice_")
        measure = "Dice" if is_dice else "95th percentile Hausdorff distance (mm)"
        region = name.removeprefix("dice_").removeprefix("hd95_mm_").replace("_", " ")
        metrics.append(
            Metric(
                "mask",
                f"{measure}, {region}",
                float(np.nanmean(values)),
                low,
                high,
                ceiling=float(np.nanmean(scans)) if np.isfinite(scans).any() else float("nan"),
                better="high" if is_dice else "low",
            )
        )
    return metrics


def _values(volumes: Sequence[VolumeMeasurements], name: str) -> NDArray[np.float64]:
    return np.array([v.overlap.get(name, np.nan) for v in volumes])
