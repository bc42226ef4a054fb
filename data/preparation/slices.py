"""The voxels of one DICOM file, and whether two files hold the same slice."""

from __future__ import annotations

import filecmp

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from data.preparation.headers import SliceHeader
from util.cli import UserError

SAME_PLACE_MM = 1e-3


def read_values(header: SliceHeader) -> NDArray[np.number]:
    """Return the rescaled values (rows, columns) of a slice, read by SimpleITK (GDCM).

    Raises:
        UserError: The file is truncated, damaged, compressed in a way that cannot be read, or not
            of the size in its header.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(header.path))
    try:
        values = sitk.GetArrayFromImage(reader.Execute())[0]
    except RuntimeError:
        raise UserError(
            f"{header.path} cannot be read: it is truncated, damaged, or compressed in a way that "
            "GDCM does not know. Copy or export it again."
        ) from None
    if values.shape != header.size:
        raise UserError(
            f"{header.path} holds {values.shape} voxels, but its header says {header.size}. Export "
            "it again."
        )
    return values


def is_copy(header: SliceHeader, earlier: SliceHeader) -> bool:
    """Return whether a file repeats an earlier one: the same UID, place and voxels."""
    return (
        header.instance == earlier.instance
        and is_same_place(header, earlier)
        and have_same_voxels(header, earlier)
    )


def is_same_place(first: SliceHeader, second: SliceHeader) -> bool:
    """Return whether two slices lie at one place; unknown places are the same."""
    if len(first.position) != len(second.position):
        return False
    return bool(np.allclose(first.position, second.position, rtol=0, atol=SAME_PLACE_MM))


def have_same_voxels(first: SliceHeader, second: SliceHeader) -> bool:
    """Return whether two files hold the same values; one that cannot be read is different."""
    if first.size != second.size:
        return False
    try:
        if filecmp.cmp(first.path, second.path, shallow=False):
            return True
        return np.array_equal(read_values(first), read_values(second))
    except (OSError, UserError):
        return False
