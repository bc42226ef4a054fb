"""Page of a synthetic cohort: the outcome in a sentence, warnings, cases beside their source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes

from data.cohort import IMAGES, MASKS
from data.geometry import resample
from data.volumes import load_volume
from models.inference import LoadedRun
from pipelines.results import training_page
from pipelines.synthesis.planning import LIMITS, PlannedCase
from util.notices import Notice
from util.web.figures import Panel
from util.web.page_links import LinkedPage, link_pages
from util.web.results_page import ResultsPage, ResultsReport

PICTURED_CASES = 12
TABLES = ("clinical.csv", "copies.csv", "README.md")
NOT_KNOWN = "(not known)"


@dataclass(frozen=True)
class CohortReport:
    """Content of the page of a synthetic cohort.

    Attributes:
        source: Name of the real cohort.
        column: The balanced column; "" for none.
        checked: Whether copies of training scans were searched for.
        records: Records of all cases, those left out, too.
        written: The cases that were written.
        options: The command's options.
        notices: Warnings of the command.
    """

    source: str
    column: str
    checked: bool
    records: Sequence[Mapping[str, Any]]
    written: Sequence[PlannedCase]
    options: Mapping[str, Mapping[str, Any]]
    notices: Sequence[Notice] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Number of cases by value of the balanced column."""
        return {value: len(cases) for value, cases in sorted(_by_value(self).items())}


def write_cohort_page(folder: Path, run: LoadedRun, report: CohortReport) -> Path:
    """Write `folder`/index.html and return its path."""
    data = run.options.data
    title = f"Synthetic cohort {folder.name}"
    page = ResultsPage(folder, title, data.hu_window, terms=data.terms)
    records = {record["case"]: record for record in report.records}
    for case in pictured_cases(report):
        record = records[case.id]
        notes = [_origin(case, record, report.checked)]
        if case.dropped:
            notes.append(f"Emptied, because they contradict the row: {', '.join(case.dropped)}.")
        page.add_case(case.id, case.prompt.sentence, notes, _panels(folder, case))
    tables = {}
    if report.column:
        tables["Cases by value"] = pd.DataFrame(
            {report.column: list(report.counts), "cases": list(report.counts.values())}
        )
    if report.checked:
        tables["Nearest training scans"] = _copies_table(report.records)
    path = page.save(
        report.options,
        ResultsReport(
            headline=cohort_sentence(report, run.folder.name, run.state["step"]),
            notices=report.notices,
            cautions=LIMITS,
            links={name: name for name in TABLES},
            tables=tables,
        ),
    )
    link_pages(LinkedPage(page.title, path), training_page(run.folder))
    return path


def cohort_sentence(report: CohortReport, run: str, step: int) -> str:
    """Return what was made, from what, and how close it comes to the training scans."""
    sources = len({case.source.id for case in report.written})
    text = (
        f"{len(report.written)} synthetic cases by {run} (step {step}), from the masks of "
        f"{sources} cases of {report.source}"
    )
    if report.column:
        counts = [f"{value or NOT_KNOWN} {n}" for value, n in report.counts.items()]
        text += f"; {report.column}: {', '.join(counts)}"
    if not report.checked:
        return f"{text}. Copies of training scans were not searched for."
    redrawn = sum(int(record["redrawn"]) for record in report.records)
    left_out = sum(bool(record["left_out"]) for record in report.records)
    text += f". {redrawn} draws were too close to a training scan and drawn again, {left_out} cases"
    text += " left out"
    kept = [r for r in report.records if not r["left_out"] and r["nearest_training_case"]]
    if not kept:
        return f"{text}."
    nearest = min(kept, key=lambda record: record["distance"])
    return (
        f"{text}; the nearest, {nearest['case']}, is at distance {nearest['distance']:.2f} from "
        f"{nearest['nearest_training_case']} (copy below {nearest['threshold']:.2f})."
    )


def pictured_cases(report: CohortReport) -> list[PlannedCase]:
    """Return the first cases of each value of the balanced column, the values in turn."""
    by_value = [cases for _, cases in sorted(_by_value(report).items())]
    in_turn = chain.from_iterable(zip_longest(*by_value))
    return [case for case in in_turn if case is not None][:PICTURED_CASES]


def _by_value(report: CohortReport) -> dict[str, list[PlannedCase]]:
    by_value: dict[str, list[PlannedCase]] = defaultdict(list)
    for case in report.written:
        by_value[case.row.get(report.column, "")].append(case)
    return by_value


def _origin(case: PlannedCase, record: Mapping[str, Any], checked: bool) -> str:
    """Return where a case comes from, and how close it is to a training scan."""
    text = f"Mask of {case.source.id}, deformed; seed {case.seed}."
    if checked and record["nearest_training_case"]:
        text += (
            f" Nearest training scan: {record['nearest_training_case']}, distance "
            f"{record['distance']:.2f} (copy below {record['threshold']:.2f})."
        )
    return text


def _panels(folder: Path, case: PlannedCase) -> list[Panel]:
    """Return the scan whose mask was used, the synthetic volume and its mask."""
    name = f"{case.id}.nii.gz"
    volume = load_volume(folder / IMAGES / name)
    mask = load_volume(folder / MASKS / name).array
    sides = [float(side) for side in voxel_sizes(volume.affine)]
    panels = []
    if case.source.image is not None:
        grid = (volume.shape, volume.affine)
        scan = resample(load_volume(case.source.image), grid=grid)
        title = f"real scan {case.source.id}"
        caption = "its mask was deformed"
        panels.append(Panel(title, "ct", scan.array, sides, caption=caption, role="real"))
    file = f"{IMAGES}/{name}"
    panels.append(Panel("synthetic", "ct", volume.array, sides, file, role="generated"))
    panels.append(
        Panel("mask", "mask", mask.astype(np.uint8), sides, f"{MASKS}/{name}", "deformed")
    )
    return panels


def _copies_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return every case's distance to the nearest training scan, the nearest first."""
    rows = [
        {
            "case": record["case"],
            "distance": float(record["distance"]),
            "copy below": float(record["threshold"]),
            "nearest training scan": record["nearest_training_case"] or "none",
            "drawn again": int(record["redrawn"]),
            "left out": "yes" if record["left_out"] else "no",
            "mask of": record["source"],
        }
        for record in sorted(records, key=lambda record: record["distance"])
    ]
    return pd.DataFrame(rows)
