"""DICOM headers: an allow-list of the fields that are read, and the few that may be written."""

from __future__ import annotations

import mmap
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pydicom
from pydicom.multival import MultiValue

from data.text.values import MAX_AGE, parse_age

# Columns of the table. Nothing else of a header is written to the dataroot: names, dates, free
# texts and private fields are not even read, and the ids that group files go to the key file alone.
ACQUISITION = ("KVP", "KERNEL", "CONTRAST AGENT", "SCANNER", "SLICE THICKNESS")
DEMOGRAPHICS = ("AGE", "SEX")

GROUPING_FIELDS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "PatientID",
    "SeriesNumber",
    "InstanceNumber",
    "TemporalPositionIdentifier",
    "AcquisitionNumber",
    "AcquisitionTime",
    "AcquisitionDateTime",
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
MAX_SLICE_SIDE = 8192  # pixels; a header that claims more is damaged
MAX_NUMBER = 1e5  # mm, or of stored values; a header that claims more is damaged
# Words for what pydicom raises. Its own texts can quote the header, and so names of people.
PARSING_ERRORS = (
    (RecursionError, "its sequences are nested too deeply"),
    (MemoryError, "it asks for more memory than there is"),
    (zlib.error, "its compressed part is damaged"),
    (EOFError, "it is cut off"),
    (OverflowError, "it holds a number that is too large"),
)
DICOMDIR_UID = "1.2.840.10008.1.3.10"
_NO_CONTRAST = ("no", "none", "no contrast", "without", "n")


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
        temporal_position: Temporal position identifier, "" where it is not known.
        acquisition_number: Acquisition number, "" where it is not known.
        acquisition_time: Date and time of the acquisition, "" where it is not known.
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
    temporal_position: str
    acquisition_number: str
    acquisition_time: str
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
    """A DICOM file whose header cannot be read.

    Args:
        path: The file.
        reason: Why, without any value of the header.
        series: Its series instance UID, "" where that cannot be read either.
    """

    def __init__(self, path: Path, reason: str, series: str = "") -> None:
        super().__init__(f"{path} is damaged: {reason}.")
        self.path = path
        self.reason = reason
        self.series = series


class _UnreadableField(Exception):
    """A field that the geometry needs cannot be read; the message is its name."""


def read_slice_header(path: Path) -> SliceHeader:
    """Read the allowed fields of one DICOM file, without its voxels.

    Raises:
        NotDicomImage: The file is not DICOM, or a DICOM directory.
        DamagedHeader: The header cannot be read.
    """
    series = ""
    try:
        with path.open("rb") as file:
            start = file.read(132)
        # Group 0008 at the very start: DICOM without its preamble.
        bare = start[:2] == b"\x08\x00" and start[2:4] != b"\x00\x00"
        if start[128:] != b"DICM" and not bare:
            raise NotDicomImage(path)
        fields = list(GROUPING_FIELDS + IMAGE_FIELDS)
        # A map never gives more than the file holds; reading asks for all memory that a damaged
        # length claims.
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            dataset = pydicom.dcmread(
                cast(BinaryIO, content),
                stop_before_pixels=True,
                force=bare,
                specific_tags=fields,
            )
        stored_class = dataset.file_meta.get("MediaStorageSOPClassUID")
        if DICOMDIR_UID in (_optional(dataset, "SOPClassUID"), stored_class):
            raise NotDicomImage(path)
        series = _text(dataset, "SeriesInstanceUID")
        return _slice_header(path, dataset)
    except NotDicomImage:
        raise
    except Exception as error:  # pydicom raises errors of many kinds for a damaged element
        raise DamagedHeader(path, _parsing_reason(error), series) from None


def _parsing_reason(error: Exception) -> str:
    """Return in words why a header cannot be read, without any of its values."""
    if isinstance(error, _UnreadableField):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"it cannot be opened ({error.strerror})"
    for kind, reason in PARSING_ERRORS:
        if isinstance(error, kind):
            return reason
    return f"its header is cut off or has a damaged element ({type(error).__name__})"


