"""Volumes and masks as DICOM, read back."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from data.dicom_export import DicomStudy, chest_segments, to_frames
from data.volumes import load_volume
from mask2ct.volume import Volume
from util.cli import UserError

SIZE = (20, 24, 9)


def write_mask(path: Path, shear: float = 0.0) -> Path:
    """A tilted grid in LPS order with two lungs, an airway and another label."""
    directions, _ = np.linalg.qr([[-0.98, 0.1, 0.05], [-0.1, -0.97, 0.02], [0.03, -0.02, 1.0]])
    directions *= np.sign(np.diag(directions)) * [-1, -1, 1]
    affine = np.eye(4)
    affine[:3, :3] = directions * [0.703125, 0.8, 2.5]
    affine[:3, 3] = [123.4567, 88.1234, -700.3333]
    affine[0, 1] += shear
    labels = np.zeros(SIZE, np.uint8)
    labels[2:8, 3:20, 1:8], labels[11:18, 3:20, 1:8] = 1, 2
    labels[9:10, 5:6], labels[0, 0] = 3, 9
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    return write_mask(tmp_path / "JaneDoe_007.nii.gz")


def test_a_series_is_read_back_with_its_voxels_and_place(mask: Path, tmp_path: Path) -> None:
    study = DicomStudy.from_mask(mask)
    hu = np.random.default_rng(0).normal(-500, 900, study.labels.shape)
    folder = study.write_series(tmp_path / "series", hu, "DRUG = a\\b, über", 2)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(image, tmp_path / "back.nii.gz")
    back = load_volume(tmp_path / "back.nii.gz")
    assert np.array_equal(back.array, np.rint(hu))
    assert np.abs(back.affine - study.affine).max() < 1e-4  # NIfTI's own rounding
    first = pydicom.dcmread(folder / "slice_0001.dcm")
    assert list(first.ImageType[:2]) == ["DERIVED", "SECONDARY"]
    assert first.ContentQualification == "RESEARCH"
    assert first.PatientName == "SYNTHETIC" and first.PatientID == "SYNTHETIC"
    assert first.SeriesDescription == "SYNTHETIC DRUG = a/b, über"


def test_uids_follow_from_the_content_and_series_share_a_study(mask: Path, tmp_path: Path) -> None:
    study = DicomStudy.from_mask(mask, "run, seed 0")
    hu = np.zeros(study.labels.shape)
    folders = [study.write_series(tmp_path / name, hu, "A", 1) for name in ("one", "again")]
    folders.append(study.write_series(tmp_path / "other", hu + 1, "A", 1))
    one, again, other = (pydicom.dcmread(folder / "slice_0001.dcm") for folder in folders)
    assert one.SOPInstanceUID == again.SOPInstanceUID != other.SOPInstanceUID
    assert one.SeriesInstanceUID != other.SeriesInstanceUID
    assert one.StudyInstanceUID == other.StudyInstanceUID
    assert one.FrameOfReferenceUID == other.FrameOfReferenceUID
    root = pydicom.uid.PYDICOM_ROOT_UID
    assert all(uid.startswith(root) for uid in (one.SOPInstanceUID, one.StudyInstanceUID))
    files = sorted(folders[0].iterdir())
    assert len({pydicom.dcmread(file).SOPInstanceUID for file in files}) == SIZE[2]


def test_a_mask_becomes_a_segmentation_of_the_series(mask: Path, tmp_path: Path) -> None:
    import highdicom

    study = DicomStudy.from_mask(mask)
    series = study.write_series(tmp_path / "series", np.zeros(study.labels.shape), "generated")
    segments = chest_segments(study.labels, (1, 2), 3, None)
    read = highdicom.seg.segread(study.write_segmentation(tmp_path / "mask.dcm", series, segments))
    names = [read.get_segment_description(number).segment_label for number in (1, 2, 3, 4)]
    assert names == ["Left lung", "Right lung", "Airway structure", "Label 9"]
    frames = read.get_volume(combine_segments=True).array
    expected = to_frames(np.array([0, 1, 2, 3, 0, 0, 0, 0, 0, 4])[study.labels])
    assert np.array_equal(frames[:: 1 if np.array_equal(frames, expected) else -1], expected)
    assert read.StudyInstanceUID == pydicom.dcmread(series / "slice_0001.dcm").StudyInstanceUID


def test_lobes_are_segments_of_their_side() -> None:
    labels = np.zeros((8, 4, 4), np.uint8)
    for label, x in {10: 0, 11: 1, 12: 5, 13: 6, 14: 7}.items():
        labels[x] = label
    names = {k: s.name for k, s in chest_segments(labels, (10, 11, 12, 13, 14), 16, 4).items()}
    assert names[11] == "Left lung (label 11)" and names[14] == "Right lung (label 14)"
    assert names[16] == "Airway structure" and names[4] == "Body" and len(names) == 7
    assert chest_segments(labels, (10,), 16, None)[10].name == "Lung"  # which may be both


def test_labels_that_are_stored_as_floats(mask: Path, tmp_path: Path) -> None:
    labels = load_volume(mask)
    path = tmp_path / "floats.nii.gz"
    nib.save(nib.Nifti1Image(labels.array.astype(np.float32), labels.affine), path)
    study = DicomStudy.from_mask(path)
    series = study.write_series(tmp_path / "series", np.zeros(study.labels.shape), "generated")
    assert study.write_segmentation(tmp_path / "mask.dcm", series, {}).is_file()
    with pytest.raises(UserError, match="labels that are not integers"):
        nib.save(nib.Nifti1Image(labels.array.astype(np.float32) / 2, labels.affine), path)
        DicomStudy.from_mask(path)


def test_nothing_of_the_case_is_written(mask: Path, tmp_path: Path) -> None:
    study = DicomStudy.from_mask(mask)
    series = study.write_series(tmp_path / "series", np.zeros(study.labels.shape), "generated")
    study.write_segmentation(tmp_path / "mask.dcm", series, {})
    for file in [*series.iterdir(), tmp_path / "mask.dcm"]:
        assert b"Jane" not in file.read_bytes()


def test_sheared_grids_and_broken_volumes_are_refused(mask: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not perpendicular.*Resample"):
        DicomStudy.from_mask(write_mask(tmp_path / "sheared.nii.gz", shear=0.1))
    study = DicomStudy.from_mask(mask)
    with pytest.raises(UserError, match="not finite"):
        study.write_series(tmp_path / "nan", np.full(study.labels.shape, np.nan), "generated")
    assert not (tmp_path / "nan").exists()
    with pytest.raises(UserError, match="no labelled voxel"):
        DicomStudy(study.labels * 0, study.affine, "").write_segmentation(
            tmp_path / "none.dcm", tmp_path, {}
        )


def test_a_generated_volume_saves_itself(mask: Path, tmp_path: Path) -> None:
    volume = Volume(np.full(load_volume(mask).shape, -850.0), mask)
    folder = volume.save_dicom(tmp_path / "series")
    assert (pydicom.dcmread(folder / "slice_0003.dcm").pixel_array == -850).all()
    with pytest.raises(UserError, match="difference"):
        Volume(volume.ras, mask, "difference").save_dicom(tmp_path / "difference")
    header = nib.load(volume.save(tmp_path / "one.nii.gz")).header
    assert (float(header["cal_min"]), float(header["cal_max"])) == (-1350.0, 150.0)
