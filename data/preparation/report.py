"""The report of a prepared dataroot: `report.csv` for programs, `report.html` for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.preparation.case import REPORT_FOLDER, VOXELS_FOLDER, CaseFiles, Record
from data.preparation.pictures import MASK, SCAN, CaseView
from data.preparation.quality import LUNG_MEASURES, PERCENTILES
from data.preparation.sources import Source, Unreadable
from data.review import Review, read_review
from options.parser import command_line
from options.prepare_options import PrepareCommand
from util.cli import counted
from util.files import write_csv
from util.modality import MODALITIES
from util.web.preparation_page import CaseCard, CaseSlices, PreparationFacts, write_preparation_page

SHOWN_OPTIONS = ("series", "grid", "work")  # the others may hold paths that identify people
MEASURED_COLUMNS = (*(f"hu_p{p}" for p in PERCENTILES), *LUNG_MEASURES)


@dataclass(frozen=True)
class PreparationReport:
    """The content of a report.

    Attributes:
        out: The dataroot.
        options: The flags of the command.
        origins: Every column of the table and where it comes from.
        records: Records by case.
        failed: Reasons by case that could not be prepared.
        sources: Sources by case.
        remarks: Remarks on the folder as a whole.
        unreadable: Files and folders that could not be read.
        private: Whether the report names no file of the source.
    """

    out: Path
    options: PrepareCommand
    origins: Mapping[str, str]
    records: Mapping[str, Record]
    failed: Mapping[str, str]
    sources: Mapping[str, Source]
    remarks: Sequence[str]
    unreadable: Sequence[Unreadable]
    private: bool


def hide_paths(text: str, source: Source) -> str:
    """Return a message without the paths of source files, which may hold names of people."""
    paths = {*map(str, source.files()), *source.problem_paths}
    for path in sorted(paths, key=len, reverse=True):
        text = text.replace(path, "A source file")
    return text


def csv_row(case: str, record: Record | None, reason: str = "") -> dict[str, Any]:
    """Return a case as a line of `report.csv`; without a record it failed for a reason."""
    if record is None:
        absent = (*MEASURED_COLUMNS, "masks", "slices", "warnings", "left_out", "seconds")
        row = {"case": case, "state": "failed", **dict.fromkeys((*absent, "peak_mb"), "")}
        return row | {"warnings": reason}
    measures = record["measures"]
    row = {"case": case, "state": "ready"}
    for name in ("spacing_mm", "extent_mm", "shape"):
        row |= {f"{name}_{axis}": measures[name][i] for i, axis in enumerate("xyz")}
    columns = MEASURED_COLUMNS
    if "label_ml" in measures:  # not chest CT, or labels that are not lungs
        if "hu_p50" not in measures:
            columns = tuple(f"p{p}" for p in PERCENTILES)
        row |= {f"label_{label}_ml": ml for label, ml in measures["label_ml"].items()}
    return {
        **row,
        **{name: measures.get(name, "") for name in columns},
        "masks": record["masks"],
        "slices": record["slices"],
        "warnings": " | ".join(record["warnings"]),
        "left_out": len(record["left_out"]),
        "seconds": record["seconds"],
        "peak_mb": record["peak_mb"],
    }


def case_card(case: str, record: Record, out: Path, review: Review | None) -> CaseCard:
    """Return a case of a dataroot as the page shows it, with what a person decided on it."""
    measures = record["measures"]
    facts = {
        "Voxels": " × ".join(map(str, measures["shape"])),
        "Voxel size": f"{_dimensions(measures['spacing_mm'])} mm",
        "Extent": f"{_dimensions(measures['extent_mm'])} mm",
        **_intensity_facts(measures),
        **(_label_facts(measures) if "label_ml" in measures else _lung_facts(measures)),
        "Mask": record["masks"],
    }
    return CaseCard(
        case,
        f"{REPORT_FOLDER}/{case}.png",
        facts,
        tuple(record["warnings"]),
        tuple(record["notes"]),
        tuple((title, reason) for title, reason in record["left_out"]),
        slices=_slices(case, record, out),
        mark=review.mark if review else "",
        note=review.note if review else "",
    )


def _intensity_facts(measures: Mapping[str, Any]) -> dict[str, str]:
    """Return percentiles of a scan for readers: HU, or intensities as scanned."""
    if "hu_p50" in measures:
        name, values = "HU", [_integer(measures[f"hu_p{p}"]) for p in PERCENTILES]
    else:
        values = [f"{measures[f'p{p}']:.4g}".replace("-", "−") for p in PERCENTILES]
        name = "Intensity as scanned"
    return {f"{name} ({', '.join(map(str, PERCENTILES))} %)": ", ".join(values)}


def _lung_facts(measures: Mapping[str, Any]) -> dict[str, str]:
    """Return density and volumes of the lungs of a chest CT for readers."""
    median = measures["lung_hu_median"]
    return {
        "Left lung": f"{measures['left_l']:.2f} l",
        "Right lung": f"{measures['right_l']:.2f} l",
        "Airway": f"{measures['airway_ml']:.0f} ml",
        "Lung median": "–" if median is None else f"{_integer(median)} HU",
    }


def _label_facts(measures: Mapping[str, Any]) -> dict[str, str]:
    """Return volumes of labels for readers."""
    return {f"Label {label}": f"{ml:.3g} ml" for label, ml in measures["label_ml"].items()}


def _slices(case: str, record: Record, out: Path) -> CaseSlices | None:
    view = CaseView.from_record(record, CaseFiles.in_dataroot(out, case).record)
    if view is None:
        return None
    labels = tuple(label for label in record["measures"]["labels"] if label)
    return CaseSlices(view.grid, view.volumes, f"{case}/{SCAN}", f"{case}/{MASK}", labels)


def _dimensions(values: Sequence[float]) -> str:
    return " × ".join(f"{value:.3g}" for value in values)


def _integer(value: float) -> str:
    return f"{value:.0f}".replace("-", "−")


def write_report(report: PreparationReport) -> None:
    """Write `report.csv` and `report.html` into the dataroot; neither holds a path of a source."""
    rows = [csv_row(case, record) for case, record in report.records.items()]
    rows += [csv_row(case, None, reason) for case, reason in report.failed.items()]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(report.out / "report.csv", columns or ["case"], rows)
    failed = []
    for case, reason in report.failed.items():
        left_out = report.sources[case].left_out
        failed.append(CaseCard(case, "", {}, warnings=(reason,), left_out=left_out))
    reviews = read_review(report.out)
    cards = [
        case_card(case, record, report.out, reviews.get(case))
        for case, record in report.records.items()
    ]
    grid = replace(report.options.grid, mask_dir="")  # a path, like the groups left out
    groups = command_line(replace(report.options, grid=grid))
    flags = {name: groups[name] for name in groups if name in SHOWN_OPTIONS}
    remarks = [*report.remarks, *_unreadable_remarks(report)]
    voxels = f"{REPORT_FOLDER}/{VOXELS_FOLDER}/"
    terms = MODALITIES[report.options.source.modality]
    facts = PreparationFacts(report.origins, remarks, flags, terms)
    write_preparation_page(report.out, voxels, failed, cards, facts)


def _unreadable_remarks(report: PreparationReport) -> list[str]:
    """Return what could not be read: by its name, or counted where names may identify people."""
    if not report.private:
        return list(map(str, report.unreadable))
    counts = Counter(item.reason for item in report.unreadable)
    return [
        f"{counted(count, 'file or folder', 'files or folders')} that the command's messages name: "
        f"{reason}"
        for reason, count in counts.items()
    ]
