"""Volume files: reading, writing on the grid of a source file, labels and the HU window."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from data.geometry import (
    Shape,
    Volume,
    axes_agree,
    canonical_grid,
    format_sides,
    from_ras,
    grids_match,
    to_ras,
)
from data.integrity import (
    VoxelData,
    check_claim,
    find_voxel_data,
    is_nifti,
    read_to_end,
    verify_checksum,
)
from util.cli import UserError
from util.files import atomic_path

if TYPE_CHECKING:  # slow to import, and not needed to read files
    import torch

SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
READ_ERRORS = (
    OSError, EOFError, ValueError, RuntimeError, LookupError, ArithmeticError, TypeError,
    AttributeError, MemoryError, struct.error, zlib.error, ImageFileError, HeaderDataError,
)  # fmt: skip
UNIT_BITS = 7  # of the field xyzt_units of NIfTI
MM_UNITS = (0, 2)  # not stated, and mm
SIDES_MM = (0.05, 50.0)  # of voxels
MAX_ORIGIN_MM = 1e6
MAX_MASK_LABELS = 255  # more different values are those of a scan
MIN_DETERMINANT = 1e-3  # of the axes' directions: below it they lie in a plane
# Fields of a NIfTI header that say where its voxels lie; nothing else of a source is copied.
GRID_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip

T = TypeVar("T", np.ndarray, "torch.Tensor")


@dataclass(frozen=True)
class VolumeHeader:
    """The grid of a file.

    Attributes:
        shape: (X, Y, Z) after canonicalisation to RAS.
        affine: (4, 4) after canonicalisation to RAS, voxel index to RAS mm.
        source_affine: (4, 4) as it stands in the file.
    """

    shape: Shape
    affine: np.ndarray
    source_affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Sides of a voxel, mm."""
        x, y, z = voxel_sizes(self.affine).tolist()
        return x, y, z


def has_suffix(name: str) -> bool:
    """Return whether a file name ends as a volume's does."""
    return name.lower().endswith(SUFFIXES)


def strip_suffix(name: str) -> str:
    """Return `name` without a known volume suffix; nothing else is cut, so `P1.2` stays."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn all that a reader raises for a damaged file into one message."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())[-160:] or type(error).__name__
        raise UserError(
            f"{path} cannot be read as a volume ({reason}). It is truncated, damaged or not of its "
            f"suffix's format; copy or export it again (formats: {', '.join(SUFFIXES)})."
        ) from None


def _check_header(path: Path, shape: Sequence[int], affine: np.ndarray) -> VolumeHeader:
    if min(shape, default=0) < 1:
        raise UserError(f"{path} is empty: its shape is {tuple(shape)}. Export it again.")
    if sum(length > 1 for length in shape) == 2:
        raise UserError(
            f"{path} is a 2D image {tuple(shape)}, such as an X-ray or a single slice. The "
            "networks are three-dimensional: they need slices and the distance between them. "
            "Save the whole CT or MR volume; projection images cannot be used."
        )
    if len(shape) != 3:
        raise UserError(
            f"{path} has {len(shape)} dimensions {tuple(shape)}; a volume has three. Save a single "
            "3D volume."
        )
    sides = voxel_sizes(affine)
    is_finite = bool(np.isfinite(affine).all() and np.abs(affine[:3, 3]).max() <= MAX_ORIGIN_MM)
    if (
        not is_finite
        or not sides.all()
        or abs(np.linalg.det(affine[:3, :3] / sides)) < MIN_DETERMINANT
    ):
        raise UserError(
            f"{path} has no usable affine (a voxel side is zero, or a number is not finite or far "
            "too large). Repair its header."
        )
    if sides.min() < SIDES_MM[0] or sides.max() > SIDES_MM[1]:
        raise UserError(
            f"{path} has voxels of {format_sides(sides)} mm, and a side lies between "
            f"{SIDES_MM[0]:g} and {SIDES_MM[1]:g} mm. Is its header in metres or micrometres? "
            "Write it again in mm."
        )
    return VolumeHeader(*canonical_grid(shape, affine), source_affine=affine)


def _open_nifti(path: Path) -> tuple[Any, VolumeHeader]:
    """Open a NIfTI file without reading its voxels; return nibabel's image and the grid."""
    with _readable(path):
        image: Any = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):  # NIfTI-2 derives from it
            raise ValueError(f"it holds a {type(image).__name__}")
        dtype = image.get_data_dtype()
        if dtype.kind not in "iuf":
            raise ValueError(f"its voxels are of type {dtype}")
        header = _check_header(path, image.shape, np.asarray(image.affine, float))
        _check_forms(path, image.header)
        voxels = 1
        for length in image.shape:
            voxels *= int(length)
        check_claim(path, find_voxel_data(path), voxels * dtype.itemsize)
    return image, header


