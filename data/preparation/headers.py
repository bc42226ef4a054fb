"""DICOM headers: the fields that are read, by an allow-list, and the few of them that may leave a
header.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

# What becomes a column of the table. Nothing else of a header is written to the dataroot: names,
# dates, free texts and
# private fields are not even read; the ids that group files go to the key file alone.
ACQUISITION = ("KVP", "KERNEL", "CONTRAST AGENT", "SCANNER", "SLICE THICKNESS")
DEMOGRAPHICS = ("AGE", "SEX")
OLDEST = 90  # ages above 89 identify people; they are written as 90

GROUPING = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "PatientID",
    "SeriesNumber",
    "InstanceNumber",
)
PICTURE = (
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
UNREADABLE = (
    InvalidDicomError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
)
DICOMDIR = "1.2.840.10008.1.3.10"
_NO_CONTRAST = ("no", "none", "no contrast", "without", "n")
_AGE_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 1 / 52.18, "D": 1 / 365.25}


@dataclass(frozen=True)
class SliceHeader:
    """What is known of one file; ids stay in memory and in the key file.

    `position`, `orientation` and `spacing` are in mm as DICOM has them (LPS; row, then column
    spacing) and empty where the file does not say. `rescale` is (slope, intercept), None where a
    tag is missing; `padding` the lowest and highest stored value that is no measurement; `row` the
    columns for the table.
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
    kinds: tuple[str, ...]
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


class NotDicom(Exception):
    """A file of another format, or a DICOM file that is no picture."""


class Damaged(Exception):
    """A DICOM file whose header cannot be read."""


def read_header(path: Path) -> SliceHeader:
    """Reads the allowed fields of one file, without its voxels; raises `NotDicom` or `Damaged`."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
        bare = (
            start[:2] == b"\x08\x00" and start[2:4] != b"\x00\x00"
        )  # group 0008 first: DICOM without its preamble
        if start[128:] != b"DICM" and not bare:
            raise NotDicom(path)
        found = pydicom.dcmread(
            path, stop_before_pixels=True, force=bare, specific_tags=list(GROUPING + PICTURE)
        )
        if DICOMDIR in (found.get("SOPClassUID"), found.file_meta.get("MediaStorageSOPClassUID")):
            raise NotDicom(path)
        return _header(path, found)
    except UNREADABLE as error:
        raise Damaged(
            f"{path} has a DICOM header that cannot be read ({' '.join(str(error).split())[:120]})."
        ) from None


def _header(path: Path, found: pydicom.Dataset) -> SliceHeader:
    if not found.get("SeriesInstanceUID") or not found.get("StudyInstanceUID"):
        raise ValueError("it names no study or series, or is cut off before")
    slope, intercept = _number(found.get("RescaleSlope")), _number(found.get("RescaleIntercept"))
    return SliceHeader(
        path=path,
        study=_text(found, "StudyInstanceUID"),
        series=_text(found, "SeriesInstanceUID"),
        instance=_text(found, "SOPInstanceUID"),
        patient=_text(found, "PatientID"),
        series_number=_text(found, "SeriesNumber"),
        number=int(found.InstanceNumber) if found.get("InstanceNumber") is not None else None,
        modality=_text(found, "Modality"),
        sop_class=_text(found, "SOPClassUID"),
        kinds=tuple(str(k).upper() for k in _list(found.get("ImageType"))),
        body_part=_text(found, "BodyPartExamined").upper(),
        frames=int(found.get("NumberOfFrames") or 1) if "Enhanced" not in _class_name(found) else 2,
        size=(int(found.get("Rows") or 0), int(found.get("Columns") or 0)),
        spacing=_numbers(found.get("PixelSpacing"), 2),
        position=_numbers(found.get("ImagePositionPatient"), 3),
        orientation=_numbers(found.get("ImageOrientationPatient"), 6),
        tilt=_number(found.get("GantryDetectorTilt")) or 0.0,
        thickness=_number(found.get("SliceThickness")),
        kernel=" ".join(str(k) for k in _list(found.get("ConvolutionKernel"))),
        rescale=None if slope is None or intercept is None else (slope, intercept),
        padding=_padding(found),
        row=tuple(_row(found).items()),
    )


def _class_name(found: pydicom.Dataset) -> str:
    return str(pydicom.uid.UID(found.get("SOPClassUID") or "").name)


def _text(found: pydicom.Dataset, name: str) -> str:
    value = found.get(name)
    return "" if value is None else str(value).strip("\0 ")


def _list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) else list(value)


def _number(value: Any) -> float | None:
    return float(value) if value not in (None, "") and np.isfinite(float(value)) else None


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    """`count` finite numbers, or none at all."""
    numbers = tuple(float(v) for v in _list(value))
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else ()


def _padding(found: pydicom.Dataset) -> tuple[int, int] | None:
    if found.get("PixelPaddingValue") is None:
        return None
    signed = bool(found.get("PixelRepresentation"))
    ends = [
        int(found.PixelPaddingValue),
        int(found.get("PixelPaddingRangeLimit") or found.PixelPaddingValue),
    ]
    first, second = sorted(
        v - 2**16 if signed and v >= 2**15 else v for v in ends
    )  # often written as if unsigned
    return first, second


def _row(found: pydicom.Dataset) -> dict[str, str]:
    """The columns for the table; "" is not known."""
    agent = _text(found, "ContrastBolusAgent")
    maker = f"{_text(found, 'Manufacturer')} {_text(found, 'ManufacturerModelName')}"
    kvp, thickness = _number(found.get("KVP")), _number(found.get("SliceThickness"))
    return {
        "KVP": f"{kvp:g}" if kvp else "",
        "KERNEL": " ".join(str(k) for k in _list(found.get("ConvolutionKernel"))),
        "CONTRAST AGENT": "" if not agent else "No" if agent.casefold() in _NO_CONTRAST else "Yes",
        "SCANNER": " ".join(
            dict.fromkeys(maker.split())
        ),  # many write the maker into the model too
        "SLICE THICKNESS": f"{thickness:g}" if thickness else "",
        "AGE": _age(_text(found, "PatientAge")),
        "SEX": sex if (sex := _text(found, "PatientSex").upper()) in ("M", "F", "O") else "",
    }


def _age(text: str) -> str:
    """Whole years of a DICOM age such as 067Y."""
    parts = re.fullmatch(r"(\d{1,3})([YMWD])", text.upper())
    return str(min(OLDEST, int(int(parts[1]) * _AGE_YEARS[parts[2]]))) if parts else ""
