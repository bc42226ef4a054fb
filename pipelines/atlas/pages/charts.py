"""Charts of an atlas: forest plot, heat map, agreement with real scans, changes along numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from numpy.typing import NDArray

from pipelines.atlas.statistics.outcomes import ALL_OUTCOMES, MEAN
from pipelines.atlas.statistics.regional import tested_regions
from pipelines.atlas.statistics.sentences import format_change, format_interval
from util.metrics.regions import region_name
from util.modality import CT, Terms
from util.web.figures import DIVERGING

GENERATED_COLOUR = "#1f4e79"
REAL_COLOUR = "#d1701f"
RANGE_COLOUR = "#a9b4c2"
PERMUTED_COLOUR = "#e7e2d3"
DASHES = (0, (2, 2))
AGREEMENT_COLOURS = {
    "agrees": "#1b7837",
    "same sign": "#7fbf7b",
    "opposite sign": "#b2182b",
    "not generated": "#ef8a62",
    "no effect in either": "#4d4d4d",
    "cannot tell": "#bababa",
}
TICK_WIDTH = 11  # characters of a line below a cell
OUTCOME_LIMIT = 5.0  # times what is negligible, where the colours of outcomes end
LUNG_REGIONS = ("lungs", "right_lung", "left_lung", "upper", "middle", "lower", "core", "rim")
CONTROL_REGIONS = ("airway", "outside")
REGION_TICKS = {
    **{region: region_name(region).replace(" ", "\n") for region in LUNG_REGIONS},
    "airway": f"{region_name('airway')}\n(control)",
    "outside": "outside\n(control)",
}
# Where the columns of text stand beside the forest plot, in widths of the axes.
GENERATED_X = 1.03
REAL_X = 1.2
VERDICT_X = 1.5

Labels = Mapping[str, str]


def save_chart(figure: Figure, stem: Path, terms: Terms) -> None:
    """Save `stem`.png and `stem`.svg, in the words of the modality."""
    rename_texts(figure, terms)
    for ending in ("png", "svg"):
        path = stem.with_name(f"{stem.name}.{ending}")
        figure.savefig(path, dpi=150, facecolor="white", bbox_inches="tight", pad_inches=0.1)


def rename_texts(figure: Figure, terms: Terms) -> None:
    """Change all texts of a chart to those of the modality."""
    if not terms.is_ct:
        for text in figure.findobj(Text):
            text.set_text(terms.text(text.get_text()))


def contrasts_shown(tests: pd.DataFrame, region: str = "lungs") -> pd.DataFrame:
    """Return the mean's rows of one region without slopes, whose unit is another."""
    shown = mean_contrasts(tests)
    return shown[shown["region"] == region].reset_index(drop=True)