def _check_forms(path: Path, fields: Any) -> None:
    """Raise `UserError` where a NIfTI header contradicts itself.

    Programs choose between sform and qform differently, so they would see different volumes.
    """
    code = int(fields["xyzt_units"]) & UNIT_BITS
    if code not in MM_UNITS:
        unit = {1: "metres", 3: "micrometres"}.get(code, f"an unknown unit ({code})")
        raise UserError(f"{path} gives lengths in {unit}, not in mm. Write its header again in mm.")
    if not (int(fields["qform_code"]) and int(fields["sform_code"])):
        return
    qform = fields.get_qform()
    sform = fields.get_sform()
    if not axes_agree(qform, sform):
        raise UserError(
            f"{path} contradicts itself: by its sform the axes run to "
            f"{_format_axes(sform)} with voxels of {format_sides(voxel_sizes(sform))} mm, by its "
            f"qform to {_format_axes(qform)} with {format_sides(voxel_sizes(qform))} mm, and "
            "programs differ in which they use. Find out which is right, and write the header "
            "again with both alike (nibabel: set_sform, set_qform)."
        )


def _format_axes(affine: np.ndarray) -> str:
    return "".join(str(axis) for axis in nib.aff2axcodes(affine))


def header_warnings(path: Path | str) -> list[str]:
    """Return what a person should know of a header that can be read.

    Raises:
        UserError: It cannot be read.
    """
    path = _check_path(path)
    if is_nifti(path):
        return _form_warnings(path, _open_nifti(path)[0].header)
    return _grid_warnings(path, _read_itk_header(path)[1])


def _grid_warnings(path: Path, data: VoxelData) -> list[str]:
    if data.has_grid:
        return []
    return [f"{path} states no voxel sizes; 1 mm is assumed. Check them."]


def _form_warnings(path: Path, fields: Any) -> list[str]:
    """Return what a person should know of the forms of a NIfTI header."""
    has_qform = int(fields["qform_code"]) > 0
    has_sform = int(fields["sform_code"]) > 0
    if not has_qform and not has_sform:
        return [
            f"{path} has neither sform nor qform; its orientation and place are assumed, so left "
            "and right may be exchanged. Check them, and write the header again."
        ]
    if has_qform and has_sform:
        sform = fields.get_sform()
        if not grids_match(fields.get_data_shape(), sform, fields.get_qform()):
            return [
                f"{path}: sform and qform put the volume at different places; the sform is used. "
                "Write the header again with both alike."
            ]
    return []


def _read_itk_header(path: Path) -> tuple[VolumeHeader, VoxelData]:
    """Return the grid of a MetaImage or NRRD file, and where its voxels lie."""
    reader = _itk_reader(path)
    with _readable(path):
        data = find_voxel_data(path)
        reader.ReadImageInformation()
        if reader.GetNumberOfComponents() != 1:
            raise ValueError(f"it has {reader.GetNumberOfComponents()} values per voxel")
        size = reader.GetSize()
        header = _check_header(path, size, _itk_affine(reader) if len(size) == 3 else np.eye(4))
        check_claim(path, data, data.claimed)
    return header, data


def _itk_reader(path: Path) -> Any:
    """Return a reader that takes a file for what its suffix says, and for nothing else."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() == ".nrrd" else "MetaImageIO")
    reader.SetFileName(str(path))
    return reader


def _itk_affine(reader: Any) -> np.ndarray:
    """Return index to RAS mm of a SimpleITK reader, which uses LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * np.asarray(reader.GetSpacing())
    affine[:3, 3] = reader.GetOrigin()
    return LPS_TO_RAS @ affine


def _check_path(path: Path | str) -> Path:
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
    """Read the grid of a volume file without its voxels; raise `UserError` where this fails."""
    path = _check_path(path)
    return _open_nifti(path)[1] if is_nifti(path) else _read_itk_header(path)[0]


@dataclass(frozen=True)
class CheckedVolume:
    """A volume, and what a person should know of its header."""

    volume: Volume
    warnings: list[str]


def load_volume(path: Path | str) -> Volume:
    """Read a volume and turn it to RAS; integer files stay integer, all others become float32.

    Checksums of compressed files are compared (see `data.integrity`).

    Raises:
        UserError: The file is missing, truncated, damaged, empty, not 3D or of an unknown format.
    """
    return load_checked(path).volume


def load_checked(path: Path | str) -> CheckedVolume:
    """Read a volume as `load_volume` does, and what `header_warnings` says, in one go."""
    path = _check_path(path)
    if is_nifti(path):
        image, header = _open_nifti(path)
        warnings = _form_warnings(path, image.header)
        with _readable(path):
            array = _read_nifti(path, image)
    else:
        header, data = _read_itk_header(path)
        warnings = _grid_warnings(path, data)
        with _readable(path):
            verify_checksum(data)
            array = sitk.GetArrayFromImage(_itk_reader(path).Execute()).T  # from (Z, Y, X)
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    return CheckedVolume(to_ras(array, header.source_affine), warnings)


def _read_nifti(path: Path, image: Any) -> np.ndarray:
    """Return the voxels of a NIfTI file; a gzip is read to its end, where its checksum stands."""
    if not path.name.lower().endswith(".gz"):
        return np.asarray(image.dataobj)
    with gzip.open(path, "rb") as stream:
        stored = image.dataobj
        spec = (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)
        array = np.asarray(type(stored)(stream, spec))
        read_to_end(stream)
    return array


