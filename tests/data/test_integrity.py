"""Damaged, detached and exaggerating volume files: what is read is what was written."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from data.integrity import volume_fingerprint
from data.volumes import header_warnings, load_volume, read_header
from util.cli import UserError

SHAPE = (12, 10, 8)
AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
FLIPS = 150
META_HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "ElementSpacing": "1.5 1.5 2",
    "DimSize": "12 10 8",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "x.raw",
}
NRRD_HEADER = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "12 10 8",
    "space directions": "(1.5,0,0) (0,1.5,0) (0,0,2)",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(0,0,0)",
    "data file": "x.raw",
}


def scan() -> np.ndarray:
    """Return noise around lung density."""
    return np.random.default_rng(0).normal(-800, 60, SHAPE).astype(np.int16)


def write_compressed(folder: Path, suffix: str) -> Path:
    """Write the scan compressed, in the format of a suffix."""
    path = folder / f"scan{suffix}"
    if suffix == ".nii.gz":
        nib.save(nib.Nifti1Image(scan(), AFFINE), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(scan().T), str(path), True)
    return path


def write_meta(folder: Path, **changes: str) -> Path:
    """Write a MetaImage header with changed fields, beside its raw data."""
    (folder / "x.raw").write_bytes(scan().T.tobytes())
    fields = {**META_HEADER, **changes}
    path = folder / "scan.mhd"
    path.write_text("".join(f"{key} = {value}\n" for key, value in fields.items()))
    return path


def write_nrrd(folder: Path, **changes: str) -> Path:
    """Write a detached NRRD header with changed fields, beside its raw data."""
    (folder / "x.raw").write_bytes(scan().T.tobytes())
    fields = NRRD_HEADER | {key.replace("_", " "): value for key, value in changes.items()}
    path = folder / "scan.nrrd"
    lines = "".join(f"{key}: {value}\n" for key, value in fields.items())
    path.write_text(f"NRRD0004\n{lines}\n")
    return path


def write_nifti(path: Path, **changes: Any) -> Path:
    """Write a NIfTI whose header fields are changed, whatever they then mean."""
    content = bytearray(nib.Nifti1Image(scan(), AFFINE).to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in changes.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_no_flipped_bit_of_compressed_voxels_is_accepted(tmp_path: Path, suffix: str) -> None:
    path = write_compressed(tmp_path, suffix)
    whole = path.read_bytes()
    expected = load_volume(path).array
    rng = np.random.default_rng(1)
    refused = 0
    for bit in rng.integers(0, len(whole) * 8, FLIPS):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(load_volume(path).array, expected)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > FLIPS * 0.7  # the others lie in text that says nothing of the voxels


@pytest.mark.parametrize("field", ["CompressedDataSize", "CompressedData "])
def test_a_damaged_size_of_compressed_data_is_refused(tmp_path: Path, field: str) -> None:
    """Without the right size the reader returns memory that was never written."""
    path = write_compressed(tmp_path, ".mha")
    path.write_bytes(path.read_bytes().replace(field.encode(), field.swapcase().encode(), 1))
    with pytest.raises(UserError, match=r"scan\.mha cannot be read as a volume"):
        load_volume(path)


def test_a_gzip_of_several_members_is_read(tmp_path: Path) -> None:
    path = write_compressed(tmp_path, ".nii.gz")
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(b"".join(gzip.compress(content[k : k + 500]) for k in range(0, 2400, 500)))
    np.testing.assert_array_equal(load_volume(path).array, scan())
    path.write_bytes(path.read_bytes() + b"rubbish")
    with pytest.raises(UserError, match=r"scan\.nii\.gz cannot be read"):
        load_volume(path)


HUGE = [3, 30000, 30000, 30000, 1, 1, 1, 1]
CLAIMS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nii": (lambda d: write_nifti(d / "a.nii", dim=HUGE), r"claims 54,000,000,000,000 bytes"),
    "nii.gz": (lambda d: write_nifti(d / "a.nii.gz", dim=HUGE), r"claims 54,000,000,000,000"),
    "mhd": (lambda d: write_meta(d, DimSize="30000 30000 30000"), r"claims 54,000,000,000,000"),
    "nrrd": (lambda d: write_nrrd(d, sizes="30000 30000 30000"), r"claims 54,000,000,000,000"),
    "negative nii": (lambda d: write_nifti(d / "a.nii", dim=[3, -2, 9, 9, 1, 1, 1, 1]), "empty"),
    "negative mhd": (lambda d: write_meta(d, DimSize="-12 10 8"), "its sizes are -12 10 8"),
    "zero affine": (
        lambda d: write_nifti(d / "a.nii", srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4),
        "no usable affine",
    ),
    "infinite offset": (
        lambda d: write_nifti(d / "a.nii", srow_x=[1.5, 0, 0, np.inf]),
        "no usable affine",
    ),
    "nan offset": (
        lambda d: write_nifti(d / "a.nii.gz", srow_x=[1.5, 0, 0, np.nan]),
        "no usable affine",
    ),
    "far offset": (
        lambda d: write_nifti(d / "a.nii", srow_x=[1.5, 0, 0, 1e20]),
        "no usable affine",
    ),
    "infinite place of voxels": (
        lambda d: write_nifti(d / "a.nii", vox_offset=np.inf),
        "cannot be read",
    ),
    "infinite offset of mhd": (lambda d: write_meta(d, Offset="inf 0 0"), "Offset is not finite"),
    "nan offset of mhd": (lambda d: write_meta(d, Offset="0 nan 0"), "Offset is not finite"),
    "zero sides of mhd": (lambda d: write_meta(d, ElementSpacing="0 1 1"), "ElementSpacing"),
    "negative sides of mhd": (lambda d: write_meta(d, ElementSpacing="-1 1 1"), "ElementSpacing"),
    "zero sides of nrrd": (
        lambda d: write_nrrd(d, space_directions="(0,0,0) (0,1,0) (0,0,1)"),
        r"scan\.nrrd",
    ),
}


@pytest.mark.parametrize("what", list(CLAIMS))
def test_headers_that_cannot_be_are_refused_before_memory_is_asked_for(
    tmp_path: Path, what: str
) -> None:
    write, message = CLAIMS[what]
    path = write(tmp_path)
    with pytest.raises(UserError, match=message):
        read_header(path)
    with pytest.raises(UserError, match=message):
        load_volume(path)


@pytest.mark.parametrize("write", [write_meta, write_nrrd])
def test_detached_data_lies_beside_its_header(tmp_path: Path, write: Callable[..., Path]) -> None:
    folder = tmp_path / "cohort"
    (folder / "sub").mkdir(parents=True)
    key = "ElementDataFile" if write is write_meta else "data_file"
    np.testing.assert_array_equal(load_volume(write(folder)).array.shape, SHAPE)
    raw = folder / "x.raw"
    for secret in (tmp_path / "secret.raw", folder / "sub" / "x.raw"):
        secret.write_bytes(raw.read_bytes())
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    names = [str(tmp_path / "secret.raw"), "../secret.raw", "/dev/zero", "sub/x.raw", "link.raw"]
    for name in names:
        path = write(folder, **{key: name})
        for read in (read_header, load_volume):
            with pytest.raises(UserError, match="does not lie beside it"):
                read(path)
    with pytest.raises(UserError, match="several files"):
        load_volume(write(folder, **{key: "LIST\nx.raw"}))
    with pytest.raises(UserError, match="several files"):
        load_volume(write(folder, **{key: "x%d.raw 1 8 1"}))
    with pytest.raises(UserError, match=r"absent\.raw, the data file of scan\..* does not exist"):
        load_volume(write(folder, **{key: "absent.raw"}))


def test_a_header_is_not_read_as_another_format(tmp_path: Path) -> None:
    """ITK chooses a reader by content, which would read any path of a NRRD called .mhd."""
    nrrd = write_nrrd(tmp_path, data_file="/dev/zero")
    nrrd.rename(tmp_path / "a.mhd")
    with pytest.raises(UserError, match=r"no ElementDataFile"):
        load_volume(tmp_path / "a.mhd")
    write_meta(tmp_path, ElementDataFile="/dev/zero").rename(tmp_path / "a.nrrd")
    with pytest.raises(UserError, match="does not begin with NRRD"):
        load_volume(tmp_path / "a.nrrd")
    path = write_meta(tmp_path, ElementDataFile="x.raw\nElementDataFile = /dev/zero")
    with pytest.raises(UserError, match="names its data twice"):
        load_volume(path)


def test_detached_data_is_part_of_the_file(tmp_path: Path) -> None:
    path = write_meta(tmp_path)
    before = volume_fingerprint(path)
    status = (tmp_path / "x.raw").stat()
    os.utime(tmp_path / "x.raw", ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert volume_fingerprint(path) != before
    assert volume_fingerprint(write_compressed(tmp_path, ".nii.gz"))[1:] != before[1:]


def test_voxel_sizes_that_are_not_stated_are_warned_of(tmp_path: Path) -> None:
    assert header_warnings(write_nrrd(tmp_path)) == []
    path = write_nrrd(tmp_path, space_directions="none none none")
    assert "states no voxel sizes" in header_warnings(path)[0]
    path = write_meta(tmp_path)
    path.write_text(path.read_text().replace("ElementSpacing = 1.5 1.5 2\n", ""))
    assert "states no voxel sizes" in header_warnings(path)[0]
