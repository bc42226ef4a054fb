"""DICOM headers: an allow-list of the fields that are read, and the few that may be written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

# Columns of the table. Nothing else of a header is written to the dataroot: names, dates, free
# texts and private fields are not even read, and the ids that group files go to the key file alone.
ACQUISITION = ("KVP", "KERNEL", "CONTRAST AGENT", "SCANNER", "SLICE THICKNESS")
DEMOGRAPHICS = ("AGE", "SEX")
MAX_AGE = 90  # ages above 89 identify people; they are written as 90

GROUPING_FIELDS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "PatientID",
    "SeriesNumber",
    "InstanceNumber",
)
IMAGE_FIELDS = (
    "SOPClassUID",
    "Modality",
    "ImageType",
    "BodyPartExamined",
    "NumberOfFrames",
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "GantryDetectorTilt",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "SliceThickness",
    "KVP",
    "ConvolutionKernel",
    "ContrastBolusAgent",
    "Manufacturer",
    "ManufacturerModelName",
    "PatientAge",
    "PatientSex",
)
HEADER_ERRORS = (  # what pydicom raises for damaged headers
    InvalidDicomError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
)
DICOMDIR_UID = "1.2.840.10008.1.3.10"
_NO_CONTRAST = ("no", "none", "no contrast", "without", "n")
_YEARS_PER_UNIT = {"Y": 1.0, "M": 1 / 12, "W": 1 / 52.18, "D": 1 / 365.25}


@dataclass(frozen=True)
class SliceHeader:
    """The fields of one DICOM file that are used.

    Attributes:
        path: The file.
        study: Study instance UID.
        series: Series instance UID.
        instance: SOP instance UID.
        patient: Patient id.
        series_number: Series number, "" where it is not known.
        number: Instance number.
        modality: Modality such as CT.
        sop_class: SOP class UID.
        image_types: Values of the image type, in capitals.
        body_part: Body part examined, in capitals.
        frames: Number of frames, above 1 for every enhanced (multi-frame) class.
        size: Rows and columns.
        spacing: Distances in mm between rows and between columns; empty where unknown.
        position: Centre of the first pixel in mm, LPS; empty where unknown.
        orientation: Unit vectors along a row and along a column, LPS; empty where unknown.
        tilt: Gantry tilt in degrees.
        thickness: Slice thickness in mm.
        kernel: Reconstruction kernel.
        rescale: Slope and intercept to HU.
        padding: Lowest and highest stored value of padding.
        row: Columns for the table with their values, "" where a value is not known.
    """

    path: Path
    study: str
    series: str
    instance: str
    patient: str
    series_number: str
    number: int | None
    modality: str
    sop_class: str
    image_types: tuple[str, ...]
    body_part: str
    frames: int
    size: tuple[int, int]
    spacing: tuple[float, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    tilt: float
    thickness: float | None
    kernel: str
    rescale: tuple[float, float] | None
    padding: tuple[int, int] | None
    row: tuple[tuple[str, str], ...]


class NotDicomImage(Exception):
    """A file of another format, or a DICOM file that is not an image."""


class DamagedHeader(Exception):
    """A DICOM file whose header cannot be read."""


def read_slice_header(path: Path) -> SliceHeader:
    """Read the allowed fields of one DICOM file, without its voxels.

    Raises:
        NotDicomImage: The file is not DICOM, or a DICOM directory.
        DamagedHeader: The header cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(132)
        # Group 0008 at the very start: DICOM without its preamble.
        bare = start[:2] == b"\x08\x00" and start[2:4] != b"\x00\x00"
        if start[128:] != b"DICM" and not bare:
            raise NotDicomImage(path)
        fields = list(GROUPING_FIELDS + IMAGE_FIELDS)
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=bare, specific_tags=fields)
        stored_class = dataset.file_meta.get("MediaStorageSOPClassUID")
        if DICOMDIR_UID in (dataset.get("SOPClassUID"), stored_class):
            raise NotDicomImage(path)
        return _slice_header(path, dataset)
    except HEADER_ERRORS as error:
        reason = " ".join(str(error).split())[:120]
        raise DamagedHeader(f"{path} has a DICOM header that cannot be read ({reason}).") from None


