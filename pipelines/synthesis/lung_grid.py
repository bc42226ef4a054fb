"""Lungs on a small common grid: mean density and share of lung of each cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from data.geometry import Shape
from data.volumes import to_unit
from util.cli import UserError
from util.metrics.regions import bounding_box


def lung_grid(
    hu: np.ndarray,
    labels: np.ndarray,
    lungs: Sequence[int],
    size: Shape,
    window: tuple[float, float],
    source: object,
) -> torch.Tensor:
    """Return the box around the lungs as cells, float32 `(2, *size)`.

    The first channel is the mean density in [-1, 1] (0 without lung), the second the share of lung.

    Args:
        hu: CT `(X, Y, Z)` in HU.
        labels: Mask of the same shape.
        lungs: Labels of the lungs.
        size: Cells along each axis, so that every volume has one shape.
        window: HU at -1 and 1.
        source: The mask's file, for messages.

    Raises:
        UserError: The mask has no lung.
    """
    inside = np.isin(labels, lungs)
    if not inside.any():
        raise UserError(
            f"{source} holds no lung (labels {', '.join(map(str, lungs))}). Remove the case, or "
            "give --lung_labels."
        )
    box = bounding_box(inside)
    share = torch.from_numpy(inside[box].astype(np.float32))[None]
    unit = torch.from_numpy(to_unit(hu[box].astype(np.float32), window))[None]
    weight = F.adaptive_avg_pool3d(share, size)
    density = F.adaptive_avg_pool3d(unit * share, size) / weight.clamp_min(1e-3)
    return torch.cat([density, weight])
