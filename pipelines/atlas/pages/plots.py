"""The plot of generated against real differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {
    "agrees": "#1b7837",
    "same sign": "#7fbf7b",
    "opposite sign": "#b2182b",
    "no effect in either": "#4d4d4d",
    "cannot tell": "#bababa",
}


def agreement_plot(points: pd.DataFrame, labels: dict[str, str], stem: Path) -> None:
    """`stem`.png and .svg: a point a contrast, real difference with its interval across, generated
    upwards.

    Args:
        points: Rows of tests.csv of one region.
        labels: Contrasts for people.
        stem: File name without its ending.
    """
    known = points[points["real_hu"].notna()]
    figure = Figure(figsize=(9.5, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for kind, part in known.groupby("agreement", sort=False):
        x, y = part["real_hu"].to_numpy(float), part["generated_hu"].to_numpy(float)
        across = [x - part["real_low_hu"].to_numpy(float), part["real_high_hu"].to_numpy(float) - x]
        upwards = np.nan_to_num(
            [y - part["refit_low_hu"].to_numpy(float), part["refit_high_hu"].to_numpy(float) - y]
        )
        colour = COLOURS[str(kind)]
        axes.errorbar(
            x,
            y,
            xerr=across,
            yerr=upwards if upwards.any() else None,
            fmt="o",
            color=colour,
            ecolor=colour,
            elinewidth=1,
            capsize=2,
            label=str(kind),
        )
    names = []
    for number, row in enumerate(
        known.to_dict("records"), 1
    ):  # names at the points would lie upon one another
        names.append(f"{number}  {labels[row['contrast']]}")
        axes.annotate(
            str(number),
            (row["real_hu"], row["generated_hu"]),
            xytext=(6, 5),
            fontsize=9,
            textcoords="offset points",
        )
    axes.text(
        1.03, 1, "\n".join(names), transform=axes.transAxes, va="top", fontsize=8.5, linespacing=1.5
    )
    bounds = known[
        ["real_hu", "generated_hu", "real_low_hu", "real_high_hu", "refit_low_hu", "refit_high_hu"]
    ].astype(float)
    reach = float(np.nanmax([1.0, *bounds.abs().max()])) * 1.1
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
    for ending in ("png", "svg"):
        figure.savefig(stem.with_suffix(f".{ending}"), dpi=150)