def _slice_header(path: Path, dataset: pydicom.Dataset) -> SliceHeader:
    if not dataset.get("SeriesInstanceUID") or not dataset.get("StudyInstanceUID"):
        raise ValueError("it names no study or series, or is cut off before")
    slope = _number(dataset.get("RescaleSlope"))
    intercept = _number(dataset.get("RescaleIntercept"))
    number = dataset.get("InstanceNumber")
    enhanced = "Enhanced" in pydicom.uid.UID(dataset.get("SOPClassUID") or "").name
    return SliceHeader(
        path=path,
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        instance=_text(dataset, "SOPInstanceUID"),
        patient=_text(dataset, "PatientID"),
        series_number=_text(dataset, "SeriesNumber"),
        number=None if number is None else int(number),
        modality=_text(dataset, "Modality"),
        sop_class=_text(dataset, "SOPClassUID"),
        image_types=tuple(str(value).upper() for value in _list(dataset.get("ImageType"))),
        body_part=_text(dataset, "BodyPartExamined").upper(),
        frames=2 if enhanced else int(dataset.get("NumberOfFrames") or 1),
        size=(int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)),
        spacing=_numbers(dataset.get("PixelSpacing"), 2),
        position=_numbers(dataset.get("ImagePositionPatient"), 3),
        orientation=_numbers(dataset.get("ImageOrientationPatient"), 6),
        tilt=_number(dataset.get("GantryDetectorTilt")) or 0.0,
        thickness=_number(dataset.get("SliceThickness")),
        kernel=_kernel(dataset),
        rescale=None if slope is None or intercept is None else (slope, intercept),
        padding=_padding(dataset),
        row=tuple(_row(dataset).items()),
    )


def _text(dataset: pydicom.Dataset, name: str) -> str:
    value = dataset.get(name)
    return "" if value is None else str(value).strip("\0 ")


def _list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) else list(value)


def _number(value: Any) -> float | None:
    return float(value) if value not in (None, "") and np.isfinite(float(value)) else None


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    """Return `count` finite numbers, or none at all."""
    numbers = tuple(float(v) for v in _list(value))
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else ()


def _kernel(dataset: pydicom.Dataset) -> str:
    return " ".join(map(str, _list(dataset.get("ConvolutionKernel"))))


def _padding(dataset: pydicom.Dataset) -> tuple[int, int] | None:
    if dataset.get("PixelPaddingValue") is None:
        return None
    first = int(dataset.PixelPaddingValue)
    second = int(dataset.get("PixelPaddingRangeLimit") or first)
    if dataset.get("PixelRepresentation"):  # signed, but often written as if unsigned
        first = _as_signed(first)
        second = _as_signed(second)
    return min(first, second), max(first, second)


def _as_signed(value: int) -> int:
    return value - 2**16 if value >= 2**15 else value


def _row(dataset: pydicom.Dataset) -> dict[str, str]:
    """Return the columns for the table; "" where a value is not known."""
    kvp = _number(dataset.get("KVP"))
    thickness = _number(dataset.get("SliceThickness"))
    sex = _text(dataset, "PatientSex").upper()
    scanner = f"{_text(dataset, 'Manufacturer')} {_text(dataset, 'ManufacturerModelName')}"
    return {
        "KVP": f"{kvp:g}" if kvp else "",
        "KERNEL": _kernel(dataset),
        "CONTRAST AGENT": _contrast(_text(dataset, "ContrastBolusAgent")),
        # Many scanners repeat the manufacturer in the name of the model.
        "SCANNER": " ".join(dict.fromkeys(scanner.split())),
        "SLICE THICKNESS": f"{thickness:g}" if thickness else "",
        "AGE": _age(_text(dataset, "PatientAge")),
        "SEX": sex if sex in ("M", "F", "O") else "",
    }


def _contrast(agent: str) -> str:
    if not agent:
        return ""
    return "No" if agent.casefold() in _NO_CONTRAST else "Yes"


def _age(text: str) -> str:
    """Return the whole years of a DICOM age such as 067Y."""
    parts = re.fullmatch(r"(\d{1,3})([YMWD])", text.upper())
    if parts is None:
        return ""
    return str(min(MAX_AGE, int(int(parts[1]) * _YEARS_PER_UNIT[parts[2]])))
