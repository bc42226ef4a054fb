"""Volume files: NIfTI, MetaImage and NRRD in, NIfTI on the grid of a source file out, and the HU
window.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from data.geometry import Shape, Volume, as_shape, canonical_grid, from_ras, resample, to_ras
from util.cli import UserError
from util.files import atomic_path

__all__ = [
    "SUFFIXES",
    "Header",
    "Volume",
    "load",
    "one_hot",
    "read_header",
    "resample",
    "strip_suffix",
    "to_hu",
    "to_unit",
    "write_like",
]

SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    KeyError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
)

T = TypeVar("T", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class VolumeHeader:
    """The grid of a file: `shape` and `affine` as canonicalised to RAS, `source_*` as they stand in
    the file.
    """

    shape: Shape
    affine: np.ndarray
    source_shape: Shape
    source_affine: np.ndarray


def has_suffix(name: str) -> bool:
    """Whether a file name ends as a volume's does."""
    return name.lower().endswith(SUFFIXES)


def strip_suffix(name: str) -> str:
    """`name` without a known volume suffix; nothing else is cut, so `P1.2` stays."""
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns whatever a reader throws at a bad file into one message."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())[-160:] or type(error).__name__
        known = ", ".join(SUFFIXES)
        raise UserError(
            f"{path} cannot be read as a volume ({reason}). It is truncated, damaged or not of its "
            f"suffix's format; copy or export it again (formats: {known})."
        ) from None


def _checked(path: Path, shape: Sequence[int], affine: np.ndarray) -> VolumeHeader:
    if len(shape) != 3:
        raise UserError(
            f"{path} has {len(shape)} dimensions {tuple(shape)}; a volume has three. Save a single "
            "3D volume."
        )
    if min(shape) < 1:
        raise UserError(f"{path} is empty: its shape is {tuple(shape)}. Export it again.")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError(
            f"{path} has no usable affine (a voxel side is zero or not finite). Repair its header."
        )
    return VolumeHeader(*canonical_grid(shape, affine), as_shape(shape), affine)


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii.gz", ".nii"))


