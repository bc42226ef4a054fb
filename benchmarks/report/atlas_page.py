"""The page of the atlas benchmark: intervals, permuted fits, associations, a planted effect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from dominate import tags
from matplotlib.figure import Figure

from util.web import page_parts

TITLE = "The atlas on planted truth"
HOLDS_COLOUR = "#1f77b4"
MISSES_COLOUR = "#d62728"

StudyMetrics = Mapping[str, Any]


def write_atlas_page(
    folder: Path, studies: Mapping[str, StudyMetrics], sentences: Mapping[str, str]
) -> Path:
    """Write `folder`/index.html and return its path.

    Args:
        folder: Folder of the benchmark.
        studies: Metrics of each finished study.
        sentences: Outcome of each study in a sentence.
    """
    page_parts.copy_assets(folder / "web", "page.css")
    document = page_parts.new_document(TITLE, "web/")
    with document:
        page_parts.page_header(TITLE)
        with tags.main(cls="evidence"):
            for name, metrics in studies.items():
                with page_parts.card(TITLES[name]):
                    tags.p(sentences[name])
                    SECTIONS[name](folder / "web", metrics)
    return page_parts.write_document(document, folder / "index.html")


def _coverage(web: Path, metrics: StudyMetrics) -> None:
    rows = pd.DataFrame(metrics["rows"])
    draw_intervals(rows, web / "coverage.png")
    page_parts.chart("web/coverage.png", "Intervals minus the truth")
    holds = rows["holds"].map({True: "yes", False: "no"})
    page_parts.frame_table(rows.assign(holds=holds), "{:.1f}".format)


def draw_intervals(rows: pd.DataFrame, path: Path) -> None:
    """Draw each interval minus its truth; one that holds 0 holds the truth.

    Args:
        rows: Attribute, effect, interval and truth (HU), and whether the interval holds it.
        path: The PNG file to write.
    """
    rows = rows.sort_values(["column", "generated_hu"], ignore_index=True)
    figure = Figure(figsize=(8, 0.22 * len(rows) + 1), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="0.5", linewidth=1, linestyle="--")
    for holds, colour, label in (
        (True, HOLDS_COLOUR, "holds the truth"),
        (False, MISSES_COLOUR, "misses it"),
    ):
        part = rows[rows["holds"] == holds]
        middle = part["generated_hu"] - part["true_hu"]
        reach = [part["generated_hu"] - part["low_hu"], part["high_hu"] - part["generated_hu"]]
        axes.errorbar(
            middle, part.index, xerr=reach, fmt="o", color=colour, markersize=4, label=label
        )
    axes.set_yticks(range(len(rows)), rows["column"])
    axes.set(xlabel="generated effect with its 95 % interval, minus the truth (HU)")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)


def _permuted(web: Path, metrics: StudyMetrics) -> None:
    rows = []
    for fit, places in metrics["findings"].items():
        if places:
            rows.append({"fit": fit, "declared": ", ".join(places)})
    if rows:
        page_parts.frame_table(pd.DataFrame(rows))


def _associations(web: Path, metrics: StudyMetrics) -> None:
    tags.p(
        "Width of the 95 % interval of the lungs' effect in HU, mean over cohorts: without the "
        "association (free), and with it (from refits alone, and from the atlas):"
    )
    widths = pd.DataFrame(metrics["widths_hu"]).rename_axis("attribute").reset_index()
    page_parts.frame_table(widths, "{:.1f}".format)
    tags.p("The same in each cohort:")
    page_parts.frame_table(pd.DataFrame(metrics["widths"]), "{:.1f}".format)
    warnings = []
    for cohort, texts in metrics["warnings"].items():
        warnings += [f"Cohort {cohort}: {text}" for text in texts]
    page_parts.bullet_list(warnings)


def _planted_effect(web: Path, metrics: StudyMetrics) -> None:
    page_parts.frame_table(pd.DataFrame(metrics["rows"]), "{:.2f}".format)
    tags.p(
        "Each random half, beside what a regression of these very scans finds (real_hu, 95 % "
        "interval):"
    )
    page_parts.frame_table(pd.DataFrame(metrics["draws"]), "{:.2f}".format)


TITLES = {
    "coverage": "Do intervals hold the truth?",
    "permuted": "Are fits that can know nothing declared findings?",
    "ties": "Two associated attributes",
    "spike": "An effect planted in one place",
}
SECTIONS = {
    "coverage": _coverage,
    "permuted": _permuted,
    "ties": _associations,
    "spike": _planted_effect,
}
