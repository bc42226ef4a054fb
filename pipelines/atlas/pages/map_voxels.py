"""Population maps for the page: voxels as scripts, and pictures in three planes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.atlas.statistics.population import FRAME
from util.cli import safe_name
from util.web.figures import LUNG, Kind, Panel, fullest_slices, save_slices_png
from util.web.web_data import write_volume

FRAME_MM = (3.5, 3.5, 3.5)  # about the size of an adult's lungs; the frame itself has none
KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(
        (
            "effect",
            "permuted",
            "other noise",
            "other refit",
            "re-ordered",
            "re-worded",
            "effect_sd",
            "refit_sd",
        ),
        "difference",
    ),
    "generated": "ct",
    "real": "ct",
}
SPREADS = ("effect_sd", "refit_sd")
BESIDE = {  # what may stand beside a map: its kind, and what it is
    "permuted": "Chance: a permuted refit",
    "null": "Control: a column without effect",
    "other noise": "Control: other noise, nothing changed",
    "other refit": "Control: another refit, nothing changed",
    "re-worded": "Control: the same facts in other words",
    "re-ordered": "Control: phrases in another order",
    "effect_sd": "Spread over patients (SD)",
    "refit_sd": "Spread over refits (SD)",
    "generated": "Mean generated lungs",
    "real": "Mean of the real scans",
}

CONTROLS = {  # what stands below a map in its figure: the first that is there
    "permuted": "A permuted\nrefit",
    "other noise": "Other noise,\nnothing changed",
    "other refit": "Another refit,\nnothing changed",
    "null": "A column\nwithout effect",
    "re-worded": "Other words,\nnothing changed",
}

Maps = Mapping[str, NDArray[np.float32]]


def write_map_voxels(
    folder: Path, table: pd.DataFrame, maps: Maps
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes `folder`/KEY.js for every map that is shown; returns the volumes' kinds and steps, and
    the grid.
    """
    folder.mkdir(parents=True, exist_ok=True)
    volumes = {}
    for row in table[table["kind"].isin(list(KINDS))].to_dict("records"):
        step = write_volume(
            folder / f"{row['key']}.js", row["key"], maps[row["key"]], KINDS[row["kind"]]
        )
        kind = "spread" if row["kind"] in SPREADS else KINDS[row["kind"]]
        volumes[row["key"]] = {"kind": kind, "step": step}
    lungs = lung_frame(table, maps)
    there = [
        np.flatnonzero(lungs.any(tuple(a for a in range(3) if a != axis))) for axis in range(3)
    ]
    return volumes, {
        "shape": FRAME,
        "spacing": FRAME_MM,
        "start": fullest_slices(lungs),
        "range": [
            (int(t[0]), int(t[-1])) if len(t) else (0, n - 1)
            for t, n in zip(there, FRAME, strict=True)
        ],
    }


def lung_frame(table: pd.DataFrame, maps: Maps) -> NDArray[np.bool_]:
    """Where the mean lungs lie in the frame."""
    keys = table.loc[table["kind"] == "generated", "key"]
    return np.isfinite(maps[keys.iloc[0]]) if len(keys) else np.zeros(FRAME, bool)


def beside(table: pd.DataFrame, contrast: str, null: str = "") -> dict[str, str]:
    """Maps that may stand beside a contrast's: kind to key; `null` is a contrast known to have no
    effect.
    """
    rows = table[table["kind"].isin(list(BESIDE)) & table["contrast"].isin(["", contrast])]
    keys = dict(zip(rows["kind"], rows["key"], strict=True))
    without = table.loc[(table["kind"] == "effect") & (table["contrast"] == null), "key"].tolist()
    if without and null != contrast:
        keys["null"] = without[0]
    return {kind: keys[kind] for kind in BESIDE if kind in keys}


def null_contrast(record: Mapping[str, Any]) -> str:
    """The contrast of the column that is known to have no effect, "" where none is known."""
    column = record["null_column"]
    made = [
        c["contrast"] for c in record["contrasts"] if c["column"] == column and c["kind"] != "slope"
    ]
    return made[0] if column and made else ""


def map_pictures(
    folder: Path,
    table: pd.DataFrame,
    maps: Maps,
    labels: Mapping[str, str],
    limit: float,
    null: str = "",
) -> list[str]:
    """`map_CONTRAST.png` and .svg: the effect above one of its controls, in three planes; returns
    the stems.
    """
    at, made = fullest_slices(lung_frame(table, maps)), []
    for contrast, label in labels.items():
        keys = table[(table["kind"] == "effect") & (table["contrast"] == contrast)]["key"]
        if not len(keys):
            continue
        others = beside(table, contrast, null)
        control = next((kind for kind in CONTROLS if kind in others), None)
        panels = [Panel(_broken(label), "difference", maps[keys.iloc[0]], FRAME_MM)]
        if control is not None:
            panels.append(Panel(CONTROLS[control], "difference", maps[others[control]], FRAME_MM))
        stem = f"map_{safe_name(contrast)}"
        for ending in ("png", "svg"):
            save_slices_png(folder / f"{stem}.{ending}", panels, at, LUNG, limit)
        made.append(stem)
    return made


def _broken(label: str) -> str:
    return label.replace(" against ", "\nagainst ")
