"""The page of a training run: curves, and pictures of validation cases, newest first.

TensorBoard draws the same numbers while it runs; this page can be opened from disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from dominate import tags
from matplotlib.figure import Figure

from util.files import atomic_path
from util.metrics.fidelity import texture_notes
from util.web import page_parts

MAX_POINTS = 400  # more points than this along a curve are averaged in bins
COLUMNS = 4
COLOURS = {"Losses": "#2563a8", "Validation": "#b4552d", "Other": "#5c6878"}


@dataclass(frozen=True)
class TrainingImage:
    """A picture made in training (see `util.web.figures.slice_row`).

    Attributes:
        step: The step after which it was made.
        case: The case shown.
        prompt: The text it was generated from.
        file: Name of the PNG file, relative to the page's folder.
    """

    step: int
    case: str
    prompt: str
    file: str


Curves = dict[str, tuple[list[float], list[float]]]


def curves(log: Sequence[Mapping[str, Any]]) -> dict[str, Curves]:
    """Return the log's numbers as (steps, values) by name, for each chart of `COLOURS`."""
    charts: dict[str, Curves] = {name: {} for name in COLOURS}
    for record in log:
        for name, value in record.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            steps, values = charts[_chart_of(name)].setdefault(name, ([], []))
            steps.append(float(record["step"]))
            values.append(float(value))
    return {name: chart for name, chart in charts.items() if chart}


def _chart_of(name: str) -> str:
    if name.startswith("val"):
        return "Validation"
    return "Losses" if name.startswith("loss") else "Other"


def binned(values: Sequence[float], points: int = MAX_POINTS) -> list[float]:
    """Return at most `points` values: the means of bins of one size (the last may be smaller)."""
    size = math.ceil(len(values) / points)
    return [float(np.mean(values[i : i + size])) for i in range(0, len(values), size)]


def draw_curves(chart: Curves, colour: str, path: Path) -> None:
    """Draw every curve into its own small axes and save them as an SVG file."""
    rows = math.ceil(len(chart) / COLUMNS)
    figure = Figure(figsize=(3.3 * COLUMNS, 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, (name, (steps, values)) in zip(grid, chart.items(), strict=False):
        x = binned(steps)
        marker = "o" if len(x) < 25 else ""
        axes.plot(x, binned(values), color=colour, linewidth=1.2, marker=marker, markersize=3)
        axes.set_title(f"{name}   {values[-1]:.4g}", fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.locator_params(axis="x", nbins=5, integer=True)
    for axes in grid[len(chart) :]:
        axes.set_axis_off()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg")


def write_training_page(
    folder: Path,
    name: str,
    log: Sequence[Mapping[str, Any]],
    images: Sequence[TrainingImage],
    options: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Write `folder`/index.html with its curves and return its path; a later call replaces it.

    Args:
        folder: The page's folder; the pictures lie in it.
        name: The run's name.
        log: Records of log.jsonl: a `step` and numbers, not the same ones in every record.
        images: Pictures in any order; the newest step comes first.
        options: The run's options, by group.
    """
    page_parts.copy_assets(folder, "page.css")
    title = f"Training of {name}"
    document = page_parts.new_document(title)
    last = max((int(record["step"]) for record in log), default=0)
    with document:
        state = f"After step {last}. Reload the page for newer numbers."
        page_parts.page_header(title, tags.p(state, cls="note"))
        with tags.main():
            notes = validation_notes(log)
            if notes:
                with page_parts.card("Read before judging"):
                    page_parts.bullet_list(notes, "cautions")
            with tags.div(cls="cards"):
                page_parts.option_tables(options)
                for kind, chart in curves(log).items():
                    file = f"{kind.lower()}.svg"
                    draw_curves(chart, COLOURS[kind], folder / file)
                    with page_parts.card(kind, "wide"):
                        text = f"{kind} over steps: {', '.join(chart)}"
                        page_parts.chart(f"{file}?step={last}", text)
            _pictures(images)
    return page_parts.write_document(document, folder / "index.html")


def validation_notes(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on the texture of the newest validation."""
    newest: dict[str, float] = {}
    for record in log:
        for name in ("val_lung_detail_ratio", "val_lung_noise_correlation"):
            if isinstance(record.get(name), int | float):
                newest[name] = record[name]
    return texture_notes(
        newest.get("val_lung_detail_ratio"), newest.get("val_lung_noise_correlation")
    )


def _pictures(images: Sequence[TrainingImage]) -> None:
    newest = sorted(images, key=lambda image: -image.step)
    for step, group in groupby(newest, key=lambda image: image.step):
        with page_parts.card(f"Step {step}", "step"):
            for image in group:
                tags.p(tags.b(image.case), f" {image.prompt}", cls="prompt")
                with tags.a(href=page_parts.link(image.file), title="Open the picture"):
                    tags.img(
                        src=page_parts.link(image.file),
                        alt=f"{image.case}, step {step}: mask, generated, real",
                        loading="lazy",
                    )
