"""Volumes of a results folder and its cohort as panels of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.cohort import IMAGES
from data.geometry import Volume
from data.intensity import IntensityScale
from data.load_cohort import files_by_case
from data.volumes import load_volume
from options.base_options import DataOptions
from util.cli import UserError, format_list
from util.files import path_inside, read_csv
from util.web.figures import Panel

RESULT_COLUMNS = ("file", "case", "kind", "column", "value", "from", "to")  # of volumes.csv


def read_results(results: Path) -> list[dict[str, str]]:
    """Return the rows of the table of volumes of a results folder.

    Raises:
        UserError: The folder holds no results.
    """
    table = results / "volumes.csv"
    if not table.is_file():
        raise UserError(f"{table} does not exist; RESULTS is the folder that test.py wrote.")
    rows = read_csv(table, RESULT_COLUMNS)
    if not rows:
        raise UserError(f"{table} has no rows. Give the folder that test.py wrote.")
    return rows


def case_rows(results: Path, rows: list[dict[str, str]], case: str) -> list[dict[str, str]]:
    """Return the rows of a case.

    Raises:
        UserError: The results have no such case.
    """
    rows_of_case = [row for row in rows if row["case"] == case]
    if not rows_of_case:
        cases = format_list(sorted({row["case"] for row in rows}))
        raise UserError(f"--case {case!r} is not in {results / 'volumes.csv'}; it has: {cases}.")
    return rows_of_case


def drawn_columns(rows: Sequence[Mapping[str, str]], case: str, chosen: str) -> list[str]:
    """Return the attributes of a case to draw: those varied, or the chosen one; "" for none.

    Raises:
        UserError: The chosen one was not varied.
    """
    varied = list(dict.fromkeys(row["column"] for row in rows if row["kind"] == "varied"))
    if chosen and chosen not in varied:
        raise UserError(
            f"--column {chosen!r} was not varied for {case}; there are: "
            f"{format_list(varied) or 'none'}."
        )
    return [chosen] if chosen else varied or [""]


def cohort_panels(
    root: Path, case: str, data: DataOptions | None = None, scan_title: str = "real scan"
) -> list[Panel]:
    """Return mask and scan of a case, as far as the cohort has them.

    Args:
        root: The cohort.
        data: How the cohort is read; as chest CT by default.
        scan_title: What the scan is called.
    """
    data = data or DataOptions()
    scale = IntensityScale.from_options(data)
    panels = []
    for folder, kind, title in ((data.mask_folder, "mask", "mask"), (IMAGES, "ct", scan_title)):
        files = files_by_case(root / folder) if (root / folder).is_dir() else {}
        if case in files:
            volume = load_volume(files[case])
            if kind == "ct" and scale is not None:
                volume = scale(volume)
            panels.append(_panel(volume, kind, title))
    return panels


def result_panel(results: Path, row: dict[str, str]) -> Panel:
    """Return the volume of a row of the table of volumes."""
    volume = load_volume(path_inside(results, row["file"], results / "volumes.csv"))
    if row["kind"] == "difference":
        return _panel(volume, "difference", f"{row['to']}\nminus {row['from']}")
    title = "generated" if row["kind"] == "own" else f"{row['column']}\n= {row['value']}"
    return _panel(volume, "ct", title)


def join_panels(
    beside: Sequence[Panel], volumes: Sequence[Panel], case: str, dataroot: str
) -> list[Panel]:
    """Return what a cohort has of a case, then its volumes in the results.

    Raises:
        UserError: They lie on different grids, so that no slice is one of both.
    """
    shape = volumes[0].array.shape
    for panel in beside:
        if panel.array.shape != shape:
            raise UserError(
                f"--dataroot {dataroot}: the {panel.title} of case {case} has the shape "
                f"{panel.array.shape}, its volumes in the results have {shape}. Give the cohort "
                "that the results were made from, or leave --dataroot out."
            )
    return [*beside, *volumes]


def _panel(volume: Volume, kind: str, title: str) -> Panel:
    return Panel(title, kind, volume.array, volume.spacing)  # type: ignore[arg-type]
