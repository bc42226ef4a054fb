"""Lungs on a small common grid: the mean density of each cell, and how much of the cell is lung."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from data.geometry import Shape
from data.volumes import to_unit
from util.cli import UserError


def lung_grid(
    hu: np.ndarray,
    labels: np.ndarray,
    lungs: Sequence[int],
    size: Shape,
    window: tuple[float, float],
    source: object,
) -> torch.Tensor:
    """The box round the lungs as cells, float32 `(2, *size)`: mean density in [-1, 1] (0 without
    lung), share of lung.

    Args:
        hu: CT (X, Y, Z) in HU.
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
    index = np.argwhere(inside)
    box = tuple(slice(a, b + 1) for a, b in zip(index.min(0), index.max(0), strict=True))
    share = torch.from_numpy(inside[box].astype(np.float32))[None]
    unit = torch.from_numpy(to_unit(hu[box].astype(np.float32), window))[None]
    weight = F.adaptive_avg_pool3d(share, size)
    return torch.cat([F.adaptive_avg_pool3d(unit * share, size) / weight.clamp_min(1e-3), weight])
