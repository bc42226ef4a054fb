"""Voxels that text may change."""

from __future__ import annotations

from torch import Tensor


def lung_region(mask: Tensor, body_channel: int | None) -> Tensor:
    """Return where a mask has a label that is not the body: lungs, airways and further labels.

    Args:
        mask: `(B, K, X, Y, Z)` one-hot, background first.
        body_channel: Channel of the body, None without a body (see `DataOptions.body_channel`).

    Returns:
        `(B, 1, X, Y, Z)`, 1 in these voxels, else 0.
    """
    region = 1 - mask[:, :1]
    return region if body_channel is None else region - mask[:, body_channel : body_channel + 1]
