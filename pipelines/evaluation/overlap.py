"""Whether a volume has its lungs where the mask asked for them: overlap with lungs found again by a
segmentation.
"""

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
    mask: Labels, found: Labels, spacing: Sequence[float], lung_labels: Sequence[int] = (1, 2)
) -> dict[str, float]:
    """Dice and 95th-percentile Hausdorff distance (mm) of both lungs together and of each side.

    Args:
        mask: `(X, Y, Z)` labels that were asked for.
        found: Labels found in the volume, left lung 1 and right lung 2.
        spacing: Voxel size in mm.
        lung_labels: The mask's labels of the left and the right lung.

    Returns:
        `dice_<region>` and `hd95_mm_<region>`; NaN where one of the two has no voxel there.
    """
    parts = {"lungs": (np.isin(mask, lung_labels), np.isin(found, (1, 2)))}
    if len(lung_labels) == 2:
        parts |= {
            name: (mask == k, found == i)
            for name, k, i in zip(("left_lung", "right_lung"), lung_labels, (1, 2), strict=True)
        }
    made = {}
    for name, (asked, got) in parts.items():
        both = asked.any() and got.any()
        one, two = (torch.from_numpy(m)[None, None] for m in (got, asked))
        made[f"dice_{name}"] = (
            float(compute_dice(one, two)) if both else 0.0 if asked.any() else float("nan")
        )
        made[f"hd95_mm_{name}"] = _hausdorff(one, two, spacing) if both else float("nan")
    return made


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
    draws: int,
    seed: int,
) -> list[Metric]:
    """Mean overlap of the synthetic volumes, with that of the real scans as ceiling; empty where no
    volume has a mask.
    """
    names = list(dict.fromkeys(k for v in synthetic for k in v.overlap))
    found = []
    for name in names:
        made, scans = (
            np.array([v.overlap.get(name, np.nan) for v in group]) for group in (synthetic, real)
        )
        if not np.isfinite(made).any():
            continue
        low, high = bootstrap_mean(made, draws, seed)
        ceiling = float(np.nanmean(scans)) if np.isfinite(scans).any() else float("nan")
        kind, _, region = name.partition("_mm_" if "_mm_" in name else "_")
        title = f"{'Dice' if kind == 'dice' else '95th percentile Hausdorff distance (mm)'}, {region.replace('_', ' ')}"
        found.append(
            Metric(
                "mask",
                title,
                float(np.nanmean(made)),
                low,
                high,
                ceiling=ceiling,
                better="high" if kind == "dice" else "low",
            )
        )
    return found
