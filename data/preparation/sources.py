"""What a folder holds: cases to be, each a chosen DICOM series or a volume file, and what cannot
become one.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from data.cohort import natural_key
from data.preparation.choice import choose
from data.preparation.headers import Damaged, NotDicom, SliceHeader, read_header
from data.preparation.series import Series, group
from data.volumes import has_suffix, strip_suffix
from options.prepare_options import SeriesOptions
from util.cli import UserError, format_list

log = logging.getLogger(__name__)

BROKEN = "cannot be read: its DICOM header is cut off or damaged."
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".7z", ".rar")


@dataclass(frozen=True)
class Source:
    """A case to be. Of `series` and `volume` one is set, or neither where `problem` says why there
    is none.

    `key` tells it from all others and stays the same from run to run; `names` are what a table may
    call it by, the best first; `named` are further paths that `problem` names.
    """

    key: str
    patient: str
    names: tuple[str, ...]
    series: Series | None = None
    volume: Path | None = None
    mask: Path | None = None
    airway: Path | None = None
    problem: str = ""
    named: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    def files(self) -> list[Path]:
        """Every file that decides what the case looks like."""
        own = [h.path for h in self.series.headers] if self.series else []
        return own + [p for p in (self.volume, self.mask, self.airway) if p is not None]


@dataclass
class Found:
    """Everything under a folder: `sources` and `remarks` about what is none; `table` where the
    source has one of its own.
    """

    sources: list[Source] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    table: Path | None = None


def walk(root: Path, found: Found) -> list[Path]:
    """Every file under `root` in natural order; folders that cannot be read are noted, archives
    too.
    """
    paths: list[Path] = []

    def refused(error: OSError) -> None:
        found.unreadable.append(
            f"{error.filename} cannot be read ({error.strerror}); what it holds is missing."
        )

    for folder, folders, names in os.walk(root, onerror=refused):
        folders.sort(key=natural_key)
        paths += [
            Path(folder) / name
            for name in sorted(names, key=natural_key)
            if not name.startswith(".")
        ]
    archives = [p for p in paths if p.name.lower().endswith(ARCHIVES)]
    if archives:
        log.warning("Archives are not unpacked: %s.", format_list([str(p) for p in archives]))
        found.remarks.append(
            f"{len(archives)} archives were not unpacked; unpack them into the folder if they hold "
            "scans"
        )
    return [p for p in paths if p not in set(archives)]


def guess(root: Path) -> str:
    """What kind of source a folder is."""
    if (root / "train").is_dir() and (root / "train.csv").is_file():
        return "osic"
    if (root / "img").is_dir() and ((root / "gt").is_dir() or (root / "gtlung").is_dir()):
        return "aiib23"
    files = walk(root, Found())
    volumes = any(has_suffix(p.name) for p in files)
    dicom = any(_is_dicom(p) for p in files if not has_suffix(p.name))
    if volumes and dicom:
        raise UserError(
            f"{root} holds DICOM and volume files; say which to prepare: --source dicom or "
            "--source volumes."
        )
    if not volumes and not dicom:
        archives = [p.name for p in root.rglob("*") if p.name.lower().endswith(ARCHIVES)]
        more = (
            f" It holds archives, which are not unpacked: {format_list(archives)}; unpack them first."
            if archives
            else ""
        )
        raise UserError(f"{root} holds no DICOM series and no volume file.{more}")
    return "volumes" if volumes else "dicom"


def _is_dicom(path: Path) -> bool:
    try:
        read_header(path)
    except NotDicom:
        return False
    except Damaged:
        return True
    return True


def discover(root: Path, kind: str, options: SeriesOptions, mask_dir: Path | None = None) -> Found:
    """Finds the cases of a folder.

    Args:
        root: The folder.
        kind: "dicom", "volumes", "aiib23" or "osic".
        options: How series are chosen.
        mask_dir: Folder of given masks; files in it are no scans.

    Raises:
        UserError: A folder that is not laid out as `kind` asks, or holds nothing.
    """
    found = Found()
    if kind == "dicom":
        _dicom(walk(root, found), options, found)
    elif kind == "osic":
        _osic(root, options, found)
    else:
        _volumes(root, kind, found, mask_dir)
    if not found.sources and not found.unreadable:
        raise UserError(
            f"{root} holds nothing that --source {kind} takes. {' '.join(found.remarks)}".strip()
        )
    return found


def read_headers(
    paths: Sequence[Path], found: Found
) -> tuple[list[SliceHeader], dict[Path, list[Path]]]:
    """The headers of all DICOM files, and by folder the damaged ones; other files are counted in a
    remark.
    """
    headers: list[SliceHeader] = []
    damaged: dict[Path, list[Path]] = defaultdict(list)
    other = 0
    with ThreadPoolExecutor(8) as pool:  # waiting for a network drive, mostly
        for path, header in zip(paths, pool.map(_try, paths), strict=True):
            if isinstance(header, SliceHeader):
                headers.append(header)
            elif header is not None:
                damaged[path.parent].append(path)
            else:
                other += 1
    if other:
        found.remarks.append(f"{other} files are no DICOM pictures and were passed over")
    return headers, damaged


def _try(path: Path) -> SliceHeader | Damaged | None:
    try:
        return read_header(path)
    except NotDicom:
        return None
    except Damaged as error:
        return error


def _dicom(paths: Sequence[Path], options: SeriesOptions, found: Found) -> None:
    headers, damaged = read_headers(paths, found)
    studies: dict[str, list[Series]] = defaultdict(list)
    for series in group(headers):
        studies[series.first.study].append(series)
    for study, candidates in studies.items():
        patient = next((s.first.patient for s in candidates if s.first.patient), "") or study
        found.sources.append(
            _chosen(study, patient, (patient, study), candidates, options, damaged)
        )
    lonely = set(damaged) - {h.path.parent for h in headers}
    found.unreadable += [
        f"{path} {BROKEN}" for folder in sorted(lonely) for path in damaged[folder]
    ]


def _osic(root: Path, options: SeriesOptions, found: Found) -> None:
    """The Kaggle folder: `train/<Patient>/*.dcm`, one scan a patient, and `train.csv` with several
    visits a patient.
    """
    if not (root / "train").is_dir():
        raise UserError(f"{root} has no folder train/ with a folder a patient, as OSIC has it.")
    found.table = root / "train.csv" if (root / "train.csv").is_file() else None
    for folder in sorted(
        (p for p in (root / "train").iterdir() if p.is_dir()), key=lambda p: natural_key(p.name)
    ):
        headers, damaged = read_headers(walk(folder, found), found)
        found.sources.append(
            _chosen(folder.name, folder.name, (folder.name,), group(headers), options, damaged)
        )


def _chosen(
    key: str,
    patient: str,
    names: tuple[str, ...],
    candidates: Sequence[Series],
    options: SeriesOptions,
    damaged: dict[Path, list[Path]],
) -> Source:
    choice = choose(candidates, options.kernel, options.min_slices)
    left_out = choice.left_out
    if choice.chosen is None:
        said = (
            "; ".join(f"{name}: {reason}" for name, reason in left_out)
            or "no DICOM file can be read"
        )
        return Source(
            key,
            patient,
            names,
            problem=f"No series is a CT of the chest. {said}.",
            left_out=left_out,
        )
    folders = {h.path.parent for h in choice.chosen.headers}
    broken = [str(path) for folder in sorted(folders & set(damaged)) for path in damaged[folder]]
    problem = (
        f"{broken[0]} {BROKEN} It lies beside the series and may be one of its slices; copy it "
        "again or remove it."
        if broken
        else ""
    )
    copies = choice.chosen.copies
    notes = (f"{copies} files were copies of slices already there",) if copies else ()
    return Source(
        key,
        patient,
        names,
        series=choice.chosen,
        problem=problem,
        named=tuple(broken),
        notes=notes,
        left_out=left_out,
    )


def _volumes(root: Path, kind: str, found: Found, mask_dir: Path | None) -> None:
    """Volume files: all under `root`, or those of `img/` where that stands beside masks."""
    laid_out = kind == "aiib23" or (root / "img").is_dir()
    if kind == "aiib23" and not (root / "img").is_dir():
        raise UserError(f"{root} has no folder img/ with volumes, as AIIB23 has it.")
    files = [p for p in walk(root / "img" if laid_out else root, found) if has_suffix(p.name)]
    lungs = mask_dir or (root / "gtlung" if laid_out and (root / "gtlung").is_dir() else None)
    masks, airways = (
        _by_name(lungs, found),
        _by_name(root / "gt" if kind == "aiib23" and not lungs else None, found),
    )
    if kind == "aiib23":
        found.table = next(
            (p for n in ("data_info.xlsx", "data_info.csv") if (p := root / n).is_file()), None
        )
    inside = set(masks.values())
    by_id: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if path not in inside:
            by_id[strip_suffix(path.name)].append(path)
    for name, paths in by_id.items():
        names = (
            name,
            *([paths[0].parent.name] if paths[0].parent != root and not laid_out else []),
        )
        same = [str(p) for p in paths] if len(paths) > 1 else []
        twice = (
            f"{len(same)} scans have one name: {format_list(same)}. Rename all but one."
            if same
            else ""
        )
        found.sources.append(
            Source(
                name,
                name,
                names,
                volume=paths[0],
                mask=masks.get(name),
                airway=airways.get(name),
                problem=twice,
                named=tuple(same),
            )
        )


def _by_name(folder: Path | None, found: Found) -> dict[str, Path]:
    files: Iterable[Path] = walk(folder, found) if folder is not None and folder.is_dir() else ()
    return {strip_suffix(p.name): p for p in files if has_suffix(p.name)}
