"""The part of the population page that shows maps averaged over patients, in three planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from dominate import tags

from pipelines.atlas.pages import page_parts as parts
from pipelines.atlas.pages.map_voxels import BESIDE, beside, null_contrast
from util.web.figures import PLANES


def map_choices(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the maps' chooser can show: by contrast its own map and those that may stand beside
    it.
    """
    table, made = pd.DataFrame(record["maps"]), {}
    for contrast, label in (
        (c["contrast"], c["label"]) for c in record["contrasts"] if c["kind"] != "slope"
    ):
        keys = (
            table[(table["kind"] == "effect") & (table["contrast"] == contrast)]["key"].tolist()
            if len(table)
            else []
        )
        if keys:
            made[contrast] = {
                "label": label,
                "effect": keys[0],
                "beside": beside(table, contrast, null_contrast(record)),
            }
    return made


def maps_section(record: Mapping[str, Any], limit: float, figures: Sequence[str]) -> None:
    """The maps, each with one of its controls beside it.

    Args:
        record: atlas.json.
        limit: Range of differences, HU.
        figures: Stems of all figures.
    """
    choices = map_choices(record)
    if not choices:
        return
    first = next(iter(choices.values()))
    there = {kind for c in choices.values() for kind in c["beside"]}
    with tags.section(cls="card", id="maps"):
        tags.h2("Where: maps averaged over patients")
        tags.p(
            "Every patient's lungs are stretched to one shape before averaging, so that the maps "
            "show places within the lungs, not one patient's anatomy. Click on a picture to move "
            "all three planes there.",
            cls="note",
        )
        with tags.div(cls="toolbar maps-bar", role="toolbar", aria_label="Maps"):
            with tags.label("Change", cls="group"), tags.select(id="contrast"):
                for contrast, c in choices.items():
                    tags.option(c["label"], value=contrast)
            with tags.label("Beside it", cls="group"), tags.select(id="beside"):
                for kind, text in BESIDE.items():
                    if kind in there:
                        tags.option(text, value=kind)
            parts.limit_choice(limit)
            tags.button(
                "▶ Play through the slices",
                type="button",
                id="play",
                cls="play",
                aria_pressed="false",
            )
        with tags.div(cls="twin"):
            _planes("effect", first["label"], [first["effect"]])
            for kind, key in list(first["beside"].items())[:1]:
                _planes("beside", BESIDE[kind], [key])
        with tags.p("Maps as figures: ", cls="note files"):
            for stem in (s for s in figures if s.startswith("map_")):
                tags.span(stem.removeprefix("map_").replace("_", " "))
                parts.figure_links(stem)
    parts.reading(
        [
            "Black is outside the lungs. The frame has no true size; only places within it mean "
            "something.",
            "Spreads over patients or refits (SD) have no sign: the darker the brown, the larger.",
        ]
    )


def _planes(role: str, title: str, layers: Sequence[str]) -> None:
    with tags.div(cls="planes", data_part=role):
        tags.h3(title)
        with tags.div(cls="panels three"):
            for plane in PLANES:
                parts.panel(plane.capitalize(), layers, kind="difference", plane=plane, role=role)
