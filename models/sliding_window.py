"""Sliding windows: a function of tiles run over a whole volume and blended smoothly."""

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

    def __call__(self, function: Callable[..., Tensor], *wholes: Tensor) -> Tensor:
        """Applies `function(*tiles)` to tensors `(1, C_i, X, Y, Z)`; returns `(1, C_out, X, Y,
        Z)`.
        """
        size = tuple(wholes[0].shape[2:])
        tile = tuple(round_up(t, self.multiple) for t in self.tile) or tuple(
            round_up(s, self.multiple) for s in size
        )
        target = [self._padded(s, t) for s, t in zip(size, tile, strict=True)]
        widths = [w.shape[1] for w in wholes]
        stacked = torch.cat([pad_edge(w, target) for w in wholes], 1)

        def split(tiles: Tensor) -> Tensor:
            return function(*tiles.split(widths, 1))

        if list(tile) == target:
            out = split(stacked)
        else:
            # A little less overlap: MONAI rounds the step down, and 40 * (1 - 0.9) is a little less
            # than 4.
            out = sliding_window_inference(
                stacked,
                tile,
                self.batch,
                split,
                overlap=self.overlap - 1e-6,
                roi_weight_map=gaussian(tile),
                progress=False,
            )
        assert isinstance(out, Tensor)
        return out[:, :, : size[0], : size[1], : size[2]]

    def coarser(self, factor: int) -> SlidingWindow:
        """The same tiles on a grid of voxels `factor` times as large."""
        tile = tuple(t // factor for t in self.tile)
        return replace(self, tile=tile, multiple=max(1, self.multiple // factor))

    def _padded(self, size: int, tile: int) -> int:
        step = round(tile * (1 - self.overlap))
        return tile + max(0, math.ceil((size - tile) / step)) * step


def gaussian(tile: Sequence[int]) -> Tensor:
    """Weights `(1, 1, x, y, z)` of a tile, SD an eighth of its size.

    MONAI's own are the same, but cut off at 1e-3: at the borders of a volume that leaves hard edges
    between tiles.
    """
    x, y, z = (torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)).square()) for n in tile)
    return torch.einsum("x,y,z->xyz", x, y, z)[None, None]


def pad_edge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pads `(B, C, X, Y, Z)` at the far ends to `size` by repeating the border: a one-hot mask
    stays one.
    """
    pads = [
        p
        for have, want in zip(reversed(x.shape[2:]), reversed(list(size)), strict=True)
        for p in (0, want - have)
    ]
    return F.pad(x, pads, mode="replicate") if any(pads) else x
