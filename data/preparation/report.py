"""The report of a prepared dataroot: `report.csv` for programs, `report.html` for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.preparation import dataroot
from data.preparation.case import PAGES, Record
from data.preparation.quality import PERCENTILES
from data.preparation.sources import Source
from options.parser import command_line
from util.web.preparation_page import CaseCard, write_preparation_page

SHOWN_OPTIONS = ("series", "grid", "work")  # the others may hold paths that identify people


@dataclass(frozen=True)
class Report:
    """All that a report tells: records and reasons of failures by case, sources by case, remarks on
    the folder.
    """

    out: Path
    options: Any
    columns: Mapping[str, str]
    done: Mapping[str, Record]
    failed: Mapping[str, str]
    sources: Mapping[str, Source]
    remarks: tuple[str, ...]
    unreadable: tuple[str, ...]


def without_paths(text: str, source: Source) -> str:
    """A message without the paths of source files, which may hold names of people."""
    for path in sorted({*map(str, source.files()), *source.named}, key=len, reverse=True):
        text = text.replace(path, "A source file")
    return text


def csv_row(case: str, record: Record | None, reason: str = "") -> dict[str, Any]:
    """A case as a line of `report.csv`."""
    m = record["measures"] if record else {}
    sides = (
        {
            f"{name}_{axis}": m[name][i]
            for name in ("spacing_mm", "extent_mm", "shape")
            for i, axis in enumerate("xyz")
        }
        if m
        else {}
    )
    names = [f"hu_p{p}" for p in PERCENTILES] + ["left_l", "right_l", "airway_ml", "lung_hu_median"]
    return {
        "case": case,
        "state": "ready" if record else "failed",
        **sides,
        **{name: m.get(name, "") for name in names},
        "masks": record["masks"] if record else "",
        "slices": record["slices"] if record else "",
        "warnings": " | ".join(record["warnings"]) if record else reason,
        "left_out": len(record["left_out"]) if record else "",
        "seconds": record["seconds"] if record else "",
        "peak_mb": record["peak_mb"] if record else "",
    }


def card(case: str, record: Record) -> CaseCard:
    """A case as the page shows it."""
    m = record["measures"]
    by = " × ".join
    spacing, extent = (by(f"{v:.3g}" for v in m[k]) for k in ("spacing_mm", "extent_mm"))
    facts = {
        "Voxels": f"{by(map(str, m['shape']))}",
        "Voxel size": f"{spacing} mm",
        "Extent": f"{extent} mm",
        "HU (1, 50, 99 %)": ", ".join(f"{m[f'hu_p{p}']:.0f}" for p in PERCENTILES).replace(
            "-", "−"
        ),
        "Left lung": f"{m['left_l']:.2f} l",
        "Right lung": f"{m['right_l']:.2f} l",
        "Airway": f"{m['airway_ml']:.0f} ml",
        "Lung median": f"{m['lung_hu_median']:.0f} HU".replace("-", "−")
        if m["lung_hu_median"] is not None
        else "–",
        "Mask": record["masks"],
    }
    return CaseCard(
        case,
        f"{PAGES}/{case}.png",
        facts,
        tuple(record["warnings"]),
        tuple(record["notes"]),
        tuple((name, reason) for name, reason in record["left_out"]),
    )


def write(report: Report) -> Path:
    """Writes `report.csv` and `report.html` into the dataroot, whole or not at all; no path of a
    source stands in them.
    """
    rows: list[dict[str, Any]] = [csv_row(case, record) for case, record in report.done.items()]
    rows += [csv_row(case, None, reason) for case, reason in report.failed.items()]
    fields = list(dict.fromkeys(name for row in rows for name in row))
    dataroot.write_rows(report.out / "report.csv", rows, fields or ["case"])
    failed = [
        CaseCard(case, "", {}, (reason,), (), report.sources[case].left_out)
        for case, reason in report.failed.items()
    ]
    cards = [card(case, record) for case, record in report.done.items()]
    shown = replace(
        report.options, grid=replace(report.options.grid, mask_dir="")
    )  # a path, as in the groups left out
    lines = {k: v for k, v in command_line(shown).items() if k in SHOWN_OPTIONS}
    remarks = list(report.remarks)
    if report.unreadable:
        remarks.append(
            f"{len(report.unreadable)} files or folders could not be read; the command's messages "
            "name them"
        )
    return write_preparation_page(report.out, failed, cards, report.columns, remarks, lines)
