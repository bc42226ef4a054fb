"""Sliding windows: a function of tiles runs over a whole volume.

A function whose receptive field is known gives exactly the volume's values on tiles with a halo.
Others are blended smoothly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, product

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from util.cli import UserError
from util.volume_inputs import Box, VolumeInput, cut_box, whole

# So that a volume of 512x512x600 takes less than 6 GB in all; on a GPU some is left to fragments.
MAX_CPU_BYTES = 4 * 2**30
FREE_SHARE = 0.6
# Of a volume that is generated at once where tiles would be blended. Blending changes the values,
# so that neither the machine nor what else runs there may decide.
MAX_WHOLE_BYTES = 4 * 2**30


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that holds `size`."""
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class ScaledInput:
    """A volume whose voxels are `scale` times as large as those of the grid of the tiles."""

    volume: Tensor | VolumeInput
    scale: int = 1


@dataclass(frozen=True)
class TileReach:
    """What a function of tiles needs.

    Attributes:
        halo: Voxels beyond its output that it depends on, along each axis.
        voxel_bytes: Memory that it takes per voxel of a tile, about.
        out_scale: Size of its output's voxels in those of the grid.
    """

    halo: int
    voxel_bytes: int
    out_scale: int = 1


@dataclass(frozen=True)
class Tile:
    """A box of a volume, and the part of it `(first, end)` per axis that is kept."""

    start: Box
    size: Box
    core: Sequence[tuple[int, int]]


def tile_lengths(side: int, halo: int, multiple: int) -> list[tuple[int, int]]:
    """Return how an axis may be cut: a number of tiles, and the shortest length that it needs.

    The first is the whole axis. Every tile but those at the ends gives away a halo on both sides.

    Args:
        side: Voxels of the axis.
        halo: Voxels of a halo.
        multiple: Lengths are multiples of this.
    """
    cuts = [(1, side)]
    for length in range(2 * halo + multiple, side, multiple):
        tiles = 1 + math.ceil((side - length) / (length - 2 * halo))
        if tiles != cuts[-1][0]:
            cuts.append((tiles, length))
    return cuts


