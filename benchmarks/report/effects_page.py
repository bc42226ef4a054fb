"""The page of the effects benchmark: generated effects beside the truth and the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from dominate import tags
from matplotlib.figure import Figure

from benchmarks.report.effects_tables import (
    CONFIGURATION_COLUMNS,
    REGIONS,
    Configuration,
    control_frame,
    incomplete_frame,
    mean_over_seeds,
    pair_frame,
    slope_frame,
)
from util.web import page_parts

TITLE = "Effects on planted truth"
COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e")
GOAL = (0.8, 1.2)  # slopes
SLOPES_TEXT = (
    "A slope is the sum of generated times true effect over the sum of squared true effects, over "
    "test cases and pairs of values whose truth is at least 5 HU. A slope of 1 is the truth; a "
    "dash means that no truth there is that large. The truth is the same patient rendered again "
    "with one value changed."
)
ORACLE_TEXT = (
    "HU, mean over test cases. The oracle is an ordinary regression of the training scans' mean "
    "lung HU on their complete table. The column of incomplete rows is the same regression of the "
    "rows as training sees them. A network may differ from the oracle by a tenth of the truth and "
    "3 HU."
)
INCOMPLETE_TEXT = (
    "The same slopes, found by an ordinary regression of the training scans' regional means on "
    "five columns (those with an effect, and the null) of their rows as training sees them, with "
    "empty cells. A network has to learn which columns matter."
)
CONTROLS_TEXT = (
    "Mean size of the change in HU in the lungs when a column without effect changes, outside the "
    "lungs whatever changes, and in the lungs when the prompt's wording or order changes. Slope "
    "over ages never seen. Voxel error over the noise-free truth's, SD of lung voxels over the "
    "scans', Wasserstein-1 distance of lung histograms over that between two halves of the scans. "
    "Minutes of training, CLIP included."
)


def draw_slopes(slopes: pd.DataFrame, attribute: str, path: Path) -> None:
    """Draw the slopes of one attribute by region: a colour per configuration, a dot per seed.

    Args:
        slopes: See `slope_frame`.
        path: The PNG file to write.
    """
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.axhspan(*GOAL, color="0.9", zorder=0)
    axes.axhline(1, color="0.5", linewidth=1, linestyle="--")
    rows = slopes[slopes["attribute"] == attribute]
    groups = list(rows.groupby(CONFIGURATION_COLUMNS, sort=False))
    for number, ((name, cases, patient_sd), part) in enumerate(groups):
        shift = (number - (len(groups) - 1) / 2) * 0.8 / len(groups)
        x = [region + shift for region in range(len(REGIONS))] * len(part)
        axes.plot(
            x,
            part[list(REGIONS)].to_numpy().ravel(),
            "o",
            markersize=5,
            color=COLOURS[number % len(COLOURS)],
            label=f"{name}, {cases} cases, SD {patient_sd} HU",
        )
    axes.set_xticks(range(len(REGIONS)), REGIONS)
    axes.set(title=attribute, ylabel="slope (1 is the truth)", xlim=(-0.6, len(REGIONS) - 0.4))
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)


def write_effects_page(
    folder: Path, configurations: Sequence[Configuration], real: Sequence[str], null: str
) -> Path:
    """Write `folder`/index.html and return its path.

    Args:
        folder: Folder of the benchmark.
        configurations: Metrics of finished configurations.
        real: Attributes with an effect.
        null: The column without effect.
    """
    web = folder / "web"
    page_parts.copy_assets(web, "page.css")
    document = page_parts.new_document(TITLE, "web/")
    slopes = slope_frame(configurations, real)
    tables = {
        "Slopes": (SLOPES_TEXT, slopes),
        "Slopes of a regression of the same incomplete rows": (
            INCOMPLETE_TEXT,
            incomplete_frame(configurations, real),
        ),
        "In the lungs, beside the oracle": (ORACLE_TEXT, pair_frame(configurations)),
        "What must not change, and how the volumes look": (
            CONTROLS_TEXT,
            control_frame(configurations, null),
        ),
    }
    with document:
        page_parts.page_header(TITLE)
        with tags.main(cls="evidence"):
            for title, (text, frame) in tables.items():
                with page_parts.card(f"{title}: mean over seeds"):
                    page_parts.note(text)
                    page_parts.frame_table(mean_over_seeds(frame), "{:.2f}".format)
            with page_parts.card("Slopes by region"):
                low, high = GOAL
                page_parts.note(f"A dot is a seed; the band reaches from {low:g} to {high:g}.")
                for number, attribute in enumerate(real):
                    file = f"slopes_{number}.png"
                    draw_slopes(slopes, attribute, web / file)
                    page_parts.chart(f"web/{file}", f"Slopes of {attribute} by region")
            for title, (_, frame) in tables.items():
                with page_parts.card(f"{title}: every configuration"):
                    page_parts.frame_table(frame, "{:.2f}".format)
    return page_parts.write_document(document, folder / "index.html")
