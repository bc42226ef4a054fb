"""Copies, patients and acquisitions that share UIDs: told apart by what the files hold."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from data.preparation.pixels import Scan, read_stack
from data.preparation.series import stack_slices
from data.preparation.sources import Discovery, Source, discover_sources
from options.prepare_options import SeriesOptions
from tests.chests import SPACING, chest, write_series
from tests.shared_cases import shared_case
from util.cli import UserError

Change = Callable[[Dataset, int], None]
STEP = SPACING[2]


def discover(folder: Path) -> Discovery:
    return discover_sources(folder, "dicom", SeriesOptions())


def read(source: Source, uneven: str = "error") -> Scan:
    assert source.series is not None and not source.problem, source.problem
    return read_stack(stack_slices(source.series, uneven))


def second_scan(folder: Path, shift: float, edit: Change | None = None) -> None:
    """Write a denser chest under the same series UID, `shift` mm higher."""

    def change(d: Dataset, z: int) -> None:
        d.ImagePositionPatient = [0, 0, z * STEP + shift]
        d.SOPInstanceUID = f"{d.SOPInstanceUID}.2"[-64:]
        d.InstanceNumber = 65 + z
        if edit is not None:
            edit(d, z)

    write_series(folder / "second", edit=change, hu=(chest()[0] + 150).astype(np.int16))


@pytest.mark.parametrize("uneven", ["error", "resample"])
def test_interleaved_acquisitions_of_the_shared_case(uneven: str) -> None:
    source = discover(shared_case("02_two_acq_half") / "in").sources[0]
    scan = read(source, uneven)
    assert np.array_equal(scan.volume.array, chest()[0])
    assert "2 acquisitions" in scan.warnings[0]
    ((title, reason),) = source.left_out
    assert title == "series 3, acquisition 2 of 2 by acquisition number (CT, STANDARD, 64 slices)"
    assert "listed after series 3, acquisition 1 of 2" in reason


@pytest.mark.parametrize("shift", [0.0, STEP / 2, 1.0])
@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("AcquisitionNumber", "1", "2"),
        ("AcquisitionTime", "101500.5", "101730"),
        ("AcquisitionDateTime", "20200101101500", "20200101101730"),
        ("TemporalPositionIdentifier", "1", "2"),
        ("KVP", "80", "140"),
        ("SliceThickness", "4", "6"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "AXIAL"]),
        ("ConvolutionKernel", "B30f", "B70f"),
        ("InstanceNumber", None, None),
    ],
)
def test_acquisitions_of_one_series_are_taken_apart(
    tmp_path: Path, name: str, first: object, second: object, shift: float
) -> None:
    def set_to(value: object) -> Change:
        return lambda d, z: None if value is None else setattr(d, name, value)

    write_series(tmp_path, edit=set_to(first))
    second_scan(tmp_path, shift, set_to(second))
    source = discover(tmp_path).sources[0]
    assert len(source.left_out) == 1
    for uneven in ("error", "resample"):
        assert np.array_equal(read(source, uneven).volume.array, chest()[0])


@pytest.mark.parametrize("uneven", ["error", "resample"])
def test_mixed_slices_that_nothing_distinguishes_are_refused(tmp_path: Path, uneven: str) -> None:
    def unnumbered(d: Dataset, z: int) -> None:
        del d.InstanceNumber

    write_series(tmp_path, edit=unnumbered)
    second_scan(tmp_path, 0, unnumbered)
    with pytest.raises(UserError, match=r"64 slices lie at the place.*1_000\.dcm differ there"):
        read(discover(tmp_path).sources[0], uneven)


def test_interleaved_slices_that_nothing_distinguishes_are_warned_of(tmp_path: Path) -> None:
    def unnumbered(d: Dataset, z: int) -> None:
        del d.InstanceNumber

    write_series(tmp_path, edit=unnumbered)
    assert read(discover(tmp_path).sources[0]).warnings == ()
    second_scan(tmp_path, STEP / 2, unnumbered)
    (warning,) = read(discover(tmp_path).sources[0]).warnings
    assert warning.startswith("every second slice is brighter (by 150 HU on average)")


@pytest.mark.parametrize("uneven", ["error", "resample"])
def test_acquisitions_that_overlap_in_part_are_refused(tmp_path: Path, uneven: str) -> None:
    write_series(tmp_path, edit=lambda d, z: setattr(d, "AcquisitionNumber", "1"))
    second_scan(tmp_path, 50 * STEP, lambda d, z: setattr(d, "AcquisitionNumber", "2"))
    with pytest.raises(UserError, match="2 acquisitions that overlap only in part"):
        read(discover(tmp_path).sources[0], uneven)


@pytest.mark.parametrize(
    "edit",
    [
        lambda d, z: setattr(d, "AcquisitionNumber", 1 + z // 4),  # a turn of the tube each
        lambda d, z: setattr(d, "AcquisitionNumber", 1 + z // 2 % 2),  # turns that interlock
        lambda d, z: setattr(d, "AcquisitionTime", f"10{59 - z // 2:02d}00"),  # head first
        lambda d, z: setattr(d, "AcquisitionNumber", 1) if z % 9 else None,
        lambda d, z: setattr(d, "InstanceNumber", (z * 29) % 67),
    ],
)
def test_one_acquisition_stays_whole(tmp_path: Path, edit: Change) -> None:
    write_series(tmp_path, edit=edit)
    (source,) = discover(tmp_path).sources
    assert source.left_out == () and np.array_equal(read(source).volume.array, chest()[0])


def test_numbers_without_order_are_noticed(tmp_path: Path) -> None:
    write_series(tmp_path, edit=lambda d, z: setattr(d, "InstanceNumber", (z * 29) % 67))
    assert "do not follow their places" in " ".join(read(discover(tmp_path).sources[0]).warnings)


def test_two_patients_with_the_same_uids_stay_two(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = discover(shared_case("03_same_uids") / "in")
    assert [source.patient for source in found.sources] == ["P1", "P2"]
    assert len({source.identity for source in found.sources}) == 2
    assert {source.names for source in found.sources} == {("P1",), ("P2",)}
    for source in found.sources:
        assert {h.path.parent.name for h in source.series.headers} == {source.patient}  # type: ignore[union-attr]
        assert read(source).volume.shape == chest()[0].shape
    assert "P1/1_000.dcm and" in caplog.text and "P2/1_000.dcm have one SOP" in caplog.text
    assert any("64 files have the SOPInstanceUID of a file of another" in r for r in found.remarks)


def test_slices_with_cut_uids_are_all_read(caplog: pytest.LogCaptureFixture) -> None:
    (source,) = discover(shared_case("35b_uid_cut_nonum") / "in").sources
    scan = read(source)
    assert np.array_equal(scan.volume.array, chest()[0])
    assert "32 slices share the UID of another one" in scan.warnings[0] and not source.notes
    assert "1_000.dcm and" in caplog.text and "1_017.dcm have one SOPInstanceUID" in caplog.text


def test_a_copy_may_be_compressed_otherwise(tmp_path: Path) -> None:
    def compress(d: Dataset, z: int) -> None:
        d.compress(RLELossless, generate_instance_uid=False)

    write_series(tmp_path / "a")
    write_series(tmp_path / "b", edit=compress)
    (source,) = discover(tmp_path).sources
    assert source.notes == ("64 copies of slices already there passed over",)
    assert np.array_equal(read(source).volume.array, chest()[0])


def test_the_same_uid_and_place_with_other_voxels_is_no_copy(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", hu=(chest()[0] + 9).astype(np.int16))
    (source,) = discover(tmp_path).sources
    with pytest.raises(UserError, match=r"/a/1_000\.dcm and .*/b/1_000\.dcm differ there"):
        read(source, "resample")


def test_slices_without_a_patient_belong_to_the_only_one(tmp_path: Path) -> None:
    write_series(tmp_path, edit=lambda d, z: delattr(d, "PatientID") if z % 2 else None)
    (source,) = discover(tmp_path).sources
    assert source.patient == "P1" and len(source.series.headers) == 64  # type: ignore[union-attr]


def test_one_folder_of_osic_with_two_patients(tmp_path: Path) -> None:
    write_series(tmp_path / "train" / "ID1" / "a")
    write_series(tmp_path / "train" / "ID1" / "b", patient="P2")
    (source,) = discover_sources(tmp_path, "osic", SeriesOptions()).sources
    assert "different patient ids" in source.problem
