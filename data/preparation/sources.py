"""Sources of cases in a folder: DICOM series, volume files, and files that cannot be used."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.cohort import natural_key
from data.preparation.choice import choose_series
from data.preparation.headers import DamagedHeader, NotDicomImage, SliceHeader, read_slice_header
from data.preparation.series import DicomSeries, group_series
from data.preparation.slices import have_same_voxels
from data.volumes import has_suffix, strip_suffix
from options.prepare_options import SeriesOptions
from util.cli import UserError, counted, format_list

log = logging.getLogger(__name__)

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".7z", ".rar")
AIIB23_TABLES = ("data_info.xlsx", "data_info.csv")
AIIB23_KEY_COLUMN = "Mapping ID"
OSIC_KEY_COLUMN = "Patient"
HEADER_THREADS = 8  # they mostly wait for a network drive


@dataclass(frozen=True)
class Source:
    """The source of one case. Of `series` and `volume` one is set, or neither with a `problem`.

    Attributes:
        key: Its id in the source, the same in every run; two patients can share one.
        patient: Id of the patient.
        names: Names that a table may call it by, the best first.
        volume: Volume file.
        mask: Mask file.
        airway: Mask file of the airway alone.
        problem: Reason why it cannot become a case.
        problem_paths: Further paths in the text of `problem`.
        notes: Remarks for the report.
        warnings: What has to be looked at.
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
    warnings: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def identity(self) -> tuple[str, str]:
        """What distinguishes it from all other sources, the same in every run."""
        return self.key, self.patient

    def files(self) -> list[Path]:
        """Return every file that decides what the case looks like."""
        slices = [header.path for header in self.series.headers] if self.series else []
        return slices + [p for p in (self.volume, self.mask, self.airway) if p is not None]


@dataclass(frozen=True)
class Unreadable:
    """A file or folder that could not be read.

    Attributes:
        path: The file or folder.
        reason: What is wrong, as the rest of a sentence, without anything that identifies people.
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{str(self.path).encode(errors='backslashreplace').decode()} {self.reason}."


@dataclass
class Discovery:
    """Everything under a folder.

    Attributes:
        sources: The sources of cases.
        remarks: Remarks on files that are not sources.
        unreadable: Files and folders that could not be read.
        table: Clinical table of the source itself.
        key_column: Its column that names the scans.
        modality: Value of `--modality`.
    """

    sources: list[Source] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    table: Path | None = None
    key_column: str = ""
    modality: str = "ct"


def list_files(root: Path, discovery: Discovery) -> list[Path]:
    """Return every file under `root` in natural order, without archives.

    Archives and folders that cannot be read are noted in `discovery`.
    """
    paths: list[Path] = []

    def note_unreadable(error: OSError) -> None:
        reason = f"cannot be read ({error.strerror}); its content is missing"
        discovery.unreadable.append(Unreadable(Path(error.filename), reason))

    for folder, folders, names in os.walk(root, onerror=note_unreadable):
        folders.sort(key=natural_key)
        visible = [name for name in names if not name.startswith(".")]
        paths += [Path(folder) / name for name in sorted(visible, key=natural_key)]
    for path in [path for path in paths if not _is_text(str(path))]:
        paths.remove(path)
        reason = "has a name that is not UTF-8; rename it"
        discovery.unreadable.append(Unreadable(path, reason))
    archives = [str(path) for path in paths if _is_archive(path)]
    if archives:
        log.warning("Archives are not unpacked: %s.", format_list(archives))
        discovery.remarks.append(
            f"{len(archives)} archives were not unpacked; unpack them into the folder if they hold "
            "scans."
        )
    return [path for path in paths if not _is_archive(path)]


def _is_text(name: str) -> bool:
    """Return whether a name can be written as UTF-8; those of old file systems may not."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def detect_source_kind(root: Path) -> str:
    """Return "dicom", "volumes", "aiib23" or "osic" for a folder.

    Raises:
        UserError: The folder holds DICOM and volume files, or neither.
    """
    if (root / "train").is_dir() and (root / "train.csv").is_file():
        return "osic"
    # img/ beside gtlung/ alone is any cohort, whose ids and columns may identify people.
    published = (root / "gt").is_dir() or any(root.glob("data_info.*"))
    if (root / "img").is_dir() and published:
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
    root: Path,
    kind: str,
    options: SeriesOptions,
    mask_dir: Path | None = None,
    modality: str = "ct",
) -> Discovery:
    """Find the sources of cases in a folder.

    Args:
        root: The folder.
        kind: "dicom", "volumes", "aiib23" or "osic".
        options: How series are chosen.
        mask_dir: Folder of masks to load; files in it are not scans.
        modality: Value of `--modality`.

    Raises:
        UserError: The folder is not laid out as `kind` asks, or holds nothing.
    """
    discovery = Discovery(modality=modality)
    if kind in ("dicom", "osic"):
        discover = _discover_dicom if kind == "dicom" else _discover_osic
        discover(root, options, discovery)
        if mask_dir is not None:
            _add_masks(discovery, mask_dir)
    else:
        _discover_volumes(root, kind, discovery, mask_dir)
    if not discovery.sources and not discovery.unreadable:
        remarks = " ".join(discovery.remarks)
        raise UserError(f"{root} holds nothing that --source {kind} takes. {remarks}".strip())
    return discovery


