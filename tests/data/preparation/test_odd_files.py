"""Odd DICOM files, tables and values: one of them never stops the preparation of the others."""

from __future__ import annotations

import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from data.preparation.case import CaseTask, prepare_case
from data.preparation.headers import DamagedHeader, read_slice_header
from data.preparation.join import join_table
from data.preparation.masks import MaskPlan
from data.preparation.pixels import read_stack
from data.preparation.series import stack_slices
from data.preparation.sources import Source, discover_sources
from options.prepare_options import SeriesOptions
from tests.chests import SPACING, chest, write_series
from tests.commands import Outcome, command
from tests.shared_cases import shared_case
from util.cli import UserError

Damage = Callable[[bytes], bytes]


def prepare(source: Path, out: Path, *words: str | Path) -> Outcome:
    return command("scripts/prepare_data.py", source, out, "--jobs", "0", *words)


def element(content: bytes, group: int, number: int) -> int:
    """Return where the value of an explicit element with a short length begins."""
    return content.index(struct.pack("<HH", group, number)) + 8


def three_bytes(content: bytes) -> bytes:
    start = element(content, 0x0028, 0x0010)  # Rows
    cut = content[: start - 2] + struct.pack("<H", 3) + content[start : start + 2] + b"\0"
    return cut + content[start + 2 :]


def huge_number(content: bytes) -> bytes:
    start = element(content, 0x0028, 0x0030)  # PixelSpacing, "6.0\\6.0 "
    length = struct.unpack("<H", content[start - 2 : start])[0]
    return content[:start] + b"1e400\\1 "[:length].ljust(length) + content[start + length :]


def deeply_nested(content: bytes) -> bytes:
    item = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    start = content.index(b"\x08\x00\x50\x00")  # before the accession number
    return content[:start] + item * 3000 + content[start:]


def without_end(content: bytes) -> bytes:
    return content[:700]


@pytest.mark.parametrize("damage", [three_bytes, huge_number, deeply_nested, without_end])
def test_a_damaged_file_fails_its_own_case_alone(tmp_path: Path, damage: Damage) -> None:
    for patient in ("P1", "P2"):
        files = write_series(tmp_path / "in" / patient, patient=patient, study=patient)
    files[30].write_bytes(damage(files[30].read_bytes()))
    done = prepare(tmp_path / "in", tmp_path / "out")
    assert done.code == 3 and "Traceback" not in done.text, done.text
    assert f"{files[30].name} is damaged: " in done.text
    assert "1 case is ready" in done.text
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "is damaged: " in report and "P2" not in report


def test_a_damaged_file_among_several_studies(tmp_path: Path) -> None:
    for patient in ("P1", "P2"):
        write_series(tmp_path / "in", patient=patient, study=patient, series=patient)
    # Its series can be read: only that one is affected.
    odd = tmp_path / "in" / "P2_034.dcm"
    good = odd.read_bytes()
    odd.write_bytes(three_bytes(good))
    first, second = discover_sources(tmp_path / "in", "dicom", SeriesOptions()).sources
    assert {first.patient: bool(first.problem), second.patient: bool(second.problem)} == {
        "P1": False,
        "P2": True,
    }
    # Nothing of it can be read: both are warned of it.
    odd.write_bytes(good)
    (tmp_path / "in" / "odd.dcm").write_bytes(without_end(good)[:300])
    found = discover_sources(tmp_path / "in", "dicom", SeriesOptions())
    assert not any(source.problem for source in found.sources)
    assert all("1 damaged file lies beside" in source.warnings[0] for source in found.sources)
    assert "odd.dcm is damaged: " in str(found.unreadable[0])
    done = prepare(tmp_path / "in", tmp_path / "out")
    assert done.code == 3 and "2 cases (2 new), 2 with warnings" in done.text
    assert "odd.dcm" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def fail(error: Exception, *words: object, **options: object) -> None:
    raise error


def test_every_error_of_the_reader_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_series(tmp_path)[0]
    for error, words in (
        (zlib.error("x"), "compressed part is damaged"),
        (MemoryError(), "more memory"),
        (OverflowError("x"), "too large"),
        (RecursionError("x"), "nested too deeply"),
        (LookupError("Secret^Sally"), r"damaged element \(LookupError\)"),
    ):
        monkeypatch.setattr(pydicom, "dcmread", partial(fail, error))
        with pytest.raises(DamagedHeader, match=words) as damaged:
            read_slice_header(file)
        assert "Sally" not in str(damaged.value)


def test_a_broken_deflated_file(tmp_path: Path) -> None:
    def deflate(d: Dataset, z: int) -> None:
        d.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    file = write_series(tmp_path, edit=deflate)[0]
    content = file.read_bytes()
    file.write_bytes(content[:400] + b"\xff" * 50 + content[450:])
    with pytest.raises(DamagedHeader, match="is damaged: "):
        read_slice_header(file)


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("KVP", b"abc"),
        ("SliceThickness", b"thin"),
        ("GantryDetectorTilt", b"none"),
        ("InstanceNumber", b"first"),
        ("AcquisitionNumber", b"x"),
    ],
)
def test_text_in_a_number_that_the_voxels_do_not_need(
    tmp_path: Path, tag: str, text: bytes
) -> None:
    def write_text(d: Dataset, z: int) -> None:
        setattr(d, tag, "1" * len(text))

    for file in write_series(tmp_path, edit=write_text):
        content = file.read_bytes()
        start = content.index(struct.pack("<HH", *_TAGS[tag])) + 8
        file.write_bytes(content[:start] + text + content[start + len(text) :])
    (source,) = discover_sources(tmp_path, "dicom", SeriesOptions()).sources
    assert source.series is not None and not source.problem, source.problem
    assert np.array_equal(read_stack(stack_slices(source.series)).volume.array, chest()[0])


