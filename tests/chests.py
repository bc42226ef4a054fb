"""A small phantom chest as a DICOM series, for tests of the preparation."""

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

SIZE = (60, 48, 64)
SPACING = (6.0, 6.0, 4.5)
Edit = Callable[[Dataset, int], None]


@functools.lru_cache(maxsize=1)
def chest() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Return HU and labels (X, Y, Z) in RAS."""
    anatomy = build_anatomy(PhantomPatient.template(), SIZE, SPACING)
    return np.rint(anatomy.hu).clip(-1024, 3071).astype(np.int16), anatomy.labels


def uid(*parts: object) -> str:
    """Return the same UID for the same parts."""
    return pydicom.uid.generate_uid(entropy_srcs=[str(p) for p in parts])


def dataset(plane: NDArray[np.int16], z: int, patient: str, study: str, series: str) -> Dataset:
    """Return one axial slice; stored values are HU + 1024, with a rescale intercept of -1024.

    Private and free fields hold the word "secret", so that a test can search for them.
    """
    d = Dataset()
    d.SOPClassUID = CTImageStorage
    d.SOPInstanceUID = uid(patient, study, series, z)
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
    d.StudyInstanceUID = uid(patient, study)
    d.SeriesInstanceUID = uid(patient, study, series)
    d.PatientID = patient
    d.PatientName = "Secret^Sally"
    d.PatientBirthDate = "19500101"
    d.PatientAge = "067Y"
    d.PatientSex = "F"
    d.SeriesDescription = "secret words"
    d.AccessionNumber = "A777"
    d.SeriesNumber = "3"
    d.InstanceNumber = z + 1
    d.Modality = "CT"
    d.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    d.BodyPartExamined = "CHEST"
    d.KVP = "120"
    d.ConvolutionKernel = "STANDARD"
    d.ContrastBolusAgent = "secret 80 ml"
    d.SliceThickness = str(SPACING[2])
    d.Manufacturer = "MAKER"
    d.ManufacturerModelName = "Model 1"
    d.ImagePositionPatient = [0, 0, z * SPACING[2]]
    d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    d.PixelSpacing = [SPACING[1], SPACING[0]]
    d.Rows, d.Columns = plane.shape
    d.SamplesPerPixel = 1
    d.PhotometricInterpretation = "MONOCHROME2"
    d.BitsAllocated = 16
    d.BitsStored = 16
    d.HighBit = 15
    d.PixelRepresentation = 1
    d.RescaleSlope = 1
    d.RescaleIntercept = -1024
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
    """Write the chest (or `hu`) slice by slice.

    Args:
        folder: Folder of the files; it is made.
        patient: Patient ID.
        study: Decides the study UID.
        series: Decides the series UID.
        edit: Changes each slice, `edit(dataset, z)`.
        hu: Volume (X, Y, Z) instead of the chest.

    Returns:
        The files, feet first; their names are in another order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    voxels = chest()[0] if hu is None else hu
    files = []
    for z in range(voxels.shape[2]):
        axial = dataset(voxels[::-1, ::-1, z].T, z, patient, study, series)
        if edit is not None:
            edit(axial, z)
        path = folder / f"{series}_{(z * 17) % 101:03d}.dcm"
        axial.save_as(path, enforce_file_format=True)
        files.append(path)
    return files
