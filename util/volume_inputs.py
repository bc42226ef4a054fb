"""Inputs of a whole volume that are made box by box, where they are needed.

A volume of 512x512x600 voxels holds 0.2 GB of labels, and 6 GB as one-hot mask, coordinates and
noise. A tiler asks for boxes; what takes whole tensors, calls `whole`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from util.seeding import noise_box

Box = Sequence[int]
MAX_ONE_HOT = 16  # labels; more enter a network as numbers, which it embeds


class VolumeInput(Protocol):
    """A volume `(1, C, X, Y, Z)` of which boxes can be asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(1, C, X, Y, Z)`."""

    def box(self, start: Box, size: Box) -> Tensor:
        """Return `(1, C, *size)` from the voxel `start` on, on the device."""


@dataclass(frozen=True)
class LabelInput:
    """A mask: one-hot, or the number of each voxel's label where there are many.

    Args:
        channels: `(X, Y, Z)` uint8, the channel of each voxel.
        n_labels: K.
        device: Where boxes are made.
    """

    channels: Tensor
    n_labels: int
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """`(1, K, X, Y, Z)`, or `(1, 1, X, Y, Z)` for numbers."""
        return (1, self.n_labels if self.n_labels <= MAX_ONE_HOT else 1, *self.channels.shape)

    def box(self, start: Box, size: Box) -> Tensor:
        """Return a float32 box, see `mask_input`."""
        x, y, z = (slice(s, s + n) for s, n in zip(start, size, strict=True))
        return mask_input(self.channels[None, x, y, z].to(self.device), self.n_labels)


@dataclass(frozen=True)
class CoordinateInput:
    """Coordinates, see the function `coordinate_grid`.

    Args:
        size: `(X, Y, Z)` with the padding.
        start: First voxel of the padded volume in the unpadded one, not positive.
        unpadded: Size without the padding, which spans -1 to 1.
        device: Where boxes are made.
    """

    size: Box
    start: Box
    unpadded: Box
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """`(1, 3, X, Y, Z)`."""
        return (1, 3, *self.size)

    def box(self, start: Box, size: Box) -> Tensor:
        """Return float32 coordinates of a box."""
        first = [s + own for s, own in zip(start, self.start, strict=True)]
        return coordinate_grid(self.unpadded, first, size, self.device)[None]


@dataclass(frozen=True)
class NoiseInput:
    """A noise field.

    Args:
        key: `(2,)` key of `util.seeding.noise_key`.
        channels: N.
        size: `(X, Y, Z)`.
        device: Where boxes are made.
    """

    key: Tensor
    channels: int
    size: Box
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """`(1, N, X, Y, Z)`."""
        return (1, self.channels, *self.size)

    def box(self, start: Box, size: Box) -> Tensor:
        """Return float32 noise of a box."""
        return noise_box(self.key[None].to(self.device), self.channels, start, size)


def coordinate_grid(
    shape: Sequence[int],
    start: Sequence[int] = (0, 0, 0),
    size: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the position of each voxel of a crop in the whole volume.

    Voxel i of n along an axis lies at (2 i + 1) / n - 1, so that the volume spans -1 to 1 whatever
    its size; voxels of padding lie beyond.

    Args:
        shape: (X, Y, Z) of the whole volume, without padding.
        start: First voxel of the crop; may be negative.
        size: Size of the crop; the whole volume by default.
        device: Where the crop is needed.

    Returns:
        float32 (3, x, y, z).
    """
    axes = []
    for whole, first, length in zip(shape, start, shape if size is None else size, strict=True):
        index = torch.arange(first, first + length, dtype=torch.float32, device=device)
        axes.append((2 * index + 1) / whole - 1)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def patch_coordinates(start: Tensor, shape: Tensor, size: Box) -> Tensor:
    """Return `coordinate_grid` of a batch of crops, float32 `(B, 3, x, y, z)`.

    Args:
        start: First voxel of each crop `(B, 3)`.
        shape: Size of the whole volume of each `(B, 3)`.
        size: `(x, y, z)` of all crops.
    """
    axes = []
    for axis, length in enumerate(size):
        index = (start[:, axis, None] + torch.arange(length, device=start.device)).float()
        position = (2 * index + 1) / shape[:, axis, None].float() - 1  # (B, length)
        sides = [length if other == axis else 1 for other in range(3)]
        axes.append(position.view(-1, *sides).expand(-1, *size))
    return torch.stack(axes, 1)


def mask_input(channels: Tensor, n_labels: int) -> Tensor:
    """Return channels `(B, X, Y, Z)` as networks take them, float32.

    Up to `MAX_ONE_HOT` labels are one-hot, `(B, K, X, Y, Z)`; of more, the numbers are passed on,
    `(B, 1, X, Y, Z)`.
    """
    return one_hot(channels, n_labels) if n_labels <= MAX_ONE_HOT else channels[:, None].float()


def one_hot(channels: Tensor, n_labels: int) -> Tensor:
    """Return channels `(B, X, Y, Z)` as one-hot float32 `(B, K, X, Y, Z)`."""
    numbers = torch.arange(n_labels, device=channels.device, dtype=channels.dtype)
    return (channels[:, None] == numbers[:, None, None, None]).float()


def cut_box(volume: Tensor | VolumeInput, start: Box, size: Box) -> Tensor:
    """Return a box `(1, C, *size)` of a tensor or an input."""
    if not isinstance(volume, Tensor):
        return volume.box(start, size)
    x, y, z = (slice(s, s + n) for s, n in zip(start, size, strict=True))
    return volume[:, :, x, y, z]


def whole(volume: Tensor | VolumeInput) -> Tensor:
    """Return the whole volume `(1, C, X, Y, Z)` as a tensor."""
    if isinstance(volume, Tensor):
        return volume
    return volume.box((0, 0, 0), volume.shape[2:])
