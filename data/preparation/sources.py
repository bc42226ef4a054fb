"""Sources of cases in a folder: DICOM series, volume files, and files that cannot be used."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.cohort import natural_key
from data.preparation.choice import choose_series
from data.preparation.headers import DamagedHeader, NotDicomImage, SliceHeader, read_slice_header
from data.preparation.series import DicomSeries, group_series
from data.volumes import has_suffix, strip_suffix
from options.prepare_options import SeriesOptions
from util.cli import UserError, format_list

log = logging.getLogger(__name__)

BROKEN_HEADER = "cannot be read: its DICOM header is cut off or damaged."
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".7z", ".rar")
AIIB23_TABLES = ("data_info.xlsx", "data_info.csv")
HEADER_THREADS = 8  # they mostly wait for a network drive


@dataclass(frozen=True)
class Source:
    """The source of one case. Of `series` and `volume` one is set, or neither with a `problem`.

    Attributes:
        key: Distinguishes it from all other sources, the same in every run.
        patient: Id of the patient.
        names: Names that a table may call it by, the best first.
        series: DICOM series.
        volume: Volume file.
        mask: Mask file.
        airway: Mask file of the airway alone.
        problem: Reason why it cannot become a case.
        problem_paths: Further paths in the text of `problem`.
        notes: Remarks for the report.
        left_out: Other series of the study, each with its title and the reason.
    """

    key: str
    patient: str
    names: tuple[str, ...]
    series: DicomSeries | None = None
    volume: Path | None = None
    mask: Path | None = None
    airway: Path | None = None
    problem: str = ""
    problem_paths: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    def files(self) -> list[Path]:
        """Return every file that decides what the case looks like."""
        slices = [header.path for header in self.series.headers] if self.series else []
        return slices + [p for p in (self.volume, self.mask, self.airway) if p is not None]


@dataclass
class Discovery:
    """Everything under a folder.

    Attributes:
        sources: The sources of cases.
        remarks: Remarks on files that are not sources.
        unreadable: Files and folders that could not be read.
        table: Clinical table of the source itself.
    """

    sources: list[Source] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    table: Path | None = None


def list_files(root: Path, discovery: Discovery) -> list[Path]:
    """Return every file under `root` in natural order, without archives.

    Archives and folders that cannot be read are noted in `discovery`.
    """
    paths: list[Path] = []

    def note_unreadable(error: OSError) -> None:
        discovery.unreadable.append(
            f"{error.filename} cannot be read ({error.strerror}); its content is missing."
        )

    for folder, folders, names in os.walk(root, onerror=note_unreadable):
        folders.sort(key=natural_key)
        visible = [name for name in names if not name.startswith(".")]
        paths += [Path(folder) / name for name in sorted(visible, key=natural_key)]
    archives = [str(path) for path in paths if _is_archive(path)]
    if archives:
        log.warning("Archives are not unpacked: %s.", format_list(archives))
        discovery.remarks.append(
            f"{len(archives)} archives were not unpacked; unpack them into the folder if they hold "
            "scans"
        )
    return [path for path in paths if not _is_archive(path)]


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def detect_source_kind(root: Path) -> str:
    """Return "dicom", "volumes", "aiib23" or "osic" for a folder.

    Raises:
        UserError: The folder holds DICOM and volume files, or neither.
    """
    if (root / "train").is_dir() and (root / "train.csv").is_file():
        return "osic"
    if (root / "img").is_dir() and ((root / "gt").is_dir() or (root / "gtlung").is_dir()):
        return "aiib23"
    files = list_files(root, Discovery())
    volumes = any(has_suffix(path.name) for path in files)
    dicom = any(_is_dicom(path) for path in files if not has_suffix(path.name))
    if volumes and dicom:
        raise UserError(
            f"{root} holds DICOM and volume files. Name the kind to prepare: --source dicom or "
            "--source volumes."
        )
    if not volumes and not dicom:
        archives = [path.name for path in root.rglob("*") if _is_archive(path)]
        message = f"{root} holds no DICOM series and no volume file."
        if archives:
            message += f" It holds archives, which are not unpacked: {format_list(archives)}; "
            message += "unpack them first."
        raise UserError(message)
    return "volumes" if volumes else "dicom"


def _is_dicom(path: Path) -> bool:
    try:
        read_slice_header(path)
    except NotDicomImage:
        return False
    except DamagedHeader:
        return True
    return True


def discover_sources(
    root: Path, kind: str, options: SeriesOptions, mask_dir: Path | None = None
) -> Discovery:
    """Find the sources of cases in a folder.

    Args:
        root: The folder.
        kind: "dicom", "volumes", "aiib23" or "osic".
        options: How series are chosen.
        mask_dir: Folder of masks to load; files in it are not scans.

    Raises:
        UserError: The folder is not laid out as `kind` asks, or holds nothing.
    """
    discovery = Discovery()
    if kind == "dicom":
        _discover_dicom(root, options, discovery)
    elif kind == "osic":
        _discover_osic(root, options, discovery)
    else:
        _discover_volumes(root, kind, discovery, mask_dir)
    if not discovery.sources and not discovery.unreadable:
        remarks = " ".join(discovery.remarks)
        raise UserError(f"{root} holds nothing that --source {kind} takes. {remarks}".strip())
    return discovery


@dataclass(frozen=True)
class _DicomFiles:
    """Headers of readable files, and the damaged files by their folder."""

    headers: list[SliceHeader]
    damaged: dict[Path, list[Path]]


def _read_headers(paths: Sequence[Path], discovery: Discovery) -> _DicomFiles:
    """Read the headers of all DICOM files; other files are counted in a remark."""
    files = _DicomFiles([], defaultdict(list))
    others = 0
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        for path, result in zip(paths, pool.map(_header_or_error, paths), strict=True):
            if isinstance(result, SliceHeader):
                files.headers.append(result)
            elif isinstance(result, DamagedHeader):
                files.damaged[path.parent].append(path)
            else:
                others += 1
    if others:
        discovery.remarks.append(f"{others} files are not DICOM images and were passed over")
    return files


def _header_or_error(path: Path) -> SliceHeader | DamagedHeader | NotDicomImage:
    try:
        return read_slice_header(path)
    except (NotDicomImage, DamagedHeader) as error:
        return error


def _discover_dicom(root: Path, options: SeriesOptions, discovery: Discovery) -> None:
    files = _read_headers(list_files(root, discovery), discovery)
    studies: dict[str, list[DicomSeries]] = defaultdict(list)
    for series in group_series(files.headers):
        studies[series.first.study].append(series)
    for study, candidates in studies.items():
        patients = [series.first.patient for series in candidates if series.first.patient]
        patient = patients[0] if patients else study
        source = Source(study, patient, (patient, study))
        discovery.sources.append(_with_series(source, candidates, options, files.damaged))
    folders = {header.path.parent for header in files.headers}
    for folder in sorted(set(files.damaged) - folders):
        discovery.unreadable += [f"{path} {BROKEN_HEADER}" for path in files.damaged[folder]]


def _discover_osic(root: Path, options: SeriesOptions, discovery: Discovery) -> None:
    """Find the scans of the Kaggle folder: `train/<Patient>/*.dcm`, one scan per patient.

    Its table `train.csv` has several visits of a patient.
    """
    if not (root / "train").is_dir():
        raise UserError(
            f"{root} has no folder train/ with a folder for each patient, as OSIC has it."
        )
    if (root / "train.csv").is_file():
        discovery.table = root / "train.csv"
    folders = [path for path in (root / "train").iterdir() if path.is_dir()]
    for folder in sorted(folders, key=lambda path: natural_key(path.name)):
        files = _read_headers(list_files(folder, discovery), discovery)
        source = Source(folder.name, folder.name, (folder.name,))
        candidates = group_series(files.headers)
        discovery.sources.append(_with_series(source, candidates, options, files.damaged))


def _with_series(
    source: Source,
    candidates: Sequence[DicomSeries],
    options: SeriesOptions,
    damaged: dict[Path, list[Path]],
) -> Source:
    """Return a source with the chosen series, or with the problem that there is none."""
    choice = choose_series(candidates, options.kernel, options.min_slices)
    if choice.chosen is None:
        reasons = "; ".join(f"{title}: {reason}" for title, reason in choice.left_out)
        return replace(
            source,
            problem=f"No series is a CT of the chest. {reasons or 'no DICOM file can be read'}.",
            left_out=choice.left_out,
        )
    folders = {header.path.parent for header in choice.chosen.headers}
    broken: list[str] = []
    for folder in sorted(folders & set(damaged)):
        broken += map(str, damaged[folder])
    problem = ""
    if broken:
        problem = (
            f"{broken[0]} {BROKEN_HEADER} It lies beside the series and may be one of its slices; "
            "copy it again or remove it."
        )
    copies = choice.chosen.copies
    return replace(
        source,
        series=choice.chosen,
        problem=problem,
        problem_paths=tuple(broken),
        notes=(f"{copies} files were copies of slices already there",) if copies else (),
        left_out=choice.left_out,
    )


def _discover_volumes(root: Path, kind: str, discovery: Discovery, mask_dir: Path | None) -> None:
    """Find volume files: all under `root`, or those of `img/` where it has the layout of AIIB23."""
    if kind == "aiib23" and not (root / "img").is_dir():
        raise UserError(f"{root} has no folder img/ with volumes, as AIIB23 has it.")
    laid_out = (root / "img").is_dir()
    mask_folder = mask_dir
    if mask_folder is None and laid_out and (root / "gtlung").is_dir():
        mask_folder = root / "gtlung"
    volumes = list_files(root / "img" if laid_out else root, discovery)
    masks = _files_by_name(mask_folder, discovery) if mask_folder else {}
    airways: dict[str, Path] = {}
    if kind == "aiib23":
        if mask_folder is None:
            airways = _files_by_name(root / "gt", discovery)
        tables = [root / name for name in AIIB23_TABLES if (root / name).is_file()]
        discovery.table = tables[0] if tables else None
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in volumes:
        if has_suffix(path.name) and path not in masks.values():
            by_name[strip_suffix(path.name)].append(path)
    for name, paths in by_name.items():
        folder = paths[0].parent
        names = (name,) if laid_out or folder == root else (name, folder.name)
        source = Source(
            name, name, names, volume=paths[0], mask=masks.get(name), airway=airways.get(name)
        )
        if len(paths) > 1:
            same = [str(path) for path in paths]
            problem = f"{len(same)} scans have one name: {format_list(same)}. Rename all but one."
            source = replace(source, problem=problem, problem_paths=tuple(same))
        discovery.sources.append(source)


def _files_by_name(folder: Path, discovery: Discovery) -> dict[str, Path]:
    files = list_files(folder, discovery) if folder.is_dir() else []
    return {strip_suffix(path.name): path for path in files if has_suffix(path.name)}