def _slice_header(path: Path, dataset: pydicom.Dataset) -> SliceHeader:
    study = _text(dataset, "StudyInstanceUID")
    series = _text(dataset, "SeriesInstanceUID")
    if not study or not series:
        raise _UnreadableField("it names no study or series, or is cut off before")
    slope = _required_number(dataset, "RescaleSlope")
    intercept = _required_number(dataset, "RescaleIntercept")
    sop_class = _text(dataset, "SOPClassUID")
    enhanced = "Enhanced" in pydicom.uid.UID(sop_class).name
    return SliceHeader(
        path=path,
        study=study,
        series=series,
        instance=_text(dataset, "SOPInstanceUID"),
        patient=_text(dataset, "PatientID"),
        series_number=_text(dataset, "SeriesNumber"),
        number=_integer(dataset, "InstanceNumber"),
        temporal_position=_text(dataset, "TemporalPositionIdentifier"),
        acquisition_number=_text(dataset, "AcquisitionNumber"),
        acquisition_time=_text(dataset, "AcquisitionDateTime") or _text(dataset, "AcquisitionTime"),
        modality=_text(dataset, "Modality"),
        sop_class=sop_class,
        image_types=tuple(str(value).upper() for value in _values(dataset, "ImageType")),
        body_part=_text(dataset, "BodyPartExamined").upper(),
        frames=2 if enhanced else _required_integer(dataset, "NumberOfFrames") or 1,
        size=_size(dataset),
        spacing=_required_numbers(dataset, "PixelSpacing", 2),
        position=_required_numbers(dataset, "ImagePositionPatient", 3),
        orientation=_required_numbers(dataset, "ImageOrientationPatient", 6),
        tilt=_number(dataset, "GantryDetectorTilt") or 0.0,
        thickness=_number(dataset, "SliceThickness"),
        kernel=_kernel(dataset),
        rescale=None if slope is None or intercept is None else (slope, intercept),
        padding=_padding(dataset),
        row=tuple(_row(dataset).items()),
    )


def _optional(dataset: pydicom.Dataset, name: str) -> Any:
    """Return the value of a field, None where it is absent, empty or damaged."""
    try:
        value = dataset.get(name)
    except Exception:  # of a damaged element, see `read_slice_header`
        return None
    return None if value == "" else value


def _required_integer(dataset: pydicom.Dataset, name: str) -> int | None:
    number = _required_number(dataset, name)
    if number is not None and number != int(number):
        raise _UnreadableField(f"its field {name} is not an integer")
    return None if number is None else int(number)


def _size(dataset: pydicom.Dataset) -> tuple[int, int]:
    rows = _required_integer(dataset, "Rows") or 0
    columns = _required_integer(dataset, "Columns") or 0
    if max(rows, columns) > MAX_SLICE_SIDE:
        raise _UnreadableField(
            f"it claims {rows} x {columns} pixels, more than {MAX_SLICE_SIDE} a side"
        )
    return rows, columns


def _text(dataset: pydicom.Dataset, name: str) -> str:
    value = _optional(dataset, name)
    return "" if value is None else str(value).strip("\0 ")


def _values(dataset: pydicom.Dataset, name: str) -> list[Any]:
    value = _optional(dataset, name)
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | MultiValue) else [value]


def _number(dataset: pydicom.Dataset, name: str) -> float | None:
    """Return a finite number, None where there is none."""
    try:
        number = float(_optional(dataset, name))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if np.isfinite(number) else None


def _integer(dataset: pydicom.Dataset, name: str) -> int | None:
    number = _number(dataset, name)
    return None if number is None else int(number)


def _required_numbers(dataset: pydicom.Dataset, name: str, count: int) -> tuple[float, ...]:
    """Return `count` numbers that the voxels depend on, none where the field is absent or empty.

    Raises:
        _UnreadableField: The field holds something else.
    """
    try:
        value = dataset.get(name)
        if value is None or value == "":
            return ()
        values = value if isinstance(value, list | tuple | MultiValue) else [value]
        numbers = tuple(float(v) for v in values)
    except Exception:  # of a damaged element, see `read_slice_header`
        raise _UnreadableField(f"its field {name} does not hold numbers") from None
    if not numbers:
        return ()
    if len(numbers) != count or not all(abs(v) <= MAX_NUMBER for v in numbers):
        raise _UnreadableField(f"its field {name} does not hold {count} possible numbers")
    return numbers


def _required_number(dataset: pydicom.Dataset, name: str) -> float | None:
    numbers = _required_numbers(dataset, name, 1)
    return numbers[0] if numbers else None


def _kernel(dataset: pydicom.Dataset) -> str:
    return " ".join(map(str, _values(dataset, "ConvolutionKernel")))


def _padding(dataset: pydicom.Dataset) -> tuple[int, int] | None:
    first = _required_integer(dataset, "PixelPaddingValue")
    if first is None:
        return None
    second = _required_integer(dataset, "PixelPaddingRangeLimit") or first
    if _required_integer(
        dataset, "PixelRepresentation"
    ):  # signed, but often written as if unsigned
        first = _as_signed(first)
        second = _as_signed(second)
    return min(first, second), max(first, second)


def _as_signed(value: int) -> int:
    return value - 2**16 if value >= 2**15 else value


def _row(dataset: pydicom.Dataset) -> dict[str, str]:
    """Return the columns for the table; "" where a value is not known."""
    kvp = _number(dataset, "KVP")
    thickness = _number(dataset, "SliceThickness")
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
    """Return the whole years of a DICOM age such as 067Y, 90 for all above 89."""
    years = parse_age(text)
    return str(min(MAX_AGE, int(years))) if years else ""