def _itk_affine(image: Any) -> np.ndarray:
    """Index to RAS mm of a SimpleITK image or reader, which speak LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


def _nifti(path: Path) -> tuple[Any, VolumeHeader]:
    with _readable(path):
        image: Any = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):  # NIfTI-2 derives from it
            raise ValueError(f"it holds a {type(image).__name__}")
        kind = image.get_data_dtype()
        if kind.kind not in "iuf":
            raise ValueError(f"its voxels are of type {kind}")
    return image, _checked(path, image.shape, np.asarray(image.affine, float))


def _itk_header(path: Path) -> VolumeHeader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _readable(path):
        reader.ReadImageInformation()
        if reader.GetNumberOfComponents() != 1:
            raise ValueError(f"it has {reader.GetNumberOfComponents()} values a voxel")
    size = reader.GetSize()
    return _checked(path, size, _itk_affine(reader) if len(size) == 3 else np.eye(4))


def _known(path: Path | str) -> Path:
    path = Path(path)
    if not has_suffix(path.name):
        raise UserError(
            f"{path} is not a volume file this program reads; its name must end in: "
            f"{', '.join(SUFFIXES)}."
        )
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file.")
    return path


def read_header(path: Path | str) -> VolumeHeader:
    """The grid of a volume file, without reading its voxels; raises `UserError` for a file that is
    none.
    """
    path = _known(path)
    return _nifti(path)[1] if _is_nifti(path) else _itk_header(path)


def load_volume(path: Path | str) -> Volume:
    """Reads a volume and turns it to RAS; integer files stay integer, all others become float32.

    Raises:
        UserError: A missing, truncated, empty, non-3D or unknown file.
    """
    path = _known(path)
    if _is_nifti(path):
        image, header = _nifti(path)
        with _readable(path):
            array = np.asarray(image.dataobj)
    else:
        header = _itk_header(path)
        with _readable(path):
            array = sitk.GetArrayFromImage(
                sitk.ReadImage(str(path))
            ).T  # SimpleITK's arrays are (Z, Y, X)
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    return to_ras(array, header.source_affine)


def write_like(
    path_out: Path | str, array_ras: np.ndarray, like: Path | str, dtype: Any = np.int16
) -> None:
    """Writes a NIfTI on the grid of another file: same shape, affine and orientation, whichever
    these are.

    The file appears whole or not at all. Integer types are rounded, and clipped to their range.

    Args:
        path_out: A `.nii.gz` or `.nii` file.
        array_ras: (X, Y, Z) on the canonicalised grid of `like`, as `load(like)` has it.
        like: The source of the grid, such as the case's mask.
        dtype: Type on disk: int16 for HU, float32 for differences, uint8 for labels.

    Raises:
        UserError: Values that are not finite, or a disk that is full.
        ValueError: An array of another shape.
    """
    path_out, like = Path(path_out), _known(like)
    header = read_header(like)
    if array_ras.shape != header.shape:
        raise ValueError(f"array has shape {array_ras.shape}, the grid of {like} {header.shape}")
    if not np.isfinite(array_ras).all():
        raise UserError(
            f"{path_out}: the volume to be written holds values that are not finite; nothing was "
            "written."
        )
    kind = np.dtype(dtype)
    array = from_ras(array_ras, header.source_affine)
    if kind.kind in "iu":
        info = np.iinfo(kind)
        array = np.rint(array).clip(info.min, info.max)
    image = _image_like(array.astype(kind), like, header)
    with atomic_path(path_out) as temporary:
        nib.save(image, temporary)


def _image_like(array: np.ndarray, like: Path, header: VolumeHeader) -> Any:
    """A NIfTI image of `array` with the geometry fields of `like`, exactly as they stand where it
    is a NIfTI itself.
    """
    if _is_nifti(like):
        source = _nifti(like)[0]
        fields = (
            source.header.copy()
        )  # qform, sform and their codes: every reader sees the same place as in the source
        fields.extensions.clear()
        fields["cal_min"] = fields["cal_max"] = 0
        fields.set_data_dtype(array.dtype)
        image = type(source)(array, source.affine, fields)
    else:
        image = nib.Nifti1Image(array, header.source_affine)
        image.set_qform(header.source_affine, code=1)
        image.set_sform(header.source_affine, code=1)
        image.header.set_xyzt_units("mm")
        image.set_data_dtype(array.dtype)
    image.header["descrip"] = b"Mask2CT: synthetic"
    return image


def _float(values: T) -> T:
    if isinstance(values, torch.Tensor):
        return values if values.is_floating_point() else values.float()
    return values if values.dtype.kind == "f" else values.astype(np.float32)


def to_unit(hu: T, window: tuple[float, float]) -> T:
    """HU (array or tensor) linearly to [-1, 1], the window's ends at -1 and 1; what lies outside is
    clipped.
    """
    low, high = window
    return ((_float(hu) - low) * (2 / (high - low)) - 1).clip(-1, 1)


def to_hu(unit: T, window: tuple[float, float]) -> T:
    """Undoes `to_unit`: [-1, 1] to HU, without rounding or clipping."""
    low, high = window
    return (_float(unit) + 1) * ((high - low) / 2) + low


def one_hot(mask: np.ndarray, labels: Sequence[int], source: object) -> torch.Tensor:
    """A mask as float32 (K, X, Y, Z), one channel for each of the run's labels in their order.

    Raises:
        UserError: The mask holds a label that the run does not know; `source` names the file.
    """
    check_labels(np.unique(mask).tolist(), labels, source)
    return torch.stack([torch.from_numpy(mask == label) for label in labels]).float()


def check_labels(found: Sequence[int], labels: Sequence[int], source: object) -> None:
    """Raises `UserError` where `found` holds a label that is not among the run's `labels`."""
    unknown = sorted(set(found) - set(labels))
    if unknown:
        many = "labels" if len(unknown) > 1 else "label"
        shown, known = ", ".join(f"{v:g}" for v in unknown[:8]), ", ".join(map(str, labels))
        raise UserError(
            f"{many} {shown} in {source}; this run knows {known}. Relabel the mask, or train on a "
            "cohort that has the label."
        )
