"""DICOM series: reading, choosing, refusing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset

from data.preparation.choice import choose_series, kernel_class
from data.preparation.headers import DamagedHeader, NotDicomImage, read_slice_header
from data.preparation.pixels import Scan, read_stack, to_source_orientation
from data.preparation.series import group_series, stack_slices
from data.preparation.sources import Discovery, discover_sources
from options.prepare_options import SeriesOptions
from tests.chests import SPACING, chest, write_series
from util.cli import UserError


def discover(folder: Path, **options: object) -> Discovery:
    return discover_sources(folder, "dicom", SeriesOptions(**options))  # type: ignore[arg-type]


def scan(folder: Path, uneven: str = "error") -> Scan:
    source = discover(folder).sources[0]
    assert source.series is not None and not source.problem, source.problem
    return read_stack(stack_slices(source.series, uneven))


def remove(name: str) -> object:
    return lambda d, z: delattr(d, name)


def test_voxels_geometry_and_orientation(tmp_path: Path) -> None:
    def varying_rescale(d: Dataset, z: int) -> None:  # every slice has another slope and intercept
        slope, intercept = 1 + z % 2, -1024 - z
        hu = np.frombuffer(d.PixelData, "<i2").astype(int) - 1024
        d.RescaleSlope, d.RescaleIntercept = slope, intercept
        d.PixelData = ((hu - intercept) // slope).astype("<i2").tobytes()

    files = write_series(tmp_path / "a" / "b")
    read = scan(tmp_path)
    assert np.array_equal(read.volume.array, chest()[0]) and read.warnings == ()
    array, affine = to_source_orientation(read.volume, read.source_affine)
    assert np.allclose(affine, read.source_affine)
    assert np.allclose(np.diag(affine), [-SPACING[0], -SPACING[1], SPACING[2], 1])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(f) for f in files])
    assert np.array_equal(array.T, sitk.GetArrayFromImage(reader.Execute()))
    write_series(tmp_path / "c", study="2", edit=varying_rescale)
    difference = scan(tmp_path / "c").volume.array.astype(int) - chest()[0]
    assert set(np.unique(difference)) <= {-1, 0}  # halves of odd values are cut


@pytest.mark.parametrize(("value", "hole"), [(-2000, False), (2000, True)])
def test_padding_is_air_and_tissue_of_its_value_stays(
    tmp_path: Path, value: int, hole: bool
) -> None:
    def pad(d: Dataset, z: int) -> None:
        plane = np.frombuffer(d.PixelData, "<i2").copy().reshape(d.Rows, d.Columns)
        plane[:5, :5] = value
        if hole:
            plane[30, 30] = value
        d.add_new("PixelPaddingValue", "US", value % 2**16)
        d.PixelData = plane.tobytes()

    write_series(tmp_path, edit=pad)
    hu = scan(tmp_path).volume.array
    assert (hu[-5:, -5:] == -1024).all()
    if hole:
        assert (hu[-31, -31] == 2000 - 1024).all()


def test_compressed_slices(tmp_path: Path) -> None:
    from pydicom.uid import RLELossless

    write_series(tmp_path, edit=lambda d, z: d.compress(RLELossless))
    assert np.array_equal(scan(tmp_path).volume.array, chest()[0])


def test_missing_doubled_and_uneven_slices(tmp_path: Path) -> None:
    files = write_series(tmp_path)
    files[20].unlink()
    with pytest.raises(
        UserError, match=r"1 slice is missing, the first after 85\.50 mm.*--uneven resample"
    ):
        scan(tmp_path)
    read = scan(tmp_path, "resample")
    assert read.volume.array.shape == chest()[0].shape and "interpolated" in read.warnings[0]
    middle = chest()[0][..., [19, 21]].mean(-1)
    assert np.abs(read.volume.array[..., 20] - middle).max() <= 0.5
    assert np.array_equal(read.volume.array[..., 21:], chest()[0][..., 21:])
    write_series(
        tmp_path,
        series="1",
        edit=lambda d, z: setattr(d, "ImagePositionPatient", [0, 0, 4.5 * (z - (z == 9))]),
    )
    with pytest.raises(UserError, match="1 slice lies at the place of another one"):
        scan(tmp_path)
    write_series(
        tmp_path,
        series="1",
        edit=lambda d, z: setattr(d, "ImagePositionPatient", [0, 0, 4.5 * z + (z > 9)]),
    )
    with pytest.raises(UserError, match=r"steps between slices run from 4\.5 to 5\.5 mm"):
        scan(tmp_path)


def test_wide_gaps_are_never_interpolated(tmp_path: Path) -> None:
    files = write_series(tmp_path)
    for file in files[10:20]:
        file.unlink()
    with pytest.raises(UserError, match=r"gap of 49\.5 mm is not interpolated"):
        scan(tmp_path, "resample")


def tilted(d: Dataset, z: int) -> None:
    d.ImagePositionPatient = [0, z * 1.5, z * 4.5]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (remove("RescaleSlope"), "no rescale slope"),
        (remove("RescaleIntercept"), "no rescale slope"),
        (remove("ImagePositionPatient"), "does not say where"),
        (tilted, r"gantry tilted by 18\.4 degrees"),
        (lambda d, z: setattr(d, "GantryDetectorTilt", "12"), r"gantry tilted by 12\.0"),
        (lambda d, z: setattr(d, "NumberOfFrames", 4), "several frames"),
    ],
)
def test_series_that_are_no_volume(tmp_path: Path, edit: object, message: str) -> None:
    write_series(tmp_path, edit=edit)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        scan(tmp_path)


def test_truncated_files(tmp_path: Path) -> None:
    files = write_series(tmp_path / "voxels")
    files[5].write_bytes(files[5].read_bytes()[:-900])
    with pytest.raises(UserError, match=rf"{files[5].name} cannot be read: it is truncated"):
        scan(tmp_path / "voxels")
    files = write_series(tmp_path / "header")
    files[0].write_bytes(
        files[0].read_bytes()[:500]
    )  # the last slice but one could be missing without anybody noticing
    source = discover(tmp_path / "header").sources[0]
    assert str(files[0]) in source.problem and "cut off" in source.problem
    with pytest.raises(DamagedHeader):
        read_slice_header(files[0])


def test_what_lies_between(tmp_path: Path) -> None:
    files = write_series(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "x.dcm").write_bytes(files[3].read_bytes())
    (tmp_path / "scans.zip").write_bytes(b"PK")
    everything = discover(tmp_path)
    assert len(everything.sources) == 1 and everything.sources[0].notes == (
        "1 copy of slices already there passed over",
    )
    assert any("1 archives were not unpacked" in text for text in everything.remarks)
    assert any("1 file passed over: no DICOM" in text for text in everything.remarks)
    assert np.array_equal(scan(tmp_path).volume.array, chest()[0])
    with pytest.raises(NotDicomImage):
        read_slice_header(tmp_path / "notes.txt")


def test_series_are_told_apart_and_one_is_chosen(tmp_path: Path) -> None:
    hu = chest()[0]
    write_series(tmp_path, series="1")
    write_series(
        tmp_path,
        series="2",
        hu=hu[:, :, :60],
        edit=lambda d, z: setattr(d, "ConvolutionKernel", "LUNG"),
    )
    write_series(tmp_path, series="3", edit=lambda d, z: setattr(d, "Modality", "MR"))
    write_series(
        tmp_path,
        series="4",
        hu=hu[:, :, :2],
        edit=lambda d, z: setattr(d, "ImageType", ["ORIGINAL", "LOCALIZER"]),
    )
    write_series(tmp_path, series="5", hu=hu[:, :, :9])
    write_series(tmp_path, series="6", edit=lambda d, z: setattr(d, "BodyPartExamined", "HEAD"))
    write_series(
        tmp_path,
        series="7",
        edit=lambda d, z: setattr(d, "ImageOrientationPatient", [1, 0, 0, 0, 0, -1]),
    )
    write_series(tmp_path, series="8", edit=lambda d, z: setattr(d, "SliceThickness", "9"))
    sources = discover(tmp_path).sources
    assert len(sources) == 1 and len(sources[0].left_out) == 7
    reasons = " ".join(reason for _, reason in sources[0].left_out)
    for part in (
        "MR, not CT",
        "localizer",
        "fewer than --min_slices 30",
        "head, not the chest",
        "not axial",
        "fewer slices than",
        "thicker slices than",
    ):
        assert part in reasons, reasons
    assert np.array_equal(scan(tmp_path).volume.array, hu)
    lung = discover(tmp_path, kernel="lung").sources[0]
    assert (
        lung.series is not None
        and lung.series.first.kernel == "LUNG"
        and len(lung.series.headers) == 60
    )


def test_a_study_without_ct(tmp_path: Path) -> None:
    write_series(tmp_path, edit=lambda d, z: setattr(d, "Modality", "MR"))
    source = discover(tmp_path).sources[0]
    assert source.series is None and "its modality is MR, not CT" in source.problem
    assert choose_series([]).chosen is None


def test_what_leaves_a_header(tmp_path: Path) -> None:
    header = read_slice_header(write_series(tmp_path, patient="P9")[0])
    assert dict(header.row) == {
        "KVP": "120",
        "KERNEL": "STANDARD",
        "CONTRAST AGENT": "Yes",
        "SCANNER": "MAKER Model 1",
        "SLICE THICKNESS": "4.5",
        "AGE": "67",
        "SEX": "F",
    }
    assert "ecret" not in repr(header) and "1950" not in repr(header) and "A777" not in repr(header)
    assert len(group_series([header, header])) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("STANDARD", "soft"),
        ("LUNG", "lung"),
        ("BONEPLUS", "lung"),
        ("B30f", "soft"),
        ("Br59d", "lung"),
        ("B70f", "lung"),
        ("I70f 3", "lung"),
        ("FC08", "soft"),
        ("FC51", "lung"),
        ("B", "soft"),
        ("YC", "lung"),
        ("", ""),
        ("XYZ", ""),
    ],
)
def test_kernels(name: str, kind: str) -> None:
    assert kernel_class(name) == kind
