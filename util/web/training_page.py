"""The page of a training run: curves of losses and validation, and pictures made on the way, newest
first.
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
from util.web import page_parts

POINTS = 400  # more points than this along a curve are averaged in bins
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
    """The log's numbers as (steps, values) a name, by figure: `loss...`, `val_...`, and the
    others.
    """
    figures: dict[str, Curves] = {name: {} for name in COLOURS}
    for record in log:
        for name, value in record.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            figure = (
                "Validation"
                if name.startswith("val")
                else "Losses"
                if name.startswith("loss")
                else "Other"
            )
            steps, values = figures[figure].setdefault(name, ([], []))
            steps.append(float(record["step"]))
            values.append(float(value))
    return {name: found for name, found in figures.items() if found}


def thinned(values: Sequence[float], points: int = POINTS) -> list[float]:
    """At most `points` values: the means of bins of one size (the last may be smaller)."""
    size = math.ceil(len(values) / points)
    return [float(np.mean(values[i : i + size])) for i in range(0, len(values), size)]


def draw_curves(found: Curves, colour: str, path: Path) -> None:
    """Draws every curve into its own small axes and saves them as an SVG file."""
    rows = math.ceil(len(found) / COLUMNS)
    figure = Figure(figsize=(3.3 * COLUMNS, 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axes, (name, (steps, values)) in zip(grid, found.items(), strict=False):
        x, y = thinned(steps), thinned(values)
        axes.plot(
            x, y, color=colour, linewidth=1.2, marker="o" if len(x) < 25 else "", markersize=3
        )
        axes.set_title(f"{name}   {values[-1]:.4g}", fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.locator_params(axis="x", nbins=5, integer=True)
    for axes in list(figure.axes)[len(found) :]:
        axes.set_axis_off()
    with atomic_path(path) as part:
        figure.savefig(part, format="svg")


def write_training_page(
    folder: Path,
    name: str,
    log: Sequence[Mapping[str, Any]],
    images: Sequence[TrainingImage],
    options: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Writes `folder`/index.html with its curves and returns its path; it may be called again as
    the run goes on.

    Args:
        folder: The page's folder; the pictures lie in it.
        name: The run's name.
        log: Records of log.jsonl: a `step` and numbers, not the same ones in every record.
        images: Pictures in any order; the newest step comes first.
        options: The run's options, by group.
    """
    page_parts.copy_assets(folder, "page.css")
    document = page_parts.new_document(f"Training of {name}", "")
    last = max((int(r["step"]) for r in log), default=0)
    with document:
        with tags.header(cls="top"):
            tags.h1(f"Training of {name}")
            tags.p(f"After step {last}. Reload the page for newer figures.", cls="note")
            page_parts.cautions()
        with tags.main():
            with tags.div(cls="cards"):
                page_parts.options_list(options)
                for title, found in curves(log).items():
                    file = f"{title.lower()}.svg"
                    draw_curves(found, COLOURS[title], folder / file)
                    with tags.section(cls="card wide"):
                        tags.h2(title)
                        tags.img(
                            src=f"{file}?step={last}",
                            alt=f"{title} over steps: {', '.join(found)}",
                            cls="curves",
                        )
            _pictures(images)
    return page_parts.write_document(document, folder / "index.html")


def _pictures(images: Sequence[TrainingImage]) -> None:
    newest = sorted(images, key=lambda image: -image.step)
    for step, group in groupby(newest, key=lambda image: image.step):
        with tags.section(cls="step card"):
            tags.h2(f"Step {step}")
            for image in group:
                tags.p(tags.b(image.case), f" {image.prompt}", cls="prompt")
                with tags.a(href=page_parts.link(image.file), title="Open the picture"):
                    tags.img(
                        src=page_parts.link(image.file),
                        alt=f"{image.case}, step {step}: mask, generated, real",
                        loading="lazy",
                    )
