"""Grids in space: canonical orientation, comparison, resampling, coordinates and crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import nibabel.processing
import numpy as np
import torch
from nibabel import orientations

Shape = tuple[int, int, int]
RAS = np.array([[0, 1], [1, 1], [2, 1]])

# Two grids are one where no corner voxel of one lies further from its place in the other than this
# share of the
# smallest voxel side: far above the rounding of headers (float32, quaternions, text), far below
# what moves a label.
GRID_TOLERANCE = 0.05


@dataclass(frozen=True)
class Volume:
    """A volume in RAS orientation: `array` (X, Y, Z), contiguous; `affine` (4, 4), voxel index to
    RAS mm.
    """

    array: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> Shape:
        """Its (X, Y, Z)."""
        return as_shape(self.array.shape)


def as_shape(values: Sequence[Any]) -> Shape:
    """Three numbers as a tuple of plain ints."""
    x, y, z = (int(v) for v in values)
    return x, y, z


def canonical_grid(shape: Sequence[int], affine: np.ndarray) -> tuple[Shape, np.ndarray]:
    """Shape and affine that a grid has once its axes are permuted and flipped to the closest
    RAS.
    """
    ornt = orientations.io_orientation(affine)
    canonical = [0, 0, 0]
    for axis, target in enumerate(ornt[:, 0].astype(int)):
        canonical[target] = shape[axis]
    return as_shape(canonical), affine @ orientations.inv_ornt_aff(ornt, shape)


def to_ras(array: np.ndarray, affine: np.ndarray) -> Volume:
    """Permutes and flips a volume to the closest RAS orientation; no voxel changes its value or its
    place.
    """
    turned = orientations.apply_orientation(array, orientations.io_orientation(affine))
    return Volume(np.ascontiguousarray(turned), canonical_grid(array.shape, affine)[1])


def from_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Undoes `to_ras`: a RAS array in the axis order of the source, whose own affine is given."""
    back = orientations.ornt_transform(RAS, orientations.io_orientation(affine))
    return np.ascontiguousarray(orientations.apply_orientation(array, back))


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Side lengths (3,) of a voxel in mm."""
    return np.sqrt((affine[:3, :3] ** 2).sum(axis=0))


def corner_distance(shape: Sequence[int], first: np.ndarray, second: np.ndarray) -> float:
    """Largest distance in mm between the places that two affines give to the corner voxels of a
    grid.
    """
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    moved = (first - second) @ np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.linalg.norm(moved[:3], axis=0).max())


def grids_match(shape: Sequence[int], first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two affines put a grid at the same place, within `GRID_TOLERANCE` of a voxel."""
    return corner_distance(shape, first, second) <= GRID_TOLERANCE * float(voxel_sizes(first).min())


def grid_with_spacing(
    shape: Sequence[int], affine: np.ndarray, spacing: Sequence[float]
) -> tuple[Shape, np.ndarray]:
    """The grid of another voxel size (mm) over the same box: same axes, same centre, extent rounded
    to whole voxels.
    """
    factor = np.asarray(spacing, float) / voxel_sizes(affine)
    new = np.maximum(1, np.rint(np.asarray(shape) / factor))
    scaled = affine.copy()
    scaled[:3, :3] = affine[:3, :3] * factor
    scaled[:3, 3] += affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) - scaled[:3, :3] @ (
        (new - 1) / 2
    )
    return as_shape(new), scaled


def resample(
    volume: Volume,
    *,
    spacing: Sequence[float] | None = None,
    grid: tuple[Sequence[int], np.ndarray] | None = None,
    order: int = 1,
) -> Volume:
    """Resamples onto another voxel size or grid; outside the source its nearest voxel is repeated.

    Args:
        volume: The source.
        spacing: Voxel size in mm (see `spaced_grid`); give this or `grid`.
        grid: (shape, affine) to land on, in RAS.
        order: 1 for CT (linear; the result is float32), 0 for masks (nearest; the type stays).
    """
    if (spacing is None) == (grid is None):
        raise ValueError("resample takes either spacing or grid")
    shape, affine = (
        grid if grid is not None else grid_with_spacing(volume.shape, volume.affine, spacing or ())
    )
    if tuple(shape) == volume.shape and np.allclose(affine, volume.affine, rtol=0, atol=1e-6):
        return volume
    kind = volume.array.dtype if order == 0 else np.dtype(np.float32)
    image = nib.Nifti1Image(
        volume.array.astype(np.int32 if order == 0 else np.float32), volume.affine
    )
    out = nibabel.processing.resample_from_to(
        image, (as_shape(tuple(shape)), affine), order=order, mode="nearest"
    )
    return Volume(
        np.ascontiguousarray(np.asanyarray(out.dataobj).astype(kind)), np.asarray(affine, float)
    )


def coordinate_grid(
    shape: Sequence[int],
    start: Sequence[int] = (0, 0, 0),
    size: Sequence[int] | None = None,
) -> torch.Tensor:
    """Place of each voxel of a crop in the whole volume.

    Voxel i of n along an axis lies at (2 i + 1) / n - 1, so that the volume spans -1 to 1 whatever
    its size; voxels of padding lie beyond.

    Args:
        shape: (X, Y, Z) of the whole volume, without padding.
        start: First voxel of the crop; may be negative.
        size: Size of the crop; the whole volume by default.

    Returns:
        float32 (3, x, y, z).
    """
    axes = [
        (2 * torch.arange(s, s + n, dtype=torch.float32) + 1) / whole - 1
        for whole, s, n in zip(shape, start, shape if size is None else size, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def crop(array: np.ndarray, start: Sequence[int], size: Sequence[int], fill: float) -> np.ndarray:
    """A copied box of a volume that may reach beyond it; what lies outside is `fill`. Shape
    `size`.
    """
    inside = tuple(slice(max(0, s), max(0, s + n)) for s, n in zip(start, size, strict=True))
    part = array[inside]
    if part.shape == tuple(size):
        return np.array(part)
    out = np.full(tuple(size), fill, dtype=array.dtype)
    offsets = [max(0, -s) for s in start]
    out[tuple(slice(o, o + n) for o, n in zip(offsets, part.shape, strict=True))] = part
    return out