def fitting_tile(
    size: Sequence[int],
    halo: int,
    multiple: int,
    voxel_bytes: int,
    device: torch.device,
) -> tuple[int, ...]:
    """Return the tile that fits into memory and computes the fewest voxels, halos included.

    Where none fits, the smallest tile that the halo allows.

    Args:
        size: Size of the volume.
        halo: Voxels of a halo.
        multiple: Sides are multiples of this.
        voxel_bytes: Memory that a voxel takes.
        device: Whose memory counts.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] * FREE_SHARE
    else:
        free = min(psutil.virtual_memory().available * FREE_SHARE, MAX_CPU_BYTES)
    best: tuple[int, tuple[int, ...]] | None = None
    smallest = tuple(size)
    for cuts in product(*(tile_lengths(side, halo, multiple) for side in size)):
        tile = tuple(length for _, length in cuts)
        smallest = min(smallest, tile, key=math.prod)
        if math.prod(tile) * voxel_bytes > free:
            continue
        work = math.prod(tiles * length for tiles, length in cuts)
        if best is None or work < best[0]:
            best = work, tile
    return smallest if best is None else best[1]


@dataclass(frozen=True)
class SlidingWindow:
    """Runs a function over tiles of a volume.

    Called, it blends overlapping tiles with Gaussian weights (MONAI's sliding window). Tiles start
    on multiples of the network's total stride, and the volume is padded until they fit without a
    last flush one: a network that halves its input gives other values on an unaligned tile.
    `run_exactly` is for functions whose receptive field is known.

    Args:
        tile: Size in voxels, rounded up to `multiple`; empty takes the whole volume at once.
        multiple: The network's total stride, in voxels.
        overlap: Share of a tile that its neighbour covers too.
        batch: Tiles worked on at once.
        by_memory: Whether `run_exactly` chooses its tiles by the memory that is free, and
            `whole_if_small` takes small volumes at once.
        on_tile: Called before each step with its number and the number of steps, for progress; an
            error that it raises ends the computation.

    Raises:
        UserError: Tile and overlap give a step that is not a multiple of the stride.
    """

    tile: tuple[int, ...]
    multiple: int
    overlap: float = 0.5
    batch: int = 4
    by_memory: bool = False
    on_tile: Callable[[int, int], None] | None = field(default=None, compare=False)

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

    def __call__(self, function: Callable[..., Tensor], *volumes: Tensor | VolumeInput) -> Tensor:
        """Return `function` of whole volumes, computed in tiles.

        Args:
            function: Maps tiles `(B, C_i, x, y, z)`, one per volume, to tiles `(B, C, x, y, z)`.
            volumes: Tensors or inputs `(1, C_i, X, Y, Z)`.

        Returns:
            `(1, C, X, Y, Z)`.
        """
        tensors = [whole(volume) for volume in volumes]
        size = tuple(tensors[0].shape[2:])
        tile = tuple(round_up(side, self.multiple) for side in self.tile or size)
        target = [self._padded(s, t) for s, t in zip(size, tile, strict=True)]
        padded = [pad_edge(volume, target) for volume in tensors]
        steps = self._steps(target, tile)
        if list(tile) == target:
            self._report(0, steps)
            out = function(*padded)
        else:
            out = self._blended(function, padded, tile, steps)
        return out[:, :, : size[0], : size[1], : size[2]]

    def _blended(
        self,
        function: Callable[..., Tensor],
        volumes: Sequence[Tensor],
        tile: Sequence[int],
        steps: int,
    ) -> Tensor:
        """Return `function` of volumes, blended from overlapping tiles."""
        from monai.inferers import sliding_window_inference  # slow to import

        channels = [volume.shape[1] for volume in volumes]
        done = count()

        def split_channels(tiles: Tensor) -> Tensor:
            self._report(next(done), steps)
            return function(*torch.split(tiles, channels, 1))

        # A little less overlap: MONAI rounds the step down, and 40 * (1 - 0.9) is a little less
        # than 4.
        blended = sliding_window_inference(
            torch.cat(list(volumes), 1),
            tile,
            self.batch,
            split_channels,
            overlap=self.overlap - 1e-6,
            roi_weight_map=gaussian(tile),
            progress=False,
        )
        assert isinstance(blended, Tensor)
        return blended

    def run_exactly(
        self,
        function: Callable[..., Tensor],
        volumes: Sequence[ScaledInput],
        reach: TileReach,
        out: Tensor,
    ) -> Tensor:
        """Compute a function in tiles with a halo, whose values are those of the whole volume.

        Args:
            function: Maps boxes `(1, C_i, x, y, z)`, one per volume, to `(B, C, x, y, z)`.
            volumes: The volumes, whose voxels may be larger than the grid's.
            reach: Receptive field and memory of the function.
            out: `(B, C, X, Y, Z)`, on a grid whose voxels may also be larger; it is written.

        Returns:
            `out`.
        """
        size = tuple(side * reach.out_scale for side in out.shape[2:])
        boxes = list(self._boxes(size, reach, out.device))
        for number, box in enumerate(boxes):
            self._report(number, len(boxes))
            inputs = [
                cut_box(
                    item.volume,
                    [start // item.scale for start in box.start],
                    [side // item.scale for side in box.size],
                )
                for item in volumes
            ]
            result = function(*inputs)
            scale = reach.out_scale
            kept, cut = [slice(None)] * 2, [slice(None)] * 2
            for (first, end), start in zip(box.core, box.start, strict=True):
                kept.append(slice(first // scale, end // scale))
                cut.append(slice((first - start) // scale, (end - start) // scale))
            out[tuple(kept)] = result[tuple(cut)]
        return out

    def _boxes(self, size: Sequence[int], reach: TileReach, device: torch.device) -> Iterator[Tile]:
        """Yield tiles of one size, each with the part of it that is kept.

        The last tile along an axis moves back until it fits, so that none is thinner.
        """
        halo = round_up(reach.halo, self.multiple)
        if self.by_memory:
            wanted = fitting_tile(size, halo, self.multiple, reach.voxel_bytes, device)
        else:
            wanted = self.tile or tuple(size)
        low = 2 * halo + self.multiple
        tile = [
            min(side, round_up(max(want, low), self.multiple))
            for side, want in zip(size, wanted, strict=True)
        ]
        axes = []
        for side, length in zip(size, tile, strict=True):
            axis = []
            kept = 0
            for start in [*range(0, side - length, max(1, length - 2 * halo)), side - length]:
                end = side if start == side - length else start + length - halo
                axis.append((start, (kept, end)))
                kept = end
            axes.append(axis)
        for places in product(*axes):
            yield Tile([start for start, _ in places], tile, [core for _, core in places])

    def whole_if_small(self, size: Sequence[int], voxel_bytes: int) -> SlidingWindow:
        """Return one tile of the whole volume where `by_memory` and its size allow, else itself.

        Args:
            size: Size of the volume.
            voxel_bytes: Memory that the function takes per voxel, about.
        """
        is_small = math.prod(size) * voxel_bytes <= MAX_WHOLE_BYTES
        return replace(self, tile=()) if self.by_memory and is_small else self

    def coarser(self, factor: int) -> SlidingWindow:
        """Return the same tiles on a grid of voxels `factor` times as large."""
        tile = tuple(round_up(side, self.multiple) // factor for side in self.tile)
        return replace(self, tile=tile, multiple=max(1, self.multiple // factor))

    def _report(self, number: int, steps: int) -> None:
        if self.on_tile is not None:
            self.on_tile(number, steps)

    def _steps(self, padded: Sequence[int], tile: Sequence[int]) -> int:
        """Return how often the function is called for a padded volume."""
        apart = [round(side * (1 - self.overlap)) for side in tile]
        tiles = [
            1 + (whole_side - side) // step
            for whole_side, side, step in zip(padded, tile, apart, strict=True)
        ]
        return math.ceil(math.prod(tiles) / self.batch)

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