def write_like(
    path_out: Path | str,
    array_ras: np.ndarray,
    like: Path | str,
    dtype: Any = np.int16,
    window: tuple[float, float] | None = None,
    description: str = "",
) -> None:
    """Write a NIfTI on the grid of another file: same shape, affine and orientation.

    The file appears complete or not at all. Integer types are rounded, and clipped to their range.

    Args:
        path_out: A `.nii.gz` or `.nii` file.
        array_ras: (X, Y, Z) on the canonicalised grid of `like`, as `load_volume(like)` has it.
        like: The source of the grid, such as the case's mask.
        dtype: Type on disk: int16 for HU, float32 for differences, uint8 for labels.
        window: Values that a viewer shows as black and white (`cal_min`, `cal_max`); None leaves
            the choice to the viewer.
        description: What the volume is, at most 79 ASCII characters (`descrip`).

    Raises:
        UserError: A value is not finite, or the disk is full.
        ValueError: The array has another shape.
    """
    path_out = Path(path_out)
    like = _check_path(like)
    header = read_header(like)
    if array_ras.shape != header.shape:
        raise ValueError(f"array has shape {array_ras.shape}, the grid of {like} {header.shape}")
    if not np.isfinite(array_ras).all():
        raise UserError(
            f"{path_out}: the volume to be written holds values that are not finite; nothing was "
            "written."
        )
    dtype = np.dtype(dtype)
    array = from_ras(array_ras, header.source_affine)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = np.rint(array).clip(limits.min, limits.max)
    image = _image_like(array.astype(dtype), like, header)
    if window is not None:
        image.header["cal_min"], image.header["cal_max"] = window
    if description:
        image.header["descrip"] = description
    with atomic_path(path_out) as temporary:
        nib.save(image, temporary)


def _image_like(array: np.ndarray, like: Path, header: VolumeHeader) -> Any:
    """Return a NIfTI image of `array` with the geometry of `like`, and nothing else of it.

    From a NIfTI the fields qform, sform and their codes are copied, so that every reader sees the
    same place as in the source. Names and comments in a source's header stay behind.
    """
    if is_nifti(like):
        source = _open_nifti(like)[0]
        fields = type(source.header)(endianness=source.header.endianness)
        for name in GRID_FIELDS:
            fields[name] = source.header[name]
        fields.set_data_shape(array.shape)
        fields["pixdim"][:4] = source.header["pixdim"][:4]
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


def _as_float(values: T) -> T:
    if isinstance(values, np.ndarray):
        return values if values.dtype.kind == "f" else values.astype(np.float32)
    return values if values.is_floating_point() else values.float()


def to_unit(hu: T, window: tuple[float, float]) -> T:
    """Map the window of HU (array or tensor) linearly to [-1, 1]; clip what lies outside."""
    low, high = window
    return ((_as_float(hu) - low) * (2 / (high - low)) - 1).clip(-1, 1)


def to_hu(unit: T, window: tuple[float, float]) -> T:
    """Undo `to_unit`: map [-1, 1] to HU, without rounding or clipping."""
    low, high = window
    return (_as_float(unit) + 1) * ((high - low) / 2) + low


def label_channels(mask: np.ndarray, labels: Sequence[int], source: object) -> torch.Tensor:
    """Return the channel of each voxel in a one-hot mask of the run, uint8 (X, Y, Z).

    Args:
        mask: Labels, uint8 (X, Y, Z).
        labels: The labels of the run, one per channel.
        source: File of the mask, for the message.

    Raises:
        UserError: The mask holds a label that the run does not have.
    """
    import torch

    unknown = len(labels)
    channel = np.full(256, unknown, np.uint8)
    channel[list(labels)] = np.arange(len(labels))
    channels = channel[mask]
    if channels.max() == unknown:
        check_labels(np.unique(mask[channels == unknown]).tolist(), labels, source)
    return torch.from_numpy(channels)


def check_labels(mask_labels: Sequence[int], run_labels: Sequence[int], source: object) -> None:
    """Raise `UserError` where a mask holds a label that the run does not have.

    Args:
        source: File of the mask, for the message.
    """
    unknown = sorted(set(mask_labels) - set(run_labels))
    if unknown and (unknown[0] < 0 or len(unknown) > MAX_MASK_LABELS):
        raise UserError(
            f"{source} is not a mask: it holds {len(set(mask_labels))} different values from "
            f"{min(mask_labels):g} to {max(mask_labels):g}. Give the label map of the scan, not "
            "the scan."
        )
    if unknown:
        noun = "labels" if len(unknown) > 1 else "label"
        raise UserError(
            f"{noun} {', '.join(f'{v:g}' for v in unknown[:8])} in {source}; the run has only "
            f"{', '.join(map(str, run_labels))}. Relabel the mask, or train on a cohort that has "
            "the label."
        )
