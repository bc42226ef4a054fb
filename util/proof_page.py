"""The page of the proof on planted truth: every finished cell, and its slopes in a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from dominate import tags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from util import html

REGIONS = ("lungs", "upper", "middle", "lower", "rim", "core")
COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e")
GOAL = (0.9, 1.1)
NOTE = ("A slope is the sum of generated times true effect over the sum of squared true effects, over test cases and pairs "
        "of values whose truth is at least 5 HU; 1 is the truth. The truth is the same patient rendered again with one "
        "value changed.")

Cell = Mapping[str, Any]


def label(cell: Cell) -> str:
    """What sets a cell apart from others, its seed left out."""
    return (f"{cell['cell']}, {cell['cases']} cases, SD {cell['patient_sd']:g}"
            + (f", confounding {cell['confounding']:g}" if cell.get("confounding") else "") + cell.get("tag", ""))


def cell_frame(cells: Sequence[Cell], real: Sequence[str], null: str) -> pd.DataFrame:
    """A row a cell: slopes in the lungs, and the figures of texture and text."""
    rows = []
    for c in cells:
        lungs = {a: c["effects"][a]["lungs"] for a in (*real, null)}
        text = c.get("text", {})
        rows.append({
            "cell": label(c), "seed": c["seed"], **{f"{a}: slope": lungs[a].get("slope") for a in real},
            "signs right": min(lungs[a].get("signs_right", 0.0) for a in real), f"{null}: HU": lungs[null]["mean_abs"],
            "outside lungs: HU": max(c["effects"][a]["outside"]["mean_abs"] for a in (*real, null)),
            "re-worded: HU": text.get("re-worded", {}).get("mean_abs"),
            "re-ordered: HU": text.get("re-ordered", {}).get("mean_abs"),
            "unseen ages: slope": text.get("unseen_ages", {}).get("slope"),
            "voxel error / truth's": c["mae_ratio"], "SD / scans'": c["sd_ratio"],
            "W1 / floor": c["w1_hu"] / c["w1_floor_hu"], "minutes": (c["train_seconds"] + c["encoder_seconds"]) / 60})
    return pd.DataFrame(rows)


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds of what `cell_frame` returns."""
    means = frame.drop(columns="seed").groupby("cell", sort=False).mean().reset_index()
    means.insert(1, "seeds", frame.groupby("cell", sort=False)["seed"].nunique().to_numpy())
    return means


def slope_chart(cells: Sequence[Cell], attribute: str, path: Path) -> Path:
    """Slopes of one attribute by region: a column a region, a colour a kind of cell, a dot a seed."""
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhspan(*GOAL, color="0.9", zorder=0)
    axes.axhline(1, color="0.5", linewidth=1, linestyle="--")
    kinds = list(dict.fromkeys(label(c) for c in cells))
    for k, kind in enumerate(kinds):
        shift = (k - (len(kinds) - 1) / 2) * 0.8 / len(kinds)
        points = [(i + shift, c["effects"][attribute][region]["slope"]) for c in cells if label(c) == kind
                  for i, region in enumerate(REGIONS) if "slope" in c["effects"][attribute].get(region, {})]
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.plot(x, y, "o", markersize=5, color=COLOURS[k % len(COLOURS)], label=kind)
    axes.set_xticks(range(len(REGIONS)), REGIONS)
    axes.set(title=attribute, ylabel="slope (1 is the truth)", xlim=(-0.6, len(REGIONS) - 0.4))
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)
    return path


def write_proof_page(folder: Path, cells: Sequence[Cell], real: Sequence[str], null: str) -> Path:
    """Writes folder/index.html with a chart for each attribute that has an effect."""
    html.copy_assets(folder / "web", "page.css")
    document = html.new_document("Effects on planted truth", "web/")
    frame = cell_frame(cells, real, null)
    with document, tags.main():
        tags.h1("Effects on planted truth")
        tags.p(NOTE)
        tags.h2("Mean over seeds")
        html.frame_table(over_seeds(frame), "{:.2f}".format)
        tags.h2("By region")
        for k, attribute in enumerate(real):
            chart = slope_chart(cells, attribute, folder / "web" / f"slopes_{k}.png")
            tags.img(src=f"web/{chart.name}", alt=f"Slopes of {attribute} by region", style="max-width:100%")
        tags.h2("Every cell")
        html.frame_table(frame, "{:.2f}".format)
        html.cautions()
    return html.write_document(document, folder / "index.html")
