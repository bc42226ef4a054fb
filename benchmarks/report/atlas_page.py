"""The page of the atlas's proof: intervals against the truth, permuted fits, tied attributes, a
planted effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from dominate import tags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from util.web import page_parts

Found = Mapping[str, Any]
HOLDS, MISSES = "#1f77b4", "#d62728"


def write_atlas_proof(folder: Path, found: Mapping[str, Found], said: Mapping[str, str]) -> Path:
    """Writes folder/index.html.

    Args:
        folder: Of the benchmark.
        found: The figures of each finished study.
        said: Its outcome in a sentence.
    """
    page_parts.copy_assets(folder / "web", "page.css")
    document = page_parts.new_document("The atlas on planted truth", "web/")
    with document, tags.main(cls="evidence"):
        tags.h1("The atlas on planted truth")
        for name, figures in found.items():
            tags.h2(TITLES[name])
            tags.p(said[name])
            SECTIONS[name](folder / "web", figures)
        page_parts.cautions()
    return page_parts.write_document(document, folder / "index.html")


def _coverage(web: Path, figures: Found) -> None:
    rows = pd.DataFrame(figures["rows"])
    chart = interval_chart(rows, web / "coverage.png")
    tags.img(src=f"web/{chart.name}", alt="Intervals minus the truth", style="max-width:100%")
    page_parts.frame_table(
        rows.assign(holds=rows["holds"].map({True: "yes", False: "no"})), "{:.1f}".format
    )


def interval_chart(rows: pd.DataFrame, path: Path) -> Path:
    """Each interval minus its truth, sorted; one that holds 0 holds the truth."""
    rows = rows.sort_values(["column", "generated_hu"], ignore_index=True)
    figure = Figure(figsize=(8, 0.22 * len(rows) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axvline(0, color="0.5", linewidth=1, linestyle="--")
    for holds, colour, label in ((True, HOLDS, "holds the truth"), (False, MISSES, "misses it")):
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
    return path


def _permuted(web: Path, figures: Found) -> None:
    declared = [
        {"fit": name, "declared": ", ".join(places)}
        for name, places in figures["findings"].items()
        if places
    ]
    if declared:
        page_parts.frame_table(pd.DataFrame(declared))


def _ties(web: Path, figures: Found) -> None:
    widths = pd.DataFrame(figures["widths_hu"]).rename_axis("attribute").reset_index()
    tags.p(
        "Width of the 95 % interval of the lungs' effect in HU, mean over cohorts: without the tie "
        "(free), and with it (what refits alone say, and what the atlas says):"
    )
    page_parts.frame_table(widths, "{:.1f}".format)
    tags.p("The same in each cohort:")
    page_parts.frame_table(pd.DataFrame(figures["widths"]), "{:.1f}".format)
    tags.ul(
        *(
            tags.li(f"Cohort {cohort}: {text}")
            for cohort, texts in figures["warnings"].items()
            for text in texts
        )
    )


def _spike(web: Path, figures: Found) -> None:
    page_parts.frame_table(pd.DataFrame(figures["rows"]), "{:.2f}".format)
    tags.p(
        "Each random half, beside what a regression of these very scans finds (real_hu, 95 % "
        "interval):"
    )
    page_parts.frame_table(pd.DataFrame(figures["draws"]), "{:.2f}".format)


TITLES = {
    "coverage": "Do intervals hold the truth?",
    "permuted": "Are fits that can know nothing declared findings?",
    "ties": "Two attributes that go together",
    "spike": "An effect planted in one place",
}
SECTIONS = {"coverage": _coverage, "permuted": _permuted, "ties": _ties, "spike": _spike}
