"""Sliding windows: a function of tiles runs over a whole volume and is blended smoothly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from torch import Tensor

from util.cli import UserError


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that holds `size`."""
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class SlidingWindow:
    """Runs a function over overlapping tiles with Gaussian weights (MONAI's sliding window).

    Every tile starts on a multiple of the network's total stride, and the volume is padded until
    tiles fit without a last flush one: a network that halves its input gives other values on an
    unaligned tile.

    Args:
        tile: Size in voxels, rounded up to `multiple`; empty takes the whole volume at once.
        multiple: The network's total stride, in voxels.
        overlap: Share of a tile that its neighbour covers too.
        batch: Tiles worked on at once.

    Raises:
        UserError: Tile and overlap give a step that is not a multiple of the stride.
    """

    tile: tuple[int, ...]
    multiple: int
    overlap: float = 0.5
    batch: int = 4

    def __post_init__(self) -> None:
        for size in self.tile:
            step = round(round_up(size, self.multiple) * (1 - self.overlap), 6)
            if step < 1 or step % self.multiple:
                good = round_up(size, 2 * self.multiple)
                raise UserError(
                    f"--tile {size} with --overlap {self.overlap} makes tiles {step:g} voxels "
                    f"apart; the network needs a multiple of {self.multiple}. Use --tile {good} "
                    "with --overlap 0.5."
                )

    def __call__(self, function: Callable[..., Tensor], *volumes: Tensor) -> Tensor:
        """Return `function` of whole volumes, computed in tiles.

        Args:
            function: Maps tiles `(B, C_i, x, y, z)`, one per volume, to tiles `(B, C, x, y, z)`.
            volumes: Tensors `(1, C_i, X, Y, Z)`.

        Returns:
            `(1, C, X, Y, Z)`.
        """
        size = tuple(volumes[0].shape[2:])
        tile = tuple(round_up(side, self.multiple) for side in self.tile or size)
        target = [self._padded(s, t) for s, t in zip(size, tile, strict=True)]
        channels = [volume.shape[1] for volume in volumes]
        stacked = torch.cat([pad_edge(volume, target) for volume in volumes], 1)

        def split_channels(tiles: Tensor) -> Tensor:
            return function(*torch.split(tiles, channels, 1))

        if list(tile) == target:
            out = split_channels(stacked)
        else:
            # A little less overlap: MONAI rounds the step down, and 40 * (1 - 0.9) is a little less
            # than 4.
            blended = sliding_window_inference(
                stacked,
                tile,
                self.batch,
                split_channels,
                overlap=self.overlap - 1e-6,
                roi_weight_map=gaussian(tile),
                progress=False,
            )
            assert isinstance(blended, Tensor)
            out = blended
        return out[:, :, : size[0], : size[1], : size[2]]

    def coarser(self, factor: int) -> SlidingWindow:
        """Return the same tiles on a grid of voxels `factor` times as large."""
        tile = tuple(side // factor for side in self.tile)
        return replace(self, tile=tile, multiple=max(1, self.multiple // factor))

    def _padded(self, size: int, tile: int) -> int:
        step = round(tile * (1 - self.overlap))
        return tile + max(0, math.ceil((size - tile) / step)) * step


def gaussian(tile: Sequence[int]) -> Tensor:
    """Return Gaussian weights `(1, 1, x, y, z)` of a tile, with an SD of an eighth of its size.

    MONAI's own weights are cut off at 1e-3, which leaves hard edges between tiles at the borders of
    a volume.
    """
    sides = []
    for length in tile:
        distance = (torch.arange(length) - (length - 1) / 2) / (length / 8)
        sides.append(torch.exp(-0.5 * distance.square()))
    return torch.einsum("x,y,z->xyz", *sides)[None, None]


def pad_edge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pad `(B, C, X, Y, Z)` at the far ends to `size` by repeating the border.

    A one-hot mask stays one-hot.
    """
    pads: list[int] = []
    for have, want in zip(reversed(x.shape[2:]), reversed(list(size)), strict=True):
        pads += [0, want - have]
    return F.pad(x, pads, mode="replicate") if any(pads) else x
