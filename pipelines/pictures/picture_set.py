"""Pictures to take away from a results folder: animations, stacks, figures, strongest slices."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.volumes import strip_suffix
from options.base_options import DataOptions
from options.picture_options import PictureSetOptions
from pipelines.generation.case_writer import display_window
from pipelines.generation.results import results_data
from pipelines.pictures.panels import (
    case_rows,
    cohort_panels,
    drawn_columns,
    join_panels,
    read_results,
    result_panel,
)
from util.cli import UserError, unique_names
from util.web.figures import Panel, nice_limit
from util.web.slice_sheet import SliceSheet, find_ffmpeg, frame_slices, save_animation, top_slices

log = logging.getLogger(__name__)

MIN_LIMIT = 20.0  # smallest range of differences, HU, so that a null effect looks like one
FORMATS = ("gif", "mp4", "png", "svg", "top")


def draw_picture_set(options: PictureSetOptions) -> list[Path]:
    """Draw the pictures of cases and attributes; return the files and folders.

    Raises:
        UserError: The folder holds no results, or not of this case or attribute, the cohort lies on
            another grid, or ffmpeg is missing.
    """
    results = Path(options.RESULTS)
    rows = read_results(results)
    data = results_data(results) or DataOptions()
    labels = options.lung_labels or data.lung_labels
    formats = _formats(options)
    cases = list(dict.fromkeys(row["case"] for row in rows))
    if options.case:
        cases = [options.case]
    elif options.how_many:
        cases = cases[: options.how_many]
    columns = {
        case: drawn_columns(case_rows(results, rows, case), case, options.column) for case in cases
    }
    names = unique_names(_plain_name(case, c) for case, varied in columns.items() for c in varied)
    written: list[Path] = []
    for case, varied in columns.items():
        beside = cohort_panels(Path(options.dataroot), case, data) if options.dataroot else []
        for column in varied:
            panels = [
                result_panel(results, row)
                for row in case_rows(results, rows, case)
                if row["kind"] == "own" or (column and row["column"] == column)
            ]
            stem = Path(options.out) / names[_plain_name(case, column)]
            heading = f"{case} · {column}" if column else case
            panels = join_panels(beside, panels, case, options.dataroot)
            pictures = _PictureSet(heading, panels, labels, data)
            written += _draw(options, formats, stem, pictures)
    return written


def _plain_name(case: str, column: str) -> str:
    """Return what the files of an attribute of a case are called, before it is a file name."""
    return f"{strip_suffix(case)}__{column}" if column else strip_suffix(case)


def draw_animations(results: Path, dataroot: str) -> list[Path]:
    """Draw animations of every case and attribute into `results`/pictures; return the files."""
    options = PictureSetOptions(
        RESULTS=str(results),
        dataroot=dataroot,
        how_many=0,
        formats=("gif", "mp4") if find_ffmpeg() else ("gif",),
        out=str(results / "pictures"),
    )
    return draw_picture_set(options)


def _formats(options: PictureSetOptions) -> list[str]:
    """Return the formats to write; without a choice, MP4 only where ffmpeg is there.

    Raises:
        UserError: MP4 is asked for, and ffmpeg is missing.
    """
    if options.formats:
        if "mp4" in options.formats and not find_ffmpeg():
            raise UserError(
                "--formats mp4 needs the program ffmpeg. Install it, or the package "
                "imageio-ffmpeg, or take gif."
            )
        return list(options.formats)
    return [name for name in FORMATS if name != "mp4" or find_ffmpeg()]


@dataclass(frozen=True)
class _PictureSet:
    """The volumes of one attribute of one case.

    Attributes:
        heading: Text at the top.
        panels: The volumes, with mask and real scan where they are known, on one grid.
        labels: Mask labels whose slices are shown.
        data: How the run reads scans.
    """

    heading: str
    panels: Sequence[Panel]
    labels: Sequence[int]
    data: DataOptions

    @property
    def shown(self) -> list[Panel]:
        """The volumes but the mask."""
        return [_short(panel) for panel in self.panels if panel.kind != "mask"]

    @property
    def content(self) -> np.ndarray:
        """Where the labels are; the whole mask where it has none, everything without a mask."""
        for mask in [panel for panel in self.panels if panel.kind == "mask"]:
            for content in (np.isin(mask.array, self.labels), mask.array > 0):
                if content.any():
                    return content
        return np.ones(self.panels[0].array.shape, bool)

    def sheet(self, plane: str, limit: float, heading: str = "", **words: Any) -> SliceSheet:
        """Return the volumes side by side."""
        return SliceSheet(
            self.shown,
            plane,
            heading or self.heading,
            display_window(self.data),
            limit,
            unit=self.data.terms.unit,
            **words,
        )


def _draw(
    options: PictureSetOptions, formats: Sequence[str], stem: Path, pictures: _PictureSet
) -> list[Path]:
    """Draw one attribute of one case."""
    content = pictures.content
    differences = [panel.array for panel in pictures.shown if panel.kind == "difference"]
    limit = options.limit or _limit(differences, content)
    stem.parent.mkdir(parents=True, exist_ok=True)
    sheet = pictures.sheet(options.plane, limit)
    slices = frame_slices(content, options.plane, options.frames)
    top = top_slices(differences, content, options.plane, options.top) if differences else []
    written: list[Path] = []
    for name in ("gif", "mp4"):
        if name in formats:
            written.append(stem.with_name(f"{stem.name}.{name}"))
            save_animation(sheet, slices, written[-1], options.fps)
    if "png" in formats:
        written.append(stem.with_name(f"{stem.name}_slices"))
        _save_stack(sheet, slices, written[-1])
    if "svg" in formats:
        strongest = top_slices(differences, content, options.plane, 1) if differences else []
        sheet.show(strongest[0] if strongest else slices[len(slices) // 2])
        written.append(stem.with_name(f"{stem.name}.svg"))
        sheet.save(written[-1])
    if "top" in formats and top:
        written.append(stem.with_name(f"{stem.name}_top.png"))
        text = f"{pictures.heading}: {options.plane} slices with the largest differences"
        pictures.sheet(options.plane, limit, text, indices=top).save(written[-1])
    for path in written:
        log.info("Wrote %s", path)
    return written


def _save_stack(sheet: SliceSheet, slices: Sequence[int], folder: Path) -> None:
    """Save every slice as a PNG of its own, named by its number."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for index in slices:
        sheet.show(index)
        sheet.save(folder / f"{index + 1:04d}.png")


def _short(panel: Panel) -> Panel:
    """Return a panel whose title fits above a picture: the value without its attribute."""
    return replace(panel, title=panel.title.rpartition("\n= ")[2])


def _limit(differences: Sequence[np.ndarray], content: np.ndarray) -> float:
    """Return the range of differences: their 99.5th percentile where it counts, rounded up."""
    largest = [float(np.quantile(np.abs(d[content]), 0.995)) for d in differences]
    return max(MIN_LIMIT, nice_limit(max(largest, default=0.0)))