_TAGS = {
    "KVP": (0x0018, 0x0060),
    "SliceThickness": (0x0018, 0x0050),
    "GantryDetectorTilt": (0x0018, 0x1120),
    "InstanceNumber": (0x0020, 0x0013),
    "AcquisitionNumber": (0x0020, 0x0012),
}


def test_one_huge_instance_number(tmp_path: Path) -> None:
    write_series(
        tmp_path, edit=lambda d, z: setattr(d, "InstanceNumber", 2**31 - 1) if z == 63 else None
    )
    (source,) = discover_sources(tmp_path, "dicom", SeriesOptions()).sources
    assert source.series is not None
    assert stack_slices(source.series).warnings == ()


def test_a_size_that_no_slice_has(tmp_path: Path) -> None:
    file = write_series(tmp_path, edit=lambda d, z: setattr(d, "Rows", 60000))[0]
    with pytest.raises(DamagedHeader, match="60000 x 60 pixels"):
        read_slice_header(file)


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    nib.save(nib.Nifti1Image(chest()[0], np.diag([*SPACING, 1.0])), source / "CT².nii.gz")
    shutil.copy(source / "CT².nii.gz", source / os.fsdecode(b"\xff.nii.gz"))
    done = prepare(source, tmp_path / "out")
    assert done.code == 3 and "udcff.nii.gz has a name that is not UTF-8; rename it" in done.text
    assert len(list((tmp_path / "out" / "img").iterdir())) == 1


# --- values that are not HU ---


def raw(d: Dataset, z: int) -> None:
    """Store HU + 1024 without a rescale, and -2000 in the corners, as some exports do."""
    plane = np.frombuffer(d.PixelData, "<i2").reshape(d.Rows, d.Columns).copy()
    plane[:10, :10] = -2000
    plane[-10:, -10:] = -2000
    d.PixelData = plane.tobytes()
    d.RescaleIntercept = 0


def padded(d: Dataset, z: int) -> None:
    raw(d, z)
    d.RescaleIntercept = -1024


@pytest.mark.parametrize("has_tag", [True, False])
def test_raw_values_are_refused(tmp_path: Path, has_tag: bool) -> None:
    def edit(d: Dataset, z: int) -> None:
        raw(d, z)
        if has_tag:
            d.add_new("PixelPaddingValue", "US", 2**16 - 2000)

    write_series(tmp_path / "in", edit=edit)
    done = prepare(tmp_path / "in", tmp_path / "out")
    assert done.code == 3 and "not in HU" in done.text, done.text
    assert not list((tmp_path / "out" / "img").iterdir())


@pytest.mark.parametrize(
    ("outside", "message"), [(-2000, "of its voxels are air"), (-1000, "have a median of")]
)
def test_raw_values_of_volumes_with_masks_are_refused(
    tmp_path: Path, outside: int, message: str
) -> None:
    hu, labels = chest()
    volume = (hu + 1024).astype(np.int16)
    volume[:6] = outside
    affine = np.diag([*SPACING, 1.0])
    for folder, array in (("in", volume), ("masks", labels)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(array, affine), tmp_path / folder / "a.nii.gz")
    done = prepare(tmp_path / "in", tmp_path / "out", "--mask_dir", tmp_path / "masks")
    assert done.code == 3 and "a.nii.gz is not in HU" in done.text and message in done.text
    assert not list((tmp_path / "out" / "img").iterdir())


def test_the_shared_case_of_raw_values() -> None:
    case = shared_case("40_raw_pad2000") / "cohort"
    (source, *others) = discover_sources(case, "volumes", SeriesOptions()).sources
    task = CaseTask("a", source, Path("nowhere"), MaskPlan("load", source.mask))
    assert len(others) == 3
    with pytest.raises(UserError, match=r"case001\.nii\.gz is not in HU"):
        prepare_case(task)


def test_padding_outside_the_field_of_view_is_no_fault(tmp_path: Path) -> None:
    write_series(tmp_path / "in", edit=padded)
    done = prepare(tmp_path / "in", tmp_path / "out")
    assert done.code == 0, done.text


def test_a_case_with_an_offset_of_its_own_is_named(tmp_path: Path) -> None:
    for i in range(4):
        offset = 250 * (chest()[1] > 0) * (i == 3)
        write_series(
            tmp_path / "in" / f"P{i}",
            patient=f"P{i}",
            study=str(i),
            hu=(chest()[0] + offset).astype(np.int16),
        )
    done = prepare(tmp_path / "in", tmp_path / "out", "--ids", "keep")
    assert done.code == 0, done.text
    assert "P3: the median of the lungs is -58" in done.text
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "the median of the lungs is −58" in report


# --- tables ---


def test_damaged_tables_end_with_a_message(tmp_path: Path) -> None:
    sources = [Source("a", "a", ("a",))]
    path = tmp_path / "t.xlsx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook")
    contents = [b"", b"PK\x03\x04", path.read_bytes(), b"\xff\xfe\x00", b'id,AGE\n"a', b"\0\0\n"]
    for name in ("t.xlsx", "t.csv", "t.XLSX"):
        for content in contents:
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError):
                join_table(tmp_path / name, sources)
