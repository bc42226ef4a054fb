"""The page of the proof on planted truth: what came back, beside the truth and the oracle, with a
chart an attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from dominate import tags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.report.effects_tables import (
    KIND,
    REGIONS,
    Cell,
    contrast_frame,
    control_frame,
    known_frame,
    over_seeds,
    slope_frame,
)
from util.web import page_parts

COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e")
GOAL = (0.8, 1.2)
SLOPE = (
    "A slope is the sum of generated times true effect over the sum of squared true effects, over "
    "test cases and pairs of values whose truth is at least 5 HU; 1 is the truth, a dash means "
    "that no truth there is that large. The truth is the same patient rendered again with one "
    "value changed."
)
ORACLE = (
    "HU, mean over test cases. The oracle is an ordinary regression of the training scans' mean "
    "lung HU on their complete table; under incomplete rows stands what the same regression finds "
    "in the rows as training sees them. A network is allowed to differ from the oracle by a tenth "
    "of the truth and 3 HU."
)
KNOWN = (
    "The same slopes, found by an ordinary regression of the training scans' regional means on "
    "five columns (those with an effect, and the null) of their rows as training sees them, with "
    "empty cells. A network has to find out by itself which columns matter."
)
CONTROL = (
    "Mean size of the change in the lungs when a column without effect changes, outside the lungs "
    "whatever changes, and in the lungs when the prompt's wording or order changes, HU; slope over "
    "ages never seen; voxel error over the noise-free truth's, SD of lung voxels over the scans', "
    "Wasserstein-1 distance of lung histograms over that between two halves of the scans; minutes "
    "of training, CLIP with them."
)


def slope_chart(slopes: pd.DataFrame, attribute: str, path: Path) -> Path:
    """Slopes of one attribute by region: a column a region, a colour a kind of cell, a dot a
    seed.
    """
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhspan(*GOAL, color="0.9", zorder=0)
    axes.axhline(1, color="0.5", linewidth=1, linestyle="--")
    kinds = list(slopes[slopes["attribute"] == attribute].groupby(KIND, sort=False))
    for k, (names, part) in enumerate(kinds):
        shift = (k - (len(kinds) - 1) / 2) * 0.8 / len(kinds)
        x = [i + shift for i in range(len(REGIONS))] * len(part)
        axes.plot(
            x,
            part[list(REGIONS)].to_numpy().ravel(),
            "o",
            markersize=5,
            color=COLOURS[k % len(COLOURS)],
            label=f"{names[0]}, {names[1]} cases, SD {names[2]} HU",
        )
    axes.set_xticks(range(len(REGIONS)), REGIONS)
    axes.set(title=attribute, ylabel="slope (1 is the truth)", xlim=(-0.6, len(REGIONS) - 0.4))
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)
    return path


def write_proof_page(folder: Path, cells: Sequence[Cell], real: Sequence[str], null: str) -> Path:
    """Writes folder/index.html: tables over seeds, a chart for each attribute that has an effect,
    and every cell.
    """
    page_parts.copy_assets(folder / "web", "page.css")
    document = page_parts.new_document("Effects on planted truth", "web/")
    slopes = slope_frame(cells, real)
    frames = {
        "Slopes": (SLOPE, slopes),
        "Slopes of a regression on the same incomplete rows": (KNOWN, known_frame(cells, real)),
        "In the lungs, beside the oracle": (ORACLE, contrast_frame(cells)),
        "What must not change, and how the volumes look": (CONTROL, control_frame(cells, null)),
    }
    with document, tags.main(cls="evidence"):
        tags.h1("Effects on planted truth")
        for title, (note, frame) in frames.items():
            tags.h2(f"{title}: mean over seeds")
            tags.p(note)
            page_parts.frame_table(over_seeds(frame), "{:.2f}".format)
        tags.h2("Slopes by region")
        tags.p(f"A dot is a seed; the band reaches from {GOAL[0]:g} to {GOAL[1]:g}.")
        for k, attribute in enumerate(real):
            chart = slope_chart(slopes, attribute, folder / "web" / f"slopes_{k}.png")
            tags.img(
                src=f"web/{chart.name}",
                alt=f"Slopes of {attribute} by region",
                style="max-width:100%",
            )
        for title, (_, frame) in frames.items():
            tags.h2(f"{title}: every cell")
            page_parts.frame_table(frame, "{:.2f}".format)
        page_parts.cautions()
    return page_parts.write_document(document, folder / "index.html")
