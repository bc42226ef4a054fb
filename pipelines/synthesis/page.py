"""Page of a synthetic cohort: the outcome in a sentence, warnings, cases beside their source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.cohort import IMAGES, MASKS
from data.geometry import resample
from data.provenance import EDITS_FILE
from data.volumes import load_volume
from models.inference import LoadedRun
from pipelines.generation.results import training_page
from pipelines.synthesis.case_edits import edit_rows
from pipelines.synthesis.planning.planned_case import PlannedCase
from pipelines.synthesis.report import NOT_KNOWN, CohortReport, cohort_sentence, describe_changes
from util.web.figures import Panel
from util.web.page_links import LinkedPage, link_pages
from util.web.results_page import ResultsPage, ResultsReport

PICTURED_CASES = 12
EDITING = "Each volume is a real patient's scan, in which only the change is generated."


def write_cohort_page(folder: Path, run: LoadedRun, report: CohortReport) -> Path:
    """Write `folder`/index.html and return its path."""
    data = run.options.data
    kind = "Edited scans" if report.edits else "Synthetic cohort"
    title = f"{kind} {folder.name}"
    page = ResultsPage(folder, title, data.hu_window, terms=data.terms)
    records = {record["case"]: record for record in report.records}
    for case in pictured_cases(report):
        record = records[case.id]
        if report.edits:
            notes = [_edit_origin(case, record)]
            panels = _edit_panels(folder, case)
        else:
            notes = [_origin(case, record, report)]
            panels = _panels(folder, case, report.masks)
        if case.dropped:
            notes.append(f"Emptied, as the row or the text asks: {', '.join(case.dropped)}.")
        page.add_case(case.id, case.prompt.sentence, notes, panels)
    file = EDITS_FILE if report.edits else "copies.csv"
    path = page.save(
        report.options,
        ResultsReport(
            headline=cohort_sentence(report),
            notices=report.notices,
            cautions=report.limits,
            links={name: name for name in ("clinical.csv", file, "README.md")},
            tables=_tables(report),
            editing=EDITING if report.edits else "",
        ),
    )
    link_pages(LinkedPage(page.title, path), training_page(run.folder))
    return path


def _tables(report: CohortReport) -> dict[str, pd.DataFrame]:
    tables = {}
    if report.columns:
        rows = [
            [*(value or NOT_KNOWN for value in values), n] for values, n in report.counts.items()
        ]
        tables["Cases by value"] = pd.DataFrame(rows, columns=[*report.columns, "cases"])
    if report.edits:
        tables["What was changed"] = _edits_table(report.records)
    elif report.checked:
        tables["Nearest training scans"] = _copies_table(report.records)
    return tables


def pictured_cases(report: CohortReport) -> list[PlannedCase]:
    """Return the first cases of each value of the balanced columns, the values in turn."""
    in_turn = chain.from_iterable(zip_longest(*report.by_values.values()))
    return [case for case in in_turn if case is not None][:PICTURED_CASES]


MASK_ORIGIN = {
    "deform": "Mask of {source}, deformed",
    "given": "Mask of {source}, as it stands",
    "shape": "Mask drawn from the shape model for this row, on the grid of {source}",
}
MASK_CAPTIONS = {  # of the source's scan, and of the mask
    "deform": ("its mask was deformed", "deformed"),
    "given": ("its mask was used", "as it stands"),
    "shape": ("its grid was used; the mask is another", "drawn, of no patient"),
}


def _origin(case: PlannedCase, record: Mapping[str, Any], report: CohortReport) -> str:
    """Return where a case comes from, and how close it is to training scans and masks."""
    origin = MASK_ORIGIN[report.masks].format(source=case.source.id)
    if report.retrieve != "none":
        origin += f" (retrieved by {report.retrieve})"
    text = f"{origin}; seed {case.seed}."
    if report.checked and record["nearest_training_case"]:
        text += (
            f" Nearest training scan: {record['nearest_training_case']}, distance "
            f"{record['distance']:.2f} (copy below {record['threshold']:.2f})."
        )
    if record["nearest_mask"]:
        text += (
            f" Nearest training mask: {record['nearest_mask']}, distance "
            f"{record['mask_distance']:.2f} (copy below {record['mask_threshold']:.2f})."
        )
    return text


def _edit_origin(case: PlannedCase, record: Mapping[str, Any]) -> str:
    """Return whose scan was edited, and what was changed."""
    return (
        f"Edit of the real scan {case.source.id}: {describe_changes(case)}. The lungs change by "
        f"{record['mean_change_hu']:+.1f} HU in the mean and by "
        f"{record['mean_absolute_change_hu']:.1f} HU on average over voxels; seed {case.seed}."
    )


def _panels(folder: Path, case: PlannedCase, masks: str) -> list[Panel]:
    """Return the scan of the source, the synthetic volume and its mask."""
    about_scan, about_mask = MASK_CAPTIONS[masks]
    name = f"{case.id}.nii.gz"
    volume = load_volume(folder / IMAGES / name)
    mask = load_volume(folder / MASKS / name).array
    sides = volume.spacing
    panels = []
    if case.source.image is not None:
        grid = (volume.shape, volume.affine)
        scan = resample(load_volume(case.source.image), grid=grid)
        title = f"real scan {case.source.id}"
        panels.append(Panel(title, "ct", scan.array, sides, caption=about_scan, role="real"))
    file = f"{IMAGES}/{name}"
    panels.append(Panel("synthetic", "ct", volume.array, sides, file, role="generated"))
    panels.append(
        Panel("mask", "mask", mask.astype(np.uint8), sides, f"{MASKS}/{name}", about_mask)
    )
    return panels


def _edit_panels(folder: Path, case: PlannedCase) -> list[Panel]:
    """Return the source's scan, the edited one, what was added, and the mask of both."""
    name = f"{case.id}.nii.gz"
    edited = load_volume(folder / IMAGES / name)
    mask = load_volume(folder / MASKS / name).array.astype(np.uint8)
    sides = edited.spacing
    assert case.source.image is not None
    scan = load_volume(case.source.image).array
    change = edited.array.astype(np.float32) - scan
    real = Panel(f"real scan {case.source.id}", "ct", scan, sides, role="real")
    title = f"edit of {case.source.id}"
    caption = describe_changes(case)
    return [
        real,
        Panel(title, "ct", edited.array, sides, f"{IMAGES}/{name}", caption, role="generated"),
        Panel("edit minus real scan", "difference", change, sides, before=real),
        Panel("mask", "mask", mask, sides, f"{MASKS}/{name}", "the scan's own"),
    ]


def _edits_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return what was changed in every case."""
    table = pd.DataFrame(edit_rows([dict(record) for record in records]))
    names = {"source": "edit of", "mean_change_hu": "mean change, HU"}
    return table.rename(columns={**names, "mean_absolute_change_hu": "mean absolute change, HU"})


def _copies_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return every case's distance to the nearest training scan and mask, the nearest first."""
    rows = [
        {
            "case": record["case"],
            "distance": float(record["distance"]),
            "copy below": float(record["threshold"]),
            "nearest training scan": record["nearest_training_case"] or "none",
            "mask distance": float(record["mask_distance"]),
            "mask copy below": float(record["mask_threshold"]),
            "nearest training mask": record["nearest_mask"],
            "drawn again": int(record["redrawn"]),
            "left out": record["reason"] if record["left_out"] else "no",
            "source": record["source"],
        }
        for record in sorted(records, key=lambda record: record["distance"])
    ]
    table = pd.DataFrame(rows)
    if any(record["nearest_mask"] for record in records):
        return table
    return table.drop(columns=["mask distance", "mask copy below", "nearest training mask"])