def mean_contrasts(tests: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the mean without slopes."""
    return tests[(tests["outcome"] == MEAN) & (tests["kind"] != "slope")]


def _with_minus(text: str) -> str:
    return text.replace("-", "−")


def forest_plot(
    tests: pd.DataFrame, effects: pd.DataFrame, labels: Labels, stem: Path, terms: Terms = CT
) -> None:
    """Draw a row per contrast: generated and real difference of both lungs.

    Args:
        tests: Rows of tests.csv.
        effects: Rows of effects.csv, for the range over patients.
        labels: Contrasts with their names for readers.
        stem: File name without its ending.
        terms: Unit and words of the modality.
    """
    keys = ["contrast", "outcome", "region"]
    ranges = effects[[*keys, "patients", "patients_low", "patients_high"]]
    rows = contrasts_shown(tests).merge(ranges, "left", keys)
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
    for x, text in ((GENERATED_X, "generated"), (REAL_X, "real scans [95 % interval]")):
        axes.text(x, 1.0, text, transform=axes.transAxes, fontsize=8.5, va="bottom", color="0.3")
    handles = _forest_legend(rows)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8.5, frameon=False)
    save_chart(figure, stem, terms)


def _forest_row(axes: Axes, y: int, row: Mapping[str, Any]) -> None:
    if row["permuted"] > 0:
        reach = row["permuted_max"]
        axes.add_patch(
            Rectangle((-reach, y - 0.38), 2 * reach, 0.76, color=PERMUTED_COLOUR, zorder=0)
        )
    texts = {
        GENERATED_X: format_change(row["generated"]),
        REAL_X: _forest_real(axes, y + 0.14, row),
        VERDICT_X: "finding" if row["verdict"] == "finding" else "",
    }
    _forest_generated(axes, y - 0.14, row)
    for x, text in texts.items():
        axes.text(
            x,
            y,
            _with_minus(text),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
        )


def _forest_generated(axes: Axes, y: float, row: Mapping[str, Any]) -> None:
    if pd.notna(row["refit_low"]):
        ends = [row["refit_low"], row["refit_high"]]
        axes.plot(ends, [y, y], color=GENERATED_COLOUR, linewidth=2)
    else:
        ends = [row["patients_low"], row["patients_high"]]
        axes.plot(ends, [y, y], color=RANGE_COLOUR, linewidth=1, linestyle=DASHES)
    axes.plot(row["generated"], y, "o", color=GENERATED_COLOUR, markersize=7)


def _forest_real(axes: Axes, y: float, row: Mapping[str, Any]) -> str:
    """Draw the difference in the real scans; return it as text."""
    if pd.isna(row["real"]):
        return "no estimate"
    low = row["real_low"]
    high = row["real_high"]
    axes.plot([low, high], [y, y], color=REAL_COLOUR, linewidth=2)
    axes.plot(
        row["real"],
        y,
        "s",
        color=REAL_COLOUR,
        markersize=6,
        markerfacecolor="white",
        markeredgewidth=1.6,
    )
    return f"{format_change(row['real'])} {format_interval(low, high)}"


def _forest_legend(rows: pd.DataFrame) -> list[Artist]:
    refitted = rows["refit_low"].notna()
    handles: list[Artist] = [
        Line2D(
            [],
            [],
            color=GENERATED_COLOUR,
            marker="o",
            linestyle="",
            label="generated, mean over patients",
        ),
        Line2D(
            [],
            [],
            color=REAL_COLOUR,
            marker="s",
            markerfacecolor="white",
            linewidth=2,
            label="real scans, adjusted, 95 % interval",
        ),
    ]
    if refitted.any():
        label = "95 % interval over refits"
        handles.append(Line2D([], [], color=GENERATED_COLOUR, linewidth=2, label=label))
    if (~refitted).any():
        label = "lowest to highest patient (not an uncertainty)"
        handles.append(Line2D([], [], color=RANGE_COLOUR, linestyle=DASHES, label=label))
    if (rows["permuted"] > 0).any():
        handles.append(Patch(color=PERMUTED_COLOUR, label="reached by permuted refits (chance)"))
    return handles


def heat_map(
    tests: pd.DataFrame, labels: Labels, limit: float, stem: Path, terms: Terms = CT
) -> None:
    """Draw the generated difference of every contrast in every region; findings have a frame.

    Args:
        tests: Rows of tests.csv.
        labels: Contrasts with their names for readers.
        limit: Colours run from minus to plus this, HU.
        stem: File name without its ending.
        terms: Unit and words of the modality.
    """
    shown = mean_contrasts(tests)
    tested = tested_regions(shown["region"].unique())
    ticks = {**{name: region_name(name).replace(" ", "\n") for name in tested}, **REGION_TICKS}
    order = [name for name in LUNG_REGIONS if name in tested]
    order += [name for name in (*tested, *CONTROL_REGIONS) if name not in order]
    shown = shown[shown["region"].isin(order)]
    regions = [region for region in order if (shown["region"] == region).any()]
    contrasts = list(dict.fromkeys(shown["contrast"]))
    wide = shown.pivot(index="contrast", columns="region", values="generated")
    table = wide.reindex(contrasts)[regions].to_numpy(float)
    findings = [(row["contrast"], row["region"]) for row in _finding_rows(shown)]
    framed = [(contrasts.index(contrast), regions.index(region)) for contrast, region in findings]
    figure, axes = _cell_chart(table, table, limit, framed)
    axes.set_xticks(range(len(regions)), [ticks[r] for r in regions], fontsize=8.5)
    axes.set_yticks(range(len(contrasts)), [labels[c] for c in contrasts], fontsize=9)
    controls = [i for i, region in enumerate(regions) if region in CONTROL_REGIONS]
    if controls:
        axes.axvline(controls[0] - 0.5, color="0.3", linewidth=1)
    bar = figure.colorbar(axes.images[0], ax=axes, shrink=0.9, pad=0.015)
    bar.set_label("HU (blue: less dense, red: denser)", fontsize=8.5)
    save_chart(figure, stem, terms)


def outcome_map(tests: pd.DataFrame, labels: Labels, stem: Path, terms: Terms = CT) -> None:
    """Draw the generated difference of both lungs in every outcome; findings have a frame.

    Colours are multiples of what is negligible in an outcome, because units differ.

    Args:
        tests: Rows of tests.csv.
        labels: Contrasts with their names for readers.
        stem: File name without its ending.
        terms: Unit and words of the modality.
    """
    shown = tests[(tests["region"] == "lungs") & (tests["kind"] != "slope")]
    outcomes = [
        outcome for outcome in ALL_OUTCOMES.values() if (shown["outcome"] == outcome.name).any()
    ]
    names = [outcome.name for outcome in outcomes]
    contrasts = list(dict.fromkeys(shown["contrast"]))
    wide = shown.pivot(index="contrast", columns="outcome", values="generated")
    table = wide.reindex(contrasts)[names].to_numpy(float)
    findings = [(row["contrast"], row["outcome"]) for row in _finding_rows(shown)]
    framed = [(contrasts.index(contrast), names.index(outcome)) for contrast, outcome in findings]
    colours = table / [outcome.negligible for outcome in outcomes]
    figure, axes = _cell_chart(colours, table, OUTCOME_LIMIT, framed)
    ticks = [f"{textwrap.fill(o.label, TICK_WIDTH)}\n({o.unit})" for o in outcomes]
    axes.set_xticks(range(len(outcomes)), ticks, fontsize=8.5)
    axes.set_yticks(range(len(contrasts)), [labels[c] for c in contrasts], fontsize=9)
    save_chart(figure, stem, terms)


def _finding_rows(tests: pd.DataFrame) -> list[dict[Any, Any]]:
    return tests[tests["verdict"] == "finding"].to_dict("records")


def _cell_chart(
    colours: NDArray[np.float64],
    values: NDArray[np.float64],
    limit: float,
    framed: Sequence[tuple[int, int]],
) -> tuple[Figure, Axes]:
    """Draw a table of changes as coloured cells with their values.

    Args:
        colours: `(rows, columns)`, shown from minus to plus `limit`.
        values: The numbers in the cells.
        limit: Where colours end.
        framed: Row and column of the cells with a frame.
    """
    rows, columns = values.shape
    size = (3.6 + 0.78 * columns, 1.5 + 0.42 * max(1, rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(colours, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = axes.text(x, y, _with_minus(format_change(value)), fontsize=9)
            text.set(ha="center", va="center")
            text.set_color("white" if abs(colours[y, x]) > 0.7 * limit else "black")
    for y, x in framed:
        corner = (x - 0.46, y - 0.46)
        axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="black", linewidth=2))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure, axes


def agreement_plot(points: pd.DataFrame, labels: Labels, stem: Path, terms: Terms = CT) -> None:
    """Draw a point per contrast: real difference with its interval across, generated upwards.

    Args:
        points: Rows of tests.csv of one region.
        labels: Contrasts with their names for readers.
        stem: File name without its ending.
        terms: Unit and words of the modality.
    """
    known = points[points["real"].notna()]
    figure = Figure(figsize=(9.5, 5.6), layout="constrained")
    axes = figure.add_subplot()
    for agreement, part in known.groupby("agreement", sort=False):
        _agreement_points(axes, str(agreement), part)
    names = []
    for number, row in enumerate(known.to_dict("records"), 1):
        place = (row["real"], row["generated"])
        axes.annotate(str(number), place, (6, 5), textcoords="offset points", fontsize=9)
        names.append(f"{number}  {labels[row['contrast']]}")  # beside, where they do not overlap
    axes.text(
        1.03, 1, "\n".join(names), transform=axes.transAxes, va="top", fontsize=8.5, linespacing=1.5
    )
    columns = ["real", "generated"]
    columns += ["real_low", "real_high", "refit_low", "refit_high"]
    largest = known[columns].astype(float).abs().max()
    reach = float(np.nanmax([1.0, *largest])) * 1.1
    axes.plot([-reach, reach], [-reach, reach], color="0.6", linewidth=1, linestyle="--")
    axes.axhline(0, color="0.85", linewidth=1, zorder=0)
    axes.axvline(0, color="0.85", linewidth=1, zorder=0)
    axes.set(
        xlim=(-reach, reach),
        ylim=(-reach, reach),
        xlabel="Real scans, adjusted difference (HU)",
        ylabel="Generated difference (HU)",
        title="Both lungs",
    )
    if len(known):
        axes.legend(loc="upper left", fontsize=8, frameon=False)
    save_chart(figure, stem, terms)


def _agreement_points(axes: Axes, agreement: str, part: pd.DataFrame) -> None:
    x = part["real"].to_numpy(float)
    y = part["generated"].to_numpy(float)
    across = [x - part["real_low"].to_numpy(float), part["real_high"].to_numpy(float) - x]
    upwards = np.nan_to_num(
        [y - part["refit_low"].to_numpy(float), part["refit_high"].to_numpy(float) - y]
    )
    axes.errorbar(
        x,
        y,
        xerr=across,
        yerr=upwards if upwards.any() else None,
        fmt="o",
        color=AGREEMENT_COLOURS[agreement],
        elinewidth=1,
        capsize=2,
        label=agreement,
    )


def dose_plot(doses: pd.DataFrame, units: Mapping[str, str], stem: Path, terms: Terms = CT) -> bool:
    """Draw the change of both lungs' mean along the values of every number.

    Args:
        doses: Rows of doses.csv.
        units: Unit of each number column.
        stem: File name without its ending.
        terms: Unit and words of the modality.

    Returns:
        Whether there was anything to draw; else there is no file.
    """
    lungs = doses[(doses["region"] == "lungs") & (doses["outcome"] == MEAN)]
    columns = [column for column in units if (lungs["column"] == column).any()]
    if not columns:
        return False
    across = min(3, len(columns))
    down = -(-len(columns) // 3)
    figure = Figure(figsize=(4.2 * across, 3.1 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes, column in zip(grid, columns, strict=False):
        of_column = lungs[lungs["column"] == column]
        _dose_curve(axes, of_column, units[column] or column)
        axes.set_ylabel(f"Change against {of_column['value'].iloc[0]} (HU)")
        axes.set_title(column)
    for axes in grid[len(columns) :]:
        axes.set_visible(False)
    save_chart(figure, stem, terms)
    return True


def dose_outcome_plot(
    doses: pd.DataFrame, units: Mapping[str, str], stem: Path, terms: Terms = CT
) -> bool:
    """Draw the change of both lungs along every number, a row per number and a column per outcome.

    The mean is left out, which `dose_plot` draws. For the arguments and the result see there.
    """
    lungs = doses[(doses["region"] == "lungs") & (doses["outcome"] != MEAN)]
    columns = [column for column in units if (lungs["column"] == column).any()]
    outcomes = [o for o in ALL_OUTCOMES.values() if (lungs["outcome"] == o.name).any()]
    if not columns or not outcomes:
        return False
    figure = Figure(figsize=(2.3 * len(outcomes), 2.2 * len(columns)), layout="constrained")
    grid = figure.subplots(len(columns), len(outcomes), squeeze=False)
    for row, column in zip(grid, columns, strict=True):
        for axes, outcome in zip(row, outcomes, strict=True):
            is_shown = (lungs["column"] == column) & (lungs["outcome"] == outcome.name)
            _dose_curve(axes, lungs[is_shown], units[column] or column)
            axes.set_title(f"{textwrap.fill(outcome.label, 16)} ({outcome.unit})", fontsize=8.5)
        row[0].set_ylabel(column, fontsize=9)
    save_chart(figure, stem, terms)
    return True


def _dose_curve(axes: Axes, rows: pd.DataFrame, label: str) -> None:
    x = rows["value"].to_numpy(float)
    y = rows["mean_change"].to_numpy(float)
    sd = np.nan_to_num(rows["sd_over_cases"].to_numpy(float))
    axes.fill_between(x, y - sd, y + sd, color=RANGE_COLOUR, alpha=0.35, linewidth=0)
    axes.plot(x, y, "o-", color=GENERATED_COLOUR)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def largest_change(tests: pd.DataFrame, regions: Sequence[str]) -> float:
    """Return the largest generated change of a mean without slopes, HU; 0 for none."""
    shown = mean_contrasts(tests)
    changes = shown.loc[shown["region"].isin(regions), "generated"].abs().dropna()
    return float(changes.max()) if len(changes) else 0.0
