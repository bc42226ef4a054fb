"""Grids in space: canonical orientation, comparison, resampling and crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import nibabel.processing
import numpy as np
from nibabel import orientations
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

Shape = tuple[int, int, int]
RAS = np.array([[0, 1], [1, 1], [2, 1]])

# Two grids match where no corner voxel lies further apart than this share of the smallest voxel
# side: far above the rounding of headers (float32, quaternions, text), and far below what moves a
# label.
GRID_TOLERANCE = 0.05
# Two statements of one grid agree up to the rounding of headers.
MAX_AXIS_ANGLE_DEGREES = 1.0
MAX_SIDE_DIFFERENCE = 0.01  # relative
MAX_AXIS_COSINE = 1e-4  # of perpendicular axes: a voxel's side over 10,000 voxels


@dataclass(frozen=True)
class Volume:
    """A volume in RAS orientation.

    Attributes:
        array: Contiguous (X, Y, Z).
        affine: (4, 4), voxel index to RAS mm.
    """

    array: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> Shape:
        """(X, Y, Z)."""
        return as_shape(self.array.shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Sides of a voxel, mm."""
        x, y, z = voxel_sizes(self.affine).tolist()
        return x, y, z


def as_shape(values: Sequence[Any]) -> Shape:
    """Return three numbers as a tuple of plain ints."""
    x, y, z = (int(v) for v in values)
    return x, y, z


def canonical_grid(shape: Sequence[int], affine: np.ndarray) -> tuple[Shape, np.ndarray]:
    """Return shape and affine of a grid after its axes are permuted and flipped to closest RAS."""
    orientation = orientations.io_orientation(affine)
    canonical = [0, 0, 0]
    for axis, target in enumerate(orientation[:, 0].astype(int)):
        canonical[target] = shape[axis]
    return as_shape(canonical), affine @ orientations.inv_ornt_aff(orientation, shape)


def to_ras(array: np.ndarray, affine: np.ndarray) -> Volume:
    """Permute and flip a volume to the closest RAS orientation, without resampling."""
    turned = orientations.apply_orientation(array, orientations.io_orientation(affine))
    return Volume(np.ascontiguousarray(turned), canonical_grid(array.shape, affine)[1])


def from_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Undo `to_ras`: return a RAS array in the axis order of the source with this affine."""
    back = orientations.ornt_transform(RAS, orientations.io_orientation(affine))
    return np.ascontiguousarray(orientations.apply_orientation(array, back))


def corner_distance(shape: Sequence[int], first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest distance in mm between corner voxels of a grid under two affines."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    moved = (first - second) @ np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.linalg.norm(moved[:3], axis=0).max())


def grids_match(shape: Sequence[int], first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two affines put a grid at the same place, within `GRID_TOLERANCE` voxels."""
    return corner_distance(shape, first, second) <= GRID_TOLERANCE * float(voxel_sizes(first).min())


def axes_agree(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether directions and voxel sizes of two affines agree, wherever they lie."""
    one = voxel_sizes(first)
    two = voxel_sizes(second)
    if np.abs(one - two).max() > MAX_SIDE_DIFFERENCE * two.min():
        return False
    cosines = np.sum((first[:3, :3] / one) * (second[:3, :3] / two), axis=0)
    return bool(cosines.min() >= np.cos(np.radians(MAX_AXIS_ANGLE_DEGREES)))


def axes_are_orthogonal(affine: np.ndarray) -> bool:
    """Return whether the axes of a grid are perpendicular, up to the rounding of headers."""
    directions = affine[:3, :3] / voxel_sizes(affine)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() <= MAX_AXIS_COSINE)


def format_sides(sides: np.ndarray) -> str:
    """Return voxel sides as text for messages."""
    return " x ".join(f"{side:.3g}" for side in sides)


def grid_with_spacing(
    shape: Sequence[int], affine: np.ndarray, spacing: Sequence[float]
) -> tuple[Shape, np.ndarray]:
    """Return the grid of another voxel size over the same box.

    Axes and centre stay; the extent is rounded to whole voxels.

    Args:
        shape: (X, Y, Z) of the grid.
        affine: (4, 4) of the grid.
        spacing: New voxel size in mm.

    Returns:
        Shape and affine.
    """
    factor = np.asarray(spacing, float) / voxel_sizes(affine)
    new_shape = np.maximum(1, np.rint(np.asarray(shape) / factor))
    scaled = affine.copy()
    scaled[:3, :3] = affine[:3, :3] * factor
    centre = affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    scaled[:3, 3] += centre - scaled[:3, :3] @ ((new_shape - 1) / 2)
    return as_shape(new_shape), scaled


def resample(
    volume: Volume,
    *,
    spacing: Sequence[float] | None = None,
    grid: tuple[Sequence[int], np.ndarray] | None = None,
    order: int = 1,
) -> Volume:
    """Resample onto another voxel size or grid; outside the source its nearest voxel is repeated.

    Args:
        volume: The source.
        spacing: Voxel size in mm (see `grid_with_spacing`); give this or `grid`.
        grid: (shape, affine) to land on, in RAS.
        order: 1 for CT (linear; the result is float32), 0 for masks (nearest; the type stays).
    """
    if (spacing is None) == (grid is None):
        raise ValueError("resample takes either spacing or grid")
    if grid is None:
        grid = grid_with_spacing(volume.shape, volume.affine, spacing or ())
    shape = as_shape(grid[0])
    affine = grid[1]
    if shape == volume.shape and np.allclose(affine, volume.affine, rtol=0, atol=1e-6):
        return volume
    dtype = volume.array.dtype if order == 0 else np.dtype(np.float32)
    source = volume.array.astype(np.int32 if order == 0 else np.float32)
    image = nib.Nifti1Image(source, volume.affine)
    resampled = nibabel.processing.resample_from_to(
        image, (shape, affine), order=order, mode="nearest"
    )
    array = np.asanyarray(resampled.dataobj).astype(dtype)
    return Volume(np.ascontiguousarray(array), np.asarray(affine, float))


def shrink(array: NDArray[Any], block: Sequence[int], average: bool) -> NDArray[Any]:
    """Return blocks of voxels as one: their mean, or the voxel in their middle (for labels).

    The last block along an axis may be smaller.
    """
    if all(n == 1 for n in block):
        return array
    if not average:
        middles = [
            np.minimum(np.arange(n // 2, length + n // 2, n), length - 1)
            for n, length in zip(block, array.shape, strict=True)
        ]
        return array[np.ix_(*middles)]
    missing = [(0, -length % n) for n, length in zip(block, array.shape, strict=True)]
    padded = np.pad(array, missing, mode="edge")
    a, b, c = block
    x, y, z = padded.shape
    blocks = padded.reshape(x // a, a, y // b, b, z // c, c)
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def crop(array: np.ndarray, start: Sequence[int], size: Sequence[int], fill: float) -> np.ndarray:
    """Return a copied box of a volume that may reach beyond it.

    Args:
        array: (X, Y, Z).
        start: First voxel of the box; may be negative.
        size: (x, y, z) of the box.
        fill: Value outside the volume.
    """
    inside = tuple(slice(max(0, s), max(0, s + n)) for s, n in zip(start, size, strict=True))
    part = array[inside]
    if part.shape == tuple(size):
        return np.array(part)
    box = np.full(tuple(size), fill, dtype=array.dtype)
    offsets = [max(0, -s) for s in start]
    target = tuple(slice(o, o + n) for o, n in zip(offsets, part.shape, strict=True))
    box[target] = part
    return box
