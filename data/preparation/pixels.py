"""Voxels of a stack of slices in HU: each slice with its own rescaling, padding made air, uneven
steps interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from nibabel import orientations
from numpy.typing import NDArray
from scipy import ndimage

from data.geometry import RAS, Volume, to_ras
from data.preparation.headers import SliceHeader
from data.preparation.series import Stack
from util.cli import UserError

HU = (-1024, 3071)  # what a CT measures; padding lies outside


@dataclass(frozen=True)
class Scan:
    """A CT: `volume` in RAS, int16 HU; `source_affine` of the file's own orientation;
    `warnings`.
    """

    volume: Volume
    source_affine: NDArray[np.float64]
    warnings: tuple[str, ...] = ()


def as_scanned(
    volume: Volume, source_affine: NDArray[np.float64]
) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """A RAS volume with its axes in the order and direction that `source_affine` has, and the
    affine of that grid.
    """
    back = orientations.ornt_transform(RAS, orientations.io_orientation(source_affine))
    affine = volume.affine @ orientations.inv_ornt_aff(back, volume.shape)
    return orientations.apply_orientation(volume.array, back), affine


def read_stack(stack: Stack) -> Scan:
    """Reads the voxels of a checked stack with SimpleITK (GDCM), one slice after the other.

    Raises:
        UserError: A file that is truncated, damaged or compressed in a way that cannot be read; one
            that is named.
    """
    rows, columns = stack.headers[0].size
    voxels = np.empty((len(stack.headers), rows, columns), np.int16)
    for plane, header in zip(voxels, stack.headers, strict=True):
        plane[:] = _slice(header)
    if not stack.even:
        voxels = _evened(voxels, stack)
    return Scan(to_ras(voxels.T, stack.affine()), stack.affine(), stack.warnings)


def _slice(header: SliceHeader) -> NDArray[np.int16]:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(header.path))
    try:
        hu = sitk.GetArrayFromImage(reader.Execute())[0]
    except RuntimeError:
        raise UserError(
            f"{header.path} cannot be read: it is truncated, damaged, or compressed in a way that "
            "GDCM does not know. Copy or export it again."
        ) from None
    if hu.shape != header.size:
        raise UserError(
            f"{header.path} holds {hu.shape} voxels, its header says {header.size}. Export it "
            "again."
        )
    return without_padding(hu, header)


def without_padding(hu: NDArray[np.number], header: SliceHeader) -> NDArray[np.int16]:
    """A slice (rows, columns) as int16 in `HU`; padding is air.

    A padding value that could also be tissue is taken for padding only where it reaches the edge of
    the picture.
    """
    made = np.clip(np.rint(hu) if hu.dtype.kind == "f" else hu, *HU).astype(np.int16)
    if header.padding is None or header.rescale is None:
        return made
    slope, intercept = header.rescale
    low, high = sorted(v * slope + intercept for v in header.padding)
    padded = (hu >= low - 0.5) & (hu <= high + 0.5)
    if high >= HU[0] and low <= HU[1] and padded.any():
        parts, _ = ndimage.label(padded)
        edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
        padded = np.isin(parts, edge[edge > 0])
    made[padded] = HU[0]
    return made


def _evened(voxels: NDArray[np.int16], stack: Stack) -> NDArray[np.int16]:
    """Slices at even steps, linear between the two around each."""
    step = float(np.linalg.norm(stack.step))
    wanted = np.arange(stack.places[0], stack.places[-1] + step / 2, step)
    after = np.clip(np.searchsorted(stack.places, wanted, side="right"), 1, len(stack.places) - 1)
    share = np.clip(
        (wanted - stack.places[after - 1]) / (stack.places[after] - stack.places[after - 1]), 0, 1
    )
    made = np.empty((len(wanted), *voxels.shape[1:]), np.int16)
    for plane, k, w in zip(made, after, share, strict=True):
        plane[:] = np.rint(voxels[k - 1] * (1 - w) + voxels[k] * w)
    return made


def clipped(array: NDArray[np.generic]) -> tuple[NDArray[np.int16], Sequence[str]]:
    """A volume file's voxels as int16 in `HU`, slab by slab, and a warning where padding lay
    below.
    """
    made, lowest = np.empty(array.shape, np.int16), 0.0
    for source, target in zip(array, made, strict=True):
        lowest = min(lowest, float(source.min()))
        target[:] = np.rint(np.clip(source, *HU))
    return made, [f"values down to {lowest:.0f} HU were padding and became {HU[0]}"] if lowest < HU[
        0
    ] else []
