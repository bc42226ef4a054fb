"""Population maps for the page: voxels as scripts, and pictures in three planes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.atlas.statistics.outcomes import DETAIL_SD, HIGH_SHARE, LOW_SHARE
from pipelines.atlas.statistics.population import FRAME
from util.cli import unique_names
from util.web.figures import LUNG, Kind, Panel, fullest_slices, save_slices_png
from util.web.web_data import PageGrid, VolumeEntry, write_volume

FRAME_MM = (3.5, 3.5, 3.5)  # about the size of an adult's lungs; the frame itself has none
KINDS: Mapping[str, Kind] = {  # how the maps of atlas.json are coloured
    "effect": "difference",
    DETAIL_SD: "difference",
    LOW_SHARE: "difference",
    HIGH_SHARE: "difference",
    "permuted": "difference",
    "other noise": "difference",
    "other refit": "difference",
    "re-ordered": "difference",
    "re-worded": "difference",
    "effect_sd": "spread",
    "refit_sd": "spread",
    "generated": "ct",
    "real": "ct",
}
UNITS = {LOW_SHARE: "points", HIGH_SHARE: "points"}  # of maps that are not in HU
BESIDE = {  # maps that may stand beside an effect, with their titles
    "permuted": "Chance: a permuted refit",
    "null": "Control: a column without effect",
    "other noise": "Control: other noise, nothing changed",
    "other refit": "Control: another refit, nothing changed",
    "re-worded": "Control: the same facts in other words",
    "re-ordered": "Control: phrases in another order",
    DETAIL_SD: "Texture: change of the size of the detail (HU)",
    LOW_SHARE: "Emphysema: change of the share below −950 HU (points)",
    HIGH_SHARE: "Dense lung: change of the share above −700 HU (points)",
    "effect_sd": "Spread over patients (SD)",
    "refit_sd": "Spread over refits (SD)",
    "generated": "Mean generated lungs",
    "real": "Mean of the real scans",
}
CONTROLS = {  # controls below an effect in its figure; the first that is there is taken
    "permuted": "A permuted\nrefit",
    "other noise": "Other noise,\nnothing changed",
    "other refit": "Another refit,\nnothing changed",
    "null": "A column\nwithout effect",
    "re-worded": "Other words,\nnothing changed",
}

Maps = Mapping[str, NDArray[np.float32]]


def write_map_voxels(
    folder: Path, table: pd.DataFrame, maps: Maps
) -> tuple[dict[str, VolumeEntry], PageGrid]:
    """Write `folder`/KEY.js for every map that is shown; return their entries and their grid."""
    folder.mkdir(parents=True, exist_ok=True)
    volumes = {}
    for row in table[table["kind"].isin(list(KINDS))].to_dict("records"):
        key = row["key"]
        unit = UNITS.get(row["kind"], "")
        volumes[key] = write_volume(folder, key, maps[key], KINDS[row["kind"]], unit=unit)
    return volumes, PageGrid.around(lung_frame(table, maps), FRAME_MM)


def lung_frame(table: pd.DataFrame, maps: Maps) -> NDArray[np.bool_]:
    """Return where the mean lungs lie in the frame."""
    keys = table.loc[table["kind"] == "generated", "key"]
    return np.isfinite(maps[keys.iloc[0]]) if len(keys) else np.zeros(FRAME, bool)


def effect_key(table: pd.DataFrame, contrast: str) -> str:
    """Return the key of a contrast's map, "" where there is none."""
    if not len(table):
        return ""
    keys = table.loc[(table["kind"] == "effect") & (table["contrast"] == contrast), "key"]
    return str(keys.iloc[0]) if len(keys) else ""


def maps_beside(table: pd.DataFrame, contrast: str, null: str = "") -> dict[str, str]:
    """Return the maps that may stand beside a contrast's: key by kind.

    Args:
        table: Kind, contrast and key of all maps.
        null: A contrast known to have no effect, "" for none.
    """
    rows = table[table["contrast"].isin(["", contrast])]
    keys = dict(zip(rows["kind"], rows["key"], strict=True))
    if null != contrast and effect_key(table, null):
        keys["null"] = effect_key(table, null)
    return {kind: keys[kind] for kind in BESIDE if kind in keys}


def null_contrast(record: Mapping[str, Any]) -> str:
    """Return the contrast of the column known to have no effect, "" where none is known."""
    column = record["null_column"]
    for contrast in record["contrasts"]:
        if column and contrast["column"] == column and contrast["kind"] != "slope":
            return str(contrast["contrast"])
    return ""


def draw_maps(
    folder: Path,
    table: pd.DataFrame,
    maps: Maps,
    labels: Mapping[str, str],
    limit: float,
    null: str = "",
    unit: str = "HU",
) -> list[str]:
    """Draw `map_CONTRAST.png` and .svg: an effect above one of its controls, in three planes.

    Args:
        folder: Folder of the figures.
        table: Kind, contrast and key of all maps.
        maps: The maps by key.
        labels: Contrasts with their names for readers.
        limit: Range of differences, HU.
        null: A contrast known to have no effect, "" for none.
        unit: Unit of the differences.

    Returns:
        The stems of the files.
    """
    at = fullest_slices(lung_frame(table, maps))
    names = unique_names(labels)
    stems = []
    for contrast, label in labels.items():
        key = effect_key(table, contrast)
        if not key:
            continue
        title = label.replace(" against ", "\nagainst ")
        panels = [Panel(title, "difference", maps[key], FRAME_MM)]
        beside = maps_beside(table, contrast, null)
        control = next((kind for kind in CONTROLS if kind in beside), None)
        if control is not None:
            panels.append(Panel(CONTROLS[control], "difference", maps[beside[control]], FRAME_MM))
        stem = f"map_{names[contrast]}"
        for ending in ("png", "svg"):
            save_slices_png(folder / f"{stem}.{ending}", panels, at, LUNG, limit, unit=unit)
        stems.append(stem)
    return stems
