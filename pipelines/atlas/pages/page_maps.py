"""The part of the population page that shows maps averaged over patients, in three planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from dominate import tags

from pipelines.atlas.pages.map_voxels import BESIDE, effect_key, maps_beside, null_contrast
from util.web import page_parts, viewer_parts
from util.web.figures import PLANES
from util.web.viewer_parts import SlicePanel
from util.web.web_data import PageGrid, VolumeEntry

READING = (
    "Black is outside the lungs. The frame has no true size; only places within it mean something.",
    "Texture and shares are changes at each place, in HU or percentage points, on the same range "
    "of colours as the difference in HU. Percentiles belong to a region and have no map.",
    "Spreads over patients or refits (SD) have no sign: the darker the brown, the larger.",
)


def map_choices(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of atlas_maps.js: each contrast's map and those beside it."""
    table = pd.DataFrame(record["maps"])
    null = null_contrast(record)
    choices = {}
    for contrast in record["contrasts"]:
        name = contrast["contrast"]
        key = effect_key(table, name) if contrast["kind"] != "slope" else ""
        if key:
            beside = maps_beside(table, name, null)
            choices[name] = {"label": contrast["label"], "effect": key, "beside": beside}
    return choices


def figure_links(stem: str) -> list[Any]:
    """Return links to a figure's files, relative to the population page."""
    file = f"figures/{page_parts.link(stem)}"
    return [tags.a(end.upper(), href=f"{file}.{end}", cls="file") for end in ("png", "svg")]


def maps_section(
    choices: Mapping[str, Any],
    grid: PageGrid,
    volumes: Mapping[str, VolumeEntry],
    limit: float,
    figures: Sequence[str],
) -> None:
    """Add the maps, each with one of its controls beside it.

    Args:
        choices: See `map_choices`.
        grid: Grid of the maps.
        volumes: Kind and step of each map.
        limit: Range of differences, HU.
        figures: Stems of all figures.
    """
    if not choices:
        return
    first = next(iter(choices.values()))
    viewer = viewer_parts.viewer_attributes(grid, volumes)
    title = "Where: maps averaged over patients"
    with page_parts.card(title, id="maps", **viewer):
        page_parts.note(
            "Every patient's lungs are stretched to one shape before averaging, so that the maps "
            "show places within the lungs, not one patient's anatomy. Click on a picture to move "
            "all three planes there."
        )
        _toolbar(choices, limit)
        with tags.div(cls="twin"):
            _planes("effect", first["label"], first["effect"])
            for kind, key in list(first["beside"].items())[:1]:
                _planes("beside", BESIDE[kind], key)
        with tags.p("Maps as figures: ", cls="note files"):
            for stem in figures:
                if stem.startswith("map_"):
                    tags.span(stem.removeprefix("map_").replace("_", " "), *figure_links(stem))
    viewer_parts.reading_help(READING)


def _toolbar(choices: Mapping[str, Any], limit: float) -> None:
    kinds = {kind for choice in choices.values() for kind in choice["beside"]}
    with viewer_parts.toolbar("Maps", "maps-bar"):
        with tags.label("Change", cls="group"), tags.select(id="contrast"):
            for contrast, choice in choices.items():
                tags.option(choice["label"], value=contrast)
        with tags.label("Beside it", cls="group"), tags.select(id="beside"):
            for kind, text in BESIDE.items():
                if kind in kinds:
                    tags.option(text, value=kind)
        viewer_parts.limit_choice(limit)
        viewer_parts.play_button()


def _planes(role: str, title: str, key: str) -> None:
    with tags.div(cls="planes", data_part=role):
        tags.h3(title)
        with tags.div(cls="panels three"):
            for plane in PLANES:
                SlicePanel(plane.capitalize(), [key], "difference", plane=plane, role=role).add()
