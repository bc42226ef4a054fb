"""Generated volumes as DICOM: a CT series per volume, and the mask as a DICOM segmentation.

Nothing of a patient is written: the patient is called SYNTHETIC, dates are empty, and UIDs follow
from the content, so that the same volume has the same UIDs wherever it is exported. All series of
one mask share study and frame of reference, so that viewers link and subtract them.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import PYDICOM_ROOT_UID, UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from data.checks.masks import load_labels
from data.geometry import axes_are_orthogonal
from data.volumes import LPS_TO_RAS, read_header
from util import __version__
from util.cli import UserError
from util.files import atomic_folder, atomic_path
from util.metrics.regions import left_labels
from util.web.figures import LUNG

PATIENT = "SYNTHETIC"
MANUFACTURER = "Mask2CT"
MAX_DESCRIPTION = 64  # characters of SeriesDescription (value representation LO)
INT16 = np.iinfo(np.int16)
# What a segment is, by SNOMED CT.
CATEGORY = Code("123037004", "SCT", "Anatomical structure")
LUNGS = Code("39607008", "SCT", "Lung")
LEFT_LUNG = Code("44029006", "SCT", "Left lung")
RIGHT_LUNG = Code("3341006", "SCT", "Right lung")
AIRWAY = Code("89187006", "SCT", "Airway structure")
OTHER = Code("38266002", "SCT", "Entire body as a whole")
TISSUE = Code("85756007", "SCT", "Body tissue structure")


@dataclass(frozen=True)
class Segment:
    """A label of a mask: its name, and its meaning by SNOMED CT."""

    name: str
    code: Code = TISSUE


def chest_segments(
    labels: NDArray[np.integer],
    lung_labels: Sequence[int],
    airway_label: int,
    body_label: int | None,
) -> dict[int, Segment]:
    """Return the segments of a chest mask by label; other labels are named by their number.

    Args:
        labels: The mask `(X, Y, Z)` in RAS, which tells the sides of more than two parts of lungs.
    """
    left = left_labels(labels, lung_labels)
    segments = {}
    for label in lung_labels:
        code = LEFT_LUNG if label in left else RIGHT_LUNG
        code = code if len(lung_labels) > 1 else LUNGS
        part = f" (label {label})" if len(lung_labels) > 2 else ""
        segments[label] = Segment(f"{code.meaning}{part}", code)
    segments[airway_label] = Segment(AIRWAY.meaning, AIRWAY)
    if body_label is not None:
        segments[body_label] = Segment("Body", OTHER)
    return segments


@dataclass(frozen=True)
class DicomStudy:
    """The DICOM study of one mask, to which all volumes of that mask belong.

    Attributes:
        labels: `(X, Y, Z)` mask labels in RAS.
        affine: `(4, 4)`, voxel index to RAS mm.
        key: Tells studies of one mask apart, such as run and seed.
    """

    labels: NDArray[np.integer]
    affine: NDArray[np.floating]
    key: str

    @classmethod
    def from_mask(cls, mask: Path, key: str = "") -> DicomStudy:
        """Read a mask file, on whose grid the volumes lie.

        Raises:
            UserError: The file cannot be read or is not a mask, or its grid is sheared, which a
                DICOM series cannot be.
        """
        check_dicom_grid(mask)
        volume = load_labels(mask)
        return cls(volume.array, volume.affine, key)

    def write_series(
        self, folder: Path, hu_ras: NDArray[np.floating], description: str, number: int = 1
    ) -> Path:
        """Write a volume as a CT series; the folder appears whole or not at all.

        Args:
            folder: Folder of the files, one per axial slice; an existing one is replaced.
            hu_ras: `(X, Y, Z)` HU on the mask's grid in RAS; rounded to whole HU.
            description: What the volume shows; "SYNTHETIC" is put before it.
            number: Number of the series in its study.

        Returns:
            The folder.

        Raises:
            UserError: A value is not finite, or the disk refuses a file.
            ValueError: The array has another shape than the mask.
        """
        if hu_ras.shape != self.labels.shape:
            raise ValueError(f"array has shape {hu_ras.shape}, the mask {self.labels.shape}")
        if not np.isfinite(hu_ras).all():
            raise UserError(f"{folder}: the volume holds values that are not finite.")
        stored = np.rint(hu_ras).clip(INT16.min, INT16.max).astype("<i2")
        frames = to_frames(stored)
        uids = _UidMaker(self._digest, description, str(number), _digest(stored))
        with atomic_folder(folder) as temporary:
            for z, frame in enumerate(frames):
                slice_ = self._slice(frame, z, description, number, uids)
                slice_.save_as(temporary / f"slice_{z + 1:04d}.dcm", enforce_file_format=True)
        return folder

    def write_segmentation(
        self, path: Path, series: Path, segments: Mapping[int, Segment], number: int = 1000
    ) -> Path:
        """Write the mask as a DICOM segmentation that refers to a series of this study.

        Args:
            path: The file.
            series: Folder of `write_series`.
            segments: Names of labels; labels without one are called "Label <number>".
            number: Number of the segmentation's series in the study.

        Raises:
            UserError: The mask has no label, or the disk refuses the file.
        """
        from highdicom.seg import Segmentation, SegmentDescription  # slow to import

        present = [int(label) for label in np.unique(self.labels) if label]
        if not present:
            raise UserError(f"{path}: the mask has no labelled voxel, so it has no segment.")
        source = [
            pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(series.glob("*.dcm"))
        ]
        segment_numbers = np.zeros(int(self.labels.max()) + 1, np.uint8)
        segment_numbers[present] = np.arange(1, len(present) + 1)
        descriptions = []
        for place, label in enumerate(present, start=1):
            segment = segments.get(label, Segment(f"Label {label}"))
            description = SegmentDescription(
                segment_number=place,
                segment_label=segment.name,
                segmented_property_category=CATEGORY,
                segmented_property_type=segment.code,
                algorithm_type="MANUAL",
                tracking_id=f"label {label}",
                tracking_uid=_UidMaker(self._digest)("segment", label),
            )
            descriptions.append(description)
        uids = _UidMaker(self._digest, "segmentation", source[0].SeriesInstanceUID)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the patient has no first name
            segmentation = Segmentation(
                source_images=source,
                pixel_array=to_frames(segment_numbers[self.labels]),
                segmentation_type="BINARY",
                segment_descriptions=descriptions,
                series_instance_uid=uids("series"),
                series_number=number,
                sop_instance_uid=uids("instance"),
                instance_number=1,
                manufacturer=MANUFACTURER,
                manufacturer_model_name=MANUFACTURER,
                software_versions=__version__,
                device_serial_number="0",
                series_description=_description("mask"),
            )
        with atomic_path(path) as temporary:
            segmentation.save_as(temporary, enforce_file_format=True)
        return path

    @property
    def _digest(self) -> str:
        return _digest(self.labels, np.round(self.affine, 6)) + self.key

    def _slice(
        self, frame: NDArray[np.int16], z: int, description: str, number: int, uids: _UidMaker
    ) -> FileDataset:
        """Return one slice; rows run from front to back, columns from the patient's right."""
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = uids("instance", z)
        d = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        d.SpecificCharacterSet = "ISO_IR 192"
        d.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        d.SOPClassUID = CTImageStorage
        d.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        d.StudyInstanceUID = _UidMaker(self._digest)("study")
        d.SeriesInstanceUID = uids("series")
        d.FrameOfReferenceUID = _UidMaker(self._digest)("frame of reference")
        d.PositionReferenceIndicator = ""
        d.PatientName = d.PatientID = PATIENT
        # Empty, because nobody was examined; DICOM asks for the elements themselves.
        for name in (
            *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber"),
            *("ReferringPhysicianName", "StudyID", "KVP", "AcquisitionNumber", "PatientPosition"),
        ):
            setattr(d, name, "")
        d.Modality = "CT"
        d.Manufacturer = d.ManufacturerModelName = MANUFACTURER
        d.SoftwareVersions = __version__
        d.SeriesNumber = number
        d.InstanceNumber = z + 1
        d.SeriesDescription = _description(description)
        d.ContentQualification = "RESEARCH"
        d.DerivationDescription = "Generated by a neural network; not a scan of a person."
        d.BurnedInAnnotation = "NO"
        d.PatientIdentityRemoved = "YES"
        d.DeidentificationMethod = "Synthetic: no patient was imaged."
        d.BodyPartExamined = "CHEST"
        self._set_geometry(d, z)
        d.SamplesPerPixel = 1
        d.PhotometricInterpretation = "MONOCHROME2"
        d.Rows, d.Columns = frame.shape
        d.BitsAllocated = d.BitsStored = 16
        d.HighBit = 15
        d.PixelRepresentation = 1
        d.RescaleIntercept, d.RescaleSlope, d.RescaleType = 0, 1, "HU"
        d.WindowCenter, d.WindowWidth = (LUNG[0] + LUNG[1]) / 2, LUNG[1] - LUNG[0]
        d.PixelData = frame.tobytes()
        return d

    def _set_geometry(self, d: FileDataset, z: int) -> None:
        """Set position, orientation and voxel sizes of slice z, in LPS as DICOM has them."""
        x_last, y_last = self.labels.shape[0] - 1, self.labels.shape[1] - 1
        sides = voxel_sizes(self.affine)
        to_lps = LPS_TO_RAS @ self.affine
        position = (to_lps @ [x_last, y_last, z, 1])[:3]
        # A column runs against x of RAS, a row against y (see `to_frames`).
        axes = -to_lps[:3, :2] / sides[:2]
        d.ImagePositionPatient = [_decimal(v) for v in position]
        d.ImageOrientationPatient = [_decimal(v) for v in axes.T.ravel()]
        d.PixelSpacing = [_decimal(sides[1]), _decimal(sides[0])]
        d.SliceThickness = d.SpacingBetweenSlices = _decimal(sides[2])


