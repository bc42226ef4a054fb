"""A small drawn chest as a DICOM series, for tests of preparing scans."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from data.phantom.anatomy import PhantomPatient, build_anatomy

SIZE, SPACING = (60, 48, 64), (6.0, 6.0, 4.5)
Edit = Callable[[Dataset, int], None]


@functools.lru_cache(maxsize=1)
def chest() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """HU and labels (X, Y, Z) in RAS."""
    made = build_anatomy(PhantomPatient(np.ones(3), np.zeros(3), np.zeros((3, 3))), SIZE, SPACING)
    return np.rint(made.hu).clip(-1024, 3071).astype(np.int16), made.labels


def uid(*parts: object) -> str:
    """The same UID for the same words."""
    return pydicom.uid.generate_uid(entropy_srcs=[str(p) for p in parts])


def dataset(plane: NDArray[np.int16], z: int, patient: str, study: str, series: str) -> Dataset:
    """One axial slice: stored values are HU + 1024 with a rescale intercept of -1024; private and
    free fields are set.
    """
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID, d.file_meta.MediaStorageSOPClassUID = (
        ExplicitVRLittleEndian,
        CTImageStorage,
    )
    d.SOPClassUID, d.SOPInstanceUID = CTImageStorage, uid(patient, study, series, z)
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
    d.StudyInstanceUID, d.SeriesInstanceUID = uid(patient, study), uid(patient, study, series)
    d.PatientID, d.PatientName, d.PatientBirthDate = patient, "Secret^Sally", "19500101"
    d.PatientAge, d.PatientSex = "067Y", "F"
    d.SeriesDescription, d.AccessionNumber, d.SeriesNumber, d.InstanceNumber = (
        "secret words",
        "A777",
        "3",
        z + 1,
    )
    d.Modality, d.ImageType, d.BodyPartExamined = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "CHEST"
    d.KVP, d.ConvolutionKernel, d.ContrastBolusAgent, d.SliceThickness = (
        "120",
        "STANDARD",
        "secret 80 ml",
        str(SPACING[2]),
    )
    d.Manufacturer, d.ManufacturerModelName = "MAKER", "Model 1"
    d.ImagePositionPatient, d.ImageOrientationPatient = [0, 0, z * SPACING[2]], [1, 0, 0, 0, 1, 0]
    d.PixelSpacing, d.Rows, d.Columns = [SPACING[1], SPACING[0]], *plane.shape
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
    d.RescaleSlope, d.RescaleIntercept = 1, -1024
    block = d.private_block(0x0013, "SECRET", create=True)
    block.add_new(0x10, "LO", "secret")
    d.PixelData = (plane.astype(np.int32) + 1024).astype("<i2").tobytes()
    return d


def write_series(
    folder: Path,
    patient: str = "P1",
    study: str = "s",
    series: str = "1",
    edit: Edit | None = None,
    hu: NDArray[Any] | None = None,
) -> list[Path]:
    """Writes the chest (or `hu`) slice by slice; `edit(dataset, z)` may change it. Returns the
    files, feet first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    voxels, files = chest()[0] if hu is None else hu, []
    for z in range(voxels.shape[2]):
        made = dataset(voxels[::-1, ::-1, z].T, z, patient, study, series)
        if edit is not None:
            edit(made, z)
        files.append(
            folder / f"{series}_{(z * 17) % 101:03d}.dcm"
        )  # names in another order than the slices
        made.save_as(files[-1], enforce_file_format=True)
    return files
