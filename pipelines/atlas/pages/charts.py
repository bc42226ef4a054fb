"""Charts of an atlas: forest plot, heat map of attributes by regions, changes along the values of
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from pipelines.atlas.statistics.sentences import format_hu, format_interval
from util.web.figures import DIVERGING

GENERATED, REAL, RANGE, PERMUTED = "#1f4e79", "#d1701f", "#a9b4c2", "#e7e2d3"
SHORT = {
    "lungs": "both\nlungs",
    "right_lung": "right\nlung",
    "left_lung": "left\nlung",
    "upper": "upper\nthirds",
    "middle": "middle\nthirds",
    "lower": "lower\nthirds",
    "core": "core",
    "rim": "subpleural\nrim",
    "airway": "airways\n(control)",
    "outside": "outside\n(control)",
}

Labels = Mapping[str, str]


def save(figure: Figure, stem: Path) -> None:
    """`stem`.png and `stem`.svg."""
    for ending in ("png", "svg"):
        path = stem.with_name(f"{stem.name}.{ending}")
        figure.savefig(path, dpi=150, facecolor="white", bbox_inches="tight", pad_inches=0.1)


def contrasts_shown(tests: pd.DataFrame, region: str = "lungs") -> pd.DataFrame:
    """Rows of one region without slopes, whose unit is another, in the order of the table, columns
    together.
    """
    return tests[(tests["region"] == region) & (tests["kind"] != "slope")].reset_index(drop=True)


def forest_plot(tests: pd.DataFrame, effects: pd.DataFrame, labels: Labels, stem: Path) -> None:
    """A row a contrast: generated and real difference of both lungs.

    Args:
        tests: Rows of tests.csv.
        effects: Rows of effects.csv, for the range over patients.
        labels: Contrasts for people.
        stem: File name without its ending.
    """
    rows = contrasts_shown(tests).merge(
        effects[["contrast", "region", "patients", "patients_low_hu", "patients_high_hu"]],
        "left",
        ["contrast", "region"],
    )
    figure = Figure(figsize=(11, 1.9 + 0.46 * max(1, len(rows))), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(rows.to_dict("records")):
        _forest_row(axes, y, row)
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks(range(len(rows)), [labels[c] for c in rows["contrast"]])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(
        "Difference in the mean of both lungs (HU); left of 0: less dense, right of 0: denser"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    for x, text in ((1.03, "generated"), (1.2, "real scans [95 % interval]")):
        axes.text(x, 1.0, text, transform=axes.transAxes, fontsize=8.5, va="bottom", color="0.3")
    figure.legend(
        handles=_forest_legend(rows),
        loc="outside lower center",
        ncols=2,
        fontsize=8.5,
        frameon=False,
    )
    save(figure, stem)


def _forest_row(axes: Axes, y: int, row: Mapping[str, Any]) -> None:
    if row["permuted"] > 0:
        reach = row["permuted_max_hu"]
        axes.add_patch(Rectangle((-reach, y - 0.38), 2 * reach, 0.76, color=PERMUTED, zorder=0))
    made, up, down = row["generated_hu"], y - 0.14, y + 0.14
    if pd.notna(row["refit_low_hu"]):
        axes.plot(
            [row["refit_low_hu"], row["refit_high_hu"]], [up, up], color=GENERATED, linewidth=2
        )
    else:
        ends = [row["patients_low_hu"], row["patients_high_hu"]]
        axes.plot(ends, [up, up], color=RANGE, linewidth=1, linestyle=(0, (2, 2)))
    axes.plot(made, up, "o", color=GENERATED, markersize=7)
    said = "no estimate"
    if pd.notna(row["real_hu"]):
        axes.plot([row["real_low_hu"], row["real_high_hu"]], [down, down], color=REAL, linewidth=2)
        axes.plot(
            row["real_hu"],
            down,
            "s",
            color=REAL,
            markersize=6,
            markerfacecolor="white",
            markeredgewidth=1.6,
        )
        said = f"{format_hu(row['real_hu'])} {format_interval(row['real_low_hu'], row['real_high_hu'])}"
    for x, text in (
        (1.03, format_hu(made)),
        (1.2, said),
        (1.5, "finding" if row["verdict"] == "finding" else ""),
    ):
        axes.text(
            x,
            y,
            text.replace("-", "−"),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
        )


def _forest_legend(rows: pd.DataFrame) -> list[Line2D | Patch]:
    refitted, permuted = rows["refit_low_hu"].notna(), rows["permuted"] > 0
    made: list[Line2D | Patch] = [
        Line2D(
            [], [], color=GENERATED, marker="o", linestyle="", label="generated, mean over patients"
        ),
        Line2D(
            [],
            [],
            color=REAL,
            marker="s",
            markerfacecolor="white",
            linewidth=2,
            label="real scans, adjusted, 95 % interval",
        ),
    ]
    if refitted.any():
        made.append(Line2D([], [], color=GENERATED, linewidth=2, label="95 % interval over refits"))
    if (~refitted).any():
        made.append(
            Line2D(
                [],
                [],
                color=RANGE,
                linestyle=(0, (2, 2)),
                label="lowest to highest patient (not an uncertainty)",
            )
        )
    if permuted.any():
        made.append(Patch(color=PERMUTED, label="reached by permuted refits (chance)"))
    return made


def heat_map(tests: pd.DataFrame, labels: Labels, limit: float, stem: Path) -> None:
    """Generated difference of every contrast in every region; findings have a frame.

    Args:
        tests: Rows of tests.csv.
        labels: Contrasts for people.
        limit: Colours run from minus to plus this, HU.
        stem: File name without its ending.
    """
    shown = tests[(tests["kind"] != "slope") & tests["region"].isin(list(SHORT))]
    regions = [r for r in SHORT if (shown["region"] == r).any()]
    contrasts = list(dict.fromkeys(shown["contrast"]))
    wide = shown.pivot(index="contrast", columns="region", values="generated_hu")
    table = wide.reindex(contrasts)[regions].to_numpy(float)
    figure = Figure(
        figsize=(3.6 + 0.78 * len(regions), 1.5 + 0.42 * max(1, len(contrasts))),
        layout="constrained",
    )
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    for (y, x), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.7 * limit else "black"
            axes.text(
                x,
                y,
                format_hu(value).replace("-", "−"),
                ha="center",
                va="center",
                fontsize=9,
                color=colour,
            )
    found = set(
        zip(
            *(shown.loc[shown["verdict"] == "finding", c] for c in ("contrast", "region")),
            strict=True,
        )
    )
    for contrast, region in found:
        axes.add_patch(
            Rectangle(
                (regions.index(region) - 0.46, contrasts.index(contrast) - 0.46),
                0.92,
                0.92,
                fill=False,
                edgecolor="black",
                linewidth=2,
            )
        )
    axes.set_xticks(range(len(regions)), [SHORT[r] for r in regions], fontsize=8.5)
    axes.set_yticks(range(len(contrasts)), [labels[c] for c in contrasts], fontsize=9)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    controls = [i for i, r in enumerate(regions) if r in ("airway", "outside")]
    if controls:
        axes.axvline(controls[0] - 0.5, color="0.3", linewidth=1)
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.015)
    bar.set_label("HU (blue: less dense, red: denser)", fontsize=8.5)
    save(figure, stem)


def dose_plot(doses: pd.DataFrame, units: Mapping[str, str], stem: Path) -> bool:
    """Change of both lungs along the values of every number; False, and no file, where there is
    none.

    Args:
        doses: Rows of doses.csv.
        units: Unit of each number column.
        stem: File name without its ending.
    """
    columns = [c for c in units if ((doses["column"] == c) & (doses["region"] == "lungs")).any()]
    if not columns:
        return False
    figure = Figure(
        figsize=(4.2 * min(3, len(columns)), 3.1 * -(-len(columns) // 3)), layout="constrained"
    )
    grid = figure.subplots(-(-len(columns) // 3), min(3, len(columns)), squeeze=False).ravel()
    for axes, column in zip(grid, columns, strict=False):
        part = doses[(doses["column"] == column) & (doses["region"] == "lungs")]
        x, y, sd = (
            part[c].to_numpy(float) for c in ("value", "mean_change_hu", "sd_over_cases_hu")
        )
        axes.fill_between(
            x, y - np.nan_to_num(sd), y + np.nan_to_num(sd), color=RANGE, alpha=0.35, linewidth=0
        )
        axes.plot(x, y, "o-", color=GENERATED)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set(
            title=column,
            xlabel=units[column] or column,
            ylabel=f"Change against {part['value'].iloc[0]} (HU)",
        )
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(columns) :]:
        axes.set_visible(False)
    save(figure, stem)
    return True


def largest_change(tests: pd.DataFrame, regions: Sequence[str]) -> float:
    """The largest generated change of a region without slopes, HU; 0 where there is none."""
    shown = tests[(tests["kind"] != "slope") & tests["region"].isin(regions)]["generated_hu"].abs()
    return float(shown.max()) if len(shown) and shown.notna().any() else 0.0
