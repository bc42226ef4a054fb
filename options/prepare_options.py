"""The flags of `scripts/prepare_data.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.parser import argument, flag, group, path_flag
from util.modality import MODALITIES

OLD_MASK_KINDS = {"given": "load", "classic": "threshold"}  # also in earlier records of cases


@dataclass(frozen=True)
class SourceOptions:
    """Input, output and case ids."""

    IN: str = argument("Folder with the scans, however nested.", kind="folder")
    OUT: str = argument("Folder for the dataroot; one that this command made is continued.")
    source: str = flag(
        "auto", "Content of IN.", choices=("auto", "dicom", "volumes", "aiib23", "osic")
    )
    modality: str = flag(
        "ct",
        "What the scans are: ct (chest CT in HU), or mr and custom, whose intensities stay as they "
        "are (train.py scales them) and whose masks are given (--masks load).",
        choices=tuple(MODALITIES),
    )
    ids: str = flag(
        "auto",
        "Case ids: new ones, with the key in a separate file, or the source's own; auto keeps only "
        "those of aiib23 and osic.",
        choices=("auto", "recode", "keep"),
    )
    key_file: str = flag(
        "",
        "File for the key from case ids to the source's ids, outside OUT (OUT.key.csv beside it).",
    )
    demographics: bool = flag(False, "Put age and sex of the DICOM headers into the table.")


@dataclass(frozen=True)
class SeriesOptions:
    """The choice of DICOM series, and repairs."""

    kernel: str = flag(
        "any",
        "Kernel that is preferred where a study has several series.",
        choices=("any", "soft", "lung"),
    )
    min_slices: int = flag(30, "A DICOM series with fewer slices is left out.", low=2)
    uneven: str = flag(
        "error", "Missing or doubled slices and uneven steps.", choices=("error", "resample")
    )


@dataclass(frozen=True)
class GridOptions:
    """The grid and the masks."""

    spacing: tuple[float, float, float] | None = flag(
        None,
        "Voxel size in mm to resample to (right-left, front-back, foot-head); as scanned by "
        "default.",
        low=0.1,
        high=20,
    )
    masks: str = flag(
        "auto",
        "Source of the masks: files to load, a threshold, or a tool; auto loads the source's own "
        "masks, else takes the threshold.",
        choices=("auto", "load", "threshold", "lungmask", "totalsegmentator"),
        old_values=OLD_MASK_KINDS,
    )
    mask_dir: str = path_flag(
        "",
        "Folder of the masks to load, named like the scans, or for DICOM by patient id or study "
        "UID.",
        kind="folder",
    )
    tool_args: str = flag(
        "", 'Further words for lungmask or TotalSegmentator, such as --tool_args="--cpu".'
    )
    tool_hours: float = flag(
        2.0, "A tool that takes longer for a case is stopped after these hours.", low=0.001
    )


@dataclass(frozen=True)
class TableOptions:
    """The clinical table and the splits."""

    table: str = path_flag(
        "",
        "Clinical table, .csv or .xlsx; by default that of AIIB23 or OSIC, or none.",
        kind="file",
    )
    key_column: str = flag(
        "", "Its column that names scan or patient; by default the only possible one."
    )
    patient_column: str = flag(
        "", "Its column that names the patient; by default the scan's own patient."
    )
    seed: int = flag(0, "Seed of the splits.", low=0)


@dataclass(frozen=True)
class WorkOptions:
    """How the work is done."""

    slices: bool = flag(
        True,
        "Put every slice of every case into the report, at about half the size of the scans.",
    )
    jobs: int = flag(
        2,
        "Cases at a time, each in a process of its own (up to 4 GB each); 0 works in this one.",
        low=0,
    )


@dataclass(frozen=True)
class PrepareCommand:
    """All flags of the command."""

    EXAMPLE: ClassVar[str] = (
        "python scripts/prepare_data.py dicoms cohort --table clinical.csv --spacing 1,1,1"
    )

    source: SourceOptions = group(SourceOptions, "Source")
    series: SeriesOptions = group(SeriesOptions, "DICOM series")
    grid: GridOptions = group(GridOptions, "Grid and masks")
    table: TableOptions = group(TableOptions, "Table and splits")
    work: WorkOptions = group(WorkOptions, "Work")