def check_dicom_grid(mask: Path) -> None:
    """Raise `UserError` where the grid of a file is sheared, which no DICOM series can be."""
    if not axes_are_orthogonal(read_header(mask).affine):
        raise UserError(
            f"{mask}: its axes are not perpendicular (a sheared or tilted grid), and slices of a "
            "DICOM series lie straight above each other. Resample the mask to a straight grid, "
            "or leave --dicom out."
        )


def to_frames(array_ras: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return `(X, Y, Z)` in RAS as axial frames `(Z, rows, columns)`, feet first.

    Rows run from front to back and columns from the patient's right to left, as DICOM viewers
    show a patient who lies on the back.
    """
    return np.ascontiguousarray(array_ras[::-1, ::-1].transpose(2, 1, 0))


def _description(text: str) -> str:
    """Return a series description; backslashes separate values in DICOM."""
    return f"{PATIENT} {text}".replace("\\", "/")[:MAX_DESCRIPTION].strip()


def _decimal(value: float) -> DSfloat:
    """Return a number as the 16 characters that DICOM has for one."""
    return DSfloat(float(value) + 0.0, auto_format=True)  # no negative zero


def _digest(*arrays: NDArray[np.generic]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class _UidMaker:
    """UIDs below one root that follow from these texts."""

    def __init__(self, *parts: str) -> None:
        self.parts = parts

    def __call__(self, kind: str, number: int = 0) -> UID:
        """Return the UID of an object of this kind."""
        sources = [*self.parts, kind, str(number)]
        return generate_uid(PYDICOM_ROOT_UID, entropy_srcs=sources)