@dataclass(frozen=True)
class _DicomFiles:
    """Headers of readable files, and what is wrong with the damaged ones."""

    headers: list[SliceHeader]
    damaged: list[DamagedHeader]


def _read_headers(paths: Sequence[Path], discovery: Discovery) -> _DicomFiles:
    """Read the headers of all DICOM files; other files are counted in a remark."""
    files = _DicomFiles([], [])
    others = 0
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        for result in pool.map(_header_or_error, paths):
            if isinstance(result, SliceHeader):
                files.headers.append(result)
            elif isinstance(result, DamagedHeader):
                files.damaged.append(result)
            else:
                others += 1
    if others:
        discovery.remarks.append(f"{counted(others, 'file')} passed over: no DICOM image")
    return _DicomFiles(_fill_patients(files.headers), files.damaged)


def _header_or_error(path: Path) -> SliceHeader | DamagedHeader | NotDicomImage:
    try:
        return read_slice_header(path)
    except (NotDicomImage, DamagedHeader) as error:
        return error


def _fill_patients(headers: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Return headers where slices without a patient have the only patient of their study."""
    patients: dict[str, set[str]] = defaultdict(set)
    for header in headers:
        patients[header.study].add(header.patient)
    filled = []
    for header in headers:
        known = patients[header.study] - {""}
        is_clear = not header.patient and len(known) == 1
        filled.append(replace(header, patient=next(iter(known))) if is_clear else header)
    return filled


def _discover_dicom(root: Path, options: SeriesOptions, discovery: Discovery) -> None:
    files = _read_headers(list_files(root, discovery), discovery)
    studies: dict[str, dict[str, list[DicomSeries]]] = defaultdict(lambda: defaultdict(list))
    for series in group_series(files.headers):
        studies[series.first.study][series.first.patient].append(series)
    for study, patients in studies.items():
        for patient, candidates in patients.items():
            # Where patients share a study UID, it names none of them.
            names = (patient or study, study) if len(patients) == 1 else (patient or study,)
            source = Source(study, patient or study, names)
            discovery.sources.append(
                _with_series(source, candidates, options, files, discovery.modality)
            )
    _note_shared_uids(files.headers, discovery)
    _note_damaged(files.damaged, discovery)


def _add_masks(discovery: Discovery, folder: Path) -> None:
    """Give each source of DICOM the mask of its patient or its study UID, if there is one.

    A name that several scans have belongs to none of them.
    """
    masks = _files_by_name(folder, discovery)
    counts = Counter(name for source in discovery.sources for name in set(source.names))
    for number, source in enumerate(discovery.sources):
        names = [name for name in source.names if name in masks and counts[name] == 1]
        if names:
            discovery.sources[number] = _with_mask(source, masks[names[0]])


def _with_mask(source: Source, paths: Sequence[Path], field: str = "mask") -> Source:
    """Return a source with the mask of its name, or with the problem that there are several.

    Args:
        paths: The masks of its name.
        field: The attribute that holds it.
    """
    if len(paths) > 1:
        return _with_namesakes(source, "masks", paths)
    return replace(source, **{field: paths[0]}) if paths else source  # type: ignore[arg-type]


def _with_namesakes(source: Source, noun: str, paths: Sequence[Path]) -> Source:
    """Return a source with the problem that several files have its name."""
    same = [str(path) for path in paths]
    problem = f"{len(same)} {noun} have one name: {format_list(same)}. Rename all but one."
    return replace(source, problem=problem, problem_paths=tuple(same))


def _note_shared_uids(headers: Sequence[SliceHeader], discovery: Discovery) -> None:
    """Note patients whose files have the same UIDs: they stay apart."""
    first_by_uid: dict[str, SliceHeader] = {}
    pairs = []
    for header in headers:
        first = first_by_uid.setdefault(header.instance, header)
        if header.instance and first.patient != header.patient:
            pairs.append((first, header))
    if not pairs:
        return
    first, second = pairs[0]
    tried = (pairs[0], pairs[len(pairs) // 2], pairs[-1])
    is_one_scan = all(have_same_voxels(one, other) for one, other in tried)
    log.warning(
        "%s and %s have one SOPInstanceUID, but two patient ids. They were prepared as two "
        "patients%s.",
        first.path,
        second.path,
        ", although they show the same" if is_one_scan else "",
    )
    discovery.remarks.append(
        f"{counted(len(pairs), 'file has', 'files have')} the SOPInstanceUID of a file of "
        "another patient; patients were told apart by their PatientID"
        + (", but they show the same: is one patient there under two ids?" if is_one_scan else "")
    )


def _note_damaged(damaged: Sequence[DamagedHeader], discovery: Discovery) -> None:
    """Note damaged files that are not the reason why a case fails."""
    named = {path for source in discovery.sources for path in source.problem_paths}
    for error in damaged:
        if str(error.path) not in named:
            discovery.unreadable.append(Unreadable(error.path, f"is damaged: {error.reason}"))


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
        discovery.key_column = OSIC_KEY_COLUMN
    folders = [path for path in (root / "train").iterdir() if path.is_dir()]
    for folder in sorted(folders, key=lambda path: natural_key(path.name)):
        files = _read_headers(list_files(folder, discovery), discovery)
        source = Source(folder.name, folder.name, (folder.name,))
        candidates = group_series(files.headers)
        source = _with_series(source, candidates, options, files, discovery.modality)
        discovery.sources.append(_refuse_patients(source, files.headers))
        _note_damaged(files.damaged, discovery)


def _refuse_patients(source: Source, headers: Sequence[SliceHeader]) -> Source:
    """Return the source of a folder, with a problem where its files are of several patients."""
    examples = {header.patient: header.path for header in headers if header.patient}
    if len(examples) < 2 or source.problem:
        return source
    first, second = list(examples.values())[:2]
    problem = (
        f"{first} and {second} have different patient ids, but lie in the folder of one patient. "
        "Keep one patient per folder."
    )
    return replace(source, problem=problem, problem_paths=(str(first), str(second)))


def _with_series(
    source: Source,
    candidates: Sequence[DicomSeries],
    options: SeriesOptions,
    files: _DicomFiles,
    modality: str,
) -> Source:
    """Return a source with the chosen series, or with the problem that there is none."""
    choice = choose_series(candidates, options.kernel, options.min_slices, modality)
    chosen = choice.chosen
    if chosen is None:
        reasons = "; ".join(f"{title}: {reason}" for title, reason in choice.left_out)
        wanted = "a CT of the chest" if modality == "ct" else "a scan that can be used"
        return replace(
            source,
            problem=f"No series is {wanted}. {reasons or 'no DICOM file can be read'}.",
            left_out=choice.left_out,
        )
    source = replace(
        source,
        series=chosen,
        notes=(f"{counted(chosen.copies, 'copy', 'copies')} of slices already there passed over",)
        if chosen.copies
        else (),
        left_out=choice.left_out,
    )
    return _with_damaged(source, chosen, files)


def _with_damaged(source: Source, chosen: DicomSeries, files: _DicomFiles) -> Source:
    """Return a source with what damaged files mean for it.

    A damaged file of its series, or beside it where no other study is, is a problem. One beside it
    among several studies can belong to any of them, so that each gets a warning.
    """
    folders = {header.path.parent for header in chosen.headers}
    beside = [e for e in files.damaged if not e.series and e.path.parent in folders]
    own = [error for error in files.damaged if error.series == chosen.first.series]
    if not any(h.study != chosen.first.study and h.path.parent in folders for h in files.headers):
        own += beside
    if own:
        return replace(
            source,
            problem=f"{own[0]} It lies beside the series and may be one of its slices; copy it "
            "again or remove it.",
            problem_paths=tuple(str(error.path) for error in own),
        )
    if beside:
        warning = (
            f"{counted(len(beside), 'damaged file lies', 'damaged files lie')} beside its slices "
            f"and those of other studies, such as one of which {beside[0].reason}: a slice may be "
            "missing at an end"
        )
        return replace(source, warnings=(warning,))
    return source


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
    mask_files = {path for paths in masks.values() for path in paths}
    airways: dict[str, list[Path]] = {}
    if kind == "aiib23":
        if mask_folder is None:
            airways = _files_by_name(root / "gt", discovery)
        tables = [root / name for name in AIIB23_TABLES if (root / name).is_file()]
        discovery.table = tables[0] if tables else None
        discovery.key_column = AIIB23_KEY_COLUMN
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in volumes:
        if has_suffix(path.name) and path not in mask_files:
            by_name[strip_suffix(path.name)].append(path)
    _check_no_masks_among(root, by_name)
    for name, paths in by_name.items():
        folder = paths[0].parent
        names = (name,) if laid_out or folder == root else (name, folder.name)
        source = _with_mask(Source(name, name, names, volume=paths[0]), masks.get(name, []))
        source = _with_mask(source, airways.get(name, []), "airway")
        if len(paths) > 1:
            source = _with_namesakes(source, "scans", paths)
        discovery.sources.append(source)


def _check_no_masks_among(root: Path, by_name: Mapping[str, Sequence[Path]]) -> None:
    """Raise `UserError` where most names stand in the same two folders: scans, and their masks."""
    twice = [paths for paths in by_name.values() if len(paths) == 2]
    folders = {tuple(sorted(path.parent for path in paths)) for paths in twice}
    if len(twice) < max(2, len(by_name) / 2) or len(folders) != 1:
        return
    first, second = (folder.relative_to(root) for folder in folders.pop())
    raise UserError(
        f"{root} holds {len(twice)} names twice, in {first} and in {second}, as where masks lie "
        f'beside scans. Give the folder of the scans as IN ("{root / first}"?), and that of the '
        f'masks with --mask_dir ("{root / second}"?). Of two different scans rename one.'
    )


def _files_by_name(folder: Path, discovery: Discovery) -> dict[str, list[Path]]:
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in list_files(folder, discovery) if folder.is_dir() else []:
        if has_suffix(path.name):
            by_name[strip_suffix(path.name)].append(path)
    return by_name
