"""Voxels of a stack of slices in HU: rescaled slice by slice, padding replaced, steps made even."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from scipy import ndimage

from data.geometry import RAS, Volume, from_ras, to_ras
from data.preparation.headers import SliceHeader
from data.preparation.series import SliceStack
from data.preparation.slices import read_values

HU_RANGE = (-1024, 3071)  # the values of a CT scanner; padding lies outside
AIR_HU = HU_RANGE[0]


@dataclass(frozen=True)
class Scan:
    """A CT.

    Attributes:
        volume: Int16 HU in RAS.
        source_affine: Affine (4, 4) in the orientation of the source.
        warnings: Remarks for the report.
    """

    volume: Volume
    source_affine: NDArray[np.float64]
    warnings: tuple[str, ...] = ()


def to_source_orientation(
    volume: Volume, source_affine: NDArray[np.float64]
) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Return a RAS volume in the axis order of `source_affine`, and the affine of that grid."""
    back = orientations.ornt_transform(RAS, orientations.io_orientation(source_affine))
    affine = volume.affine @ orientations.inv_ornt_aff(back, volume.shape)
    return from_ras(volume.array, source_affine), affine


def read_stack(stack: SliceStack) -> Scan:
    """Read the voxels of a checked stack with SimpleITK (GDCM), one slice after the other.

    Raises:
        UserError: A file is truncated, damaged or compressed in a way that cannot be read.
    """
    rows, columns = stack.headers[0].size
    voxels = np.empty((len(stack.headers), rows, columns), np.int16)
    for plane, header in zip(voxels, stack.headers, strict=True):
        plane[:] = replace_padding(read_values(header), header)
    if not stack.is_even:
        voxels = _interpolate_evenly(voxels, stack)
    return Scan(to_ras(voxels.T, stack.affine()), stack.affine(), stack.warnings)


def replace_padding(hu: NDArray[np.number], header: SliceHeader) -> NDArray[np.int16]:
    """Return a slice (rows, columns) as int16 in `HU_RANGE`, with air in place of padding.

    A padding value that could also be tissue counts as padding only where it reaches the edge of
    the slice.
    """
    whole = np.rint(hu) if hu.dtype.kind == "f" else hu
    clean = np.clip(whole, *HU_RANGE).astype(np.int16)
    if header.padding is None or header.rescale is None:
        return clean
    slope, intercept = header.rescale
    low, high = sorted(value * slope + intercept for value in header.padding)
    padded = (hu >= low - 0.5) & (hu <= high + 0.5)
    if high >= HU_RANGE[0] and low <= HU_RANGE[1] and padded.any():
        parts, _ = ndimage.label(padded)
        edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
        padded = np.isin(parts, edge[edge > 0])
    clean[padded] = AIR_HU
    return clean


def _interpolate_evenly(voxels: NDArray[np.int16], stack: SliceStack) -> NDArray[np.int16]:
    """Return slices at even steps, linear between the two neighbours of each."""
    positions = stack.positions
    step = float(np.linalg.norm(stack.step))
    wanted = np.arange(positions[0], positions[-1] + step / 2, step)
    after = np.clip(np.searchsorted(positions, wanted, side="right"), 1, len(positions) - 1)
    before = positions[after - 1]
    weights = np.clip((wanted - before) / (positions[after] - before), 0, 1)
    even = np.empty((len(wanted), *voxels.shape[1:]), np.int16)
    for plane, k, weight in zip(even, after, weights, strict=True):
        plane[:] = np.rint(voxels[k - 1] * (1 - weight) + voxels[k] * weight)
    return even


def clip_to_hu(array: NDArray[np.generic]) -> tuple[NDArray[np.int16], float]:
    """Return the voxels of a volume as int16 in `HU_RANGE`, and the lowest value before."""
    clipped = np.empty(array.shape, np.int16)
    lowest = 0.0
    for source, target in zip(array, clipped, strict=True):  # slab by slab needs little memory
        lowest = min(lowest, float(source.min()))
        target[:] = np.rint(np.clip(source, *HU_RANGE))
    return clipped, lowest
