"""What the pages of an atlas share: settings of the viewer, panels, toolbar."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dominate import tags
from matplotlib import colormaps
from matplotlib.colors import to_hex

from util.web import page_parts
from util.web.figures import (
    BACKGROUND,
    DIVERGING,
    LABEL_NAMES,
    LUNG,
    MEDIASTINUM,
    PLANES,
    Window,
    label_colour,
)

LIMITS = (5, 10, 20, 50, 100, 200, 500, 1000)
RANKS = ("#000000", "#7b2fbe", "#0a7d3c")  # outlines of the strongest zones, in their order
SPREAD = colormaps["YlOrBr"]  # sizes without sign
FRAMES_A_SECOND = 8
FIRST_PLANE = "coronal"  # shows all thirds of the lungs at once
READING = (
    "The patient's right is on the left of axial and coronal pictures (letters R, L), the front on "
    "the left of sagittal ones (A: front, P: back, S: head, I: feet).",
    "Differences are in Hounsfield units (HU): red is denser, blue is less dense, white is no "
    "change. The colour bar runs from minus to plus the same value in every picture; choose it at "
    "the top.",
    "Point at a picture to read the value of that voxel in all of them. Shift and the mouse wheel "
    "go through the slices.",
)


def typeset(text: str) -> str:
    """Signs of numbers as minus signs."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def nice_range(largest: float) -> float:
    """The first of `LIMITS` that holds a change of so many HU."""
    return next((float(v) for v in LIMITS if v >= largest), float(LIMITS[-1]))


def viewer_config(
    grid: Mapping[str, Any],
    voxels: str,
    volumes: Mapping[str, Any],
    limit: float,
    window: Window,
    labels: Sequence[int] = (),
) -> dict[str, Any]:
    """What slices.js and atlas.js need to know.

    Args:
        grid: `shape`, `spacing` (mm), `start` (first slices) and `range` (slices to play) along
            each axis.
        voxels: Folder of the volumes' scripts, relative to the page.
        volumes: Kind and step of each volume.
        limit: Range of the differences, HU.
        window: The model's window, HU.
        labels: Of the mask.
    """
    return {
        "grid": grid,
        "voxels": voxels,
        "volumes": volumes,
        "limit": limit,
        "planes": PLANES,
        "background": BACKGROUND,
        "windows": {"lung": LUNG, "mediastinum": MEDIASTINUM, "model": window},
        "speed": FRAMES_A_SECOND,
        "ranks": RANKS,
        "plane": FIRST_PLANE,
        "labels": {k: [label_colour(k), LABEL_NAMES.get(k, f"label {k}")] for k in labels},
        "diverging": [to_hex(DIVERGING(i / 255)) for i in range(256)],
        "sequential": [to_hex(SPREAD(i / 255)) for i in range(256)],
    }


def limit_choice(limit: float) -> None:
    """The range of the differences."""
    with tags.label("Colours of differences ±", cls="group"), tags.select(id="limit"):
        for value in LIMITS:
            chosen = {"selected": True} if value == limit else {}
            tags.option(f"{value} HU", value=value, **chosen)


def toolbar(limit: float, labels: Sequence[int]) -> None:
    """Plane, window, range, outline of the mask's labels, slice and play for all panels of a
    page.
    """
    with tags.div(cls="toolbar", role="toolbar", aria_label="View of all pictures"):
        page_parts.choice("plane", "Plane", {p: p.capitalize() for p in PLANES}, FIRST_PLANE)
        page_parts.choice(
            "window",
            "Window",
            {"lung": "Lung", "mediastinum": "Mediastinum", "model": "Whole"},
            "lung",
        )
        tags.output(id="window-range")
        limit_choice(limit)
        with tags.label(cls="group"):
            tags.input_(type="checkbox", id="lines", checked=True)
            tags.span("Outline of the mask")
        with tags.span(cls="legend"):
            for label in labels:
                tags.span(
                    tags.i(style=f"background:{label_colour(label)}"),
                    LABEL_NAMES.get(label, f"label {label}"),
                )
        with tags.div(cls="slices"):
            tags.button(
                "▶ Play through the slices",
                type="button",
                id="play",
                cls="play",
                aria_pressed="false",
            )
            tags.label("Slice", fr="slice")
            tags.input_(type="range", id="slice", min=0, max=0, value=0, step=1)
            tags.output(id="position")
        tags.output(id="place", title="Where the pointer is")


def panel(
    title: str,
    layers: Sequence[Any] = (),
    *,
    kind: str = "ct",
    plane: str = "",
    role: str = "",
    caption: str = "",
    file: str = "",
    zones: Sequence[int] = (),
) -> tags.figure:
    """One picture.

    Args:
        title: What it shows.
        layers: Keys of volumes, or pairs of them (the second minus the first); two layers make a
            before-and-after.
        kind: ct, difference, spread or wipe.
        plane: Fixed plane; empty: the toolbar's.
        role: Name by which a script changes it.
        caption: A line below the title.
        file: Link to the volume's file.
        zones: Zones to outline, the strongest first.
    """
    data = {
        "data_source": json.dumps(list(layers)),
        "data_plane": plane,
        "data_role": role,
        "data_zones": json.dumps(list(zones)),
    }
    figure = tags.figure(cls=f"panel {kind}", **data)
    with figure:
        with tags.figcaption():
            tags.span(title, cls="title")
            if file:
                tags.a("NIfTI", href=page_parts.link(file), cls="file", title=file)
            tags.span(typeset(caption), cls="caption")
        with tags.div(cls="stage"):
            for name in ("before", "after") if kind == "wipe" else ("only",):
                tags.canvas(cls=f"voxels {name}", role="img", aria_label=title)
            tags.canvas(cls="lines", aria_hidden="true")
            for edge in ("left", "right", "up", "down"):
                tags.span(cls=f"edge {edge}")
            tags.i(cls="cross")
        if kind == "wipe":
            tags.input_(
                type="range",
                cls="cut",
                min=0,
                max=100,
                value=50,
                aria_label="Left of the line before, right of it after",
            )
        if kind in ("difference", "spread"):
            _bar(kind)
        tags.output(cls="value")
    return figure


def _bar(kind: str) -> None:
    with tags.div(cls=f"bar {kind}"):
        tags.span(cls="low")
        with tags.span(cls="scale"):
            tags.i()
            tags.b(hidden=True)
        tags.span(cls="high")


def reading(extra: Sequence[str] = ()) -> None:
    """How to read the pictures."""
    with tags.details(cls="card reading", open=True):
        tags.summary("How to read the pictures")
        with tags.ul():
            for text in (*READING, *extra):
                tags.li(text)


def figure_links(stem: str) -> None:
    """Links to a figure's files, relative to the population page."""
    for ending in ("png", "svg"):
        tags.a(ending.upper(), href=f"figures/{page_parts.link(stem)}.{ending}", cls="file")


def head(assets: str, *names: str) -> None:
    """Adds the atlas' style sheet and scripts, run in their order once the page is read, to the
    head of a page.
    """
    tags.link(rel="stylesheet", href=f"{assets}atlas.css")
    for name in names:
        tags.script(src=f"{assets}{name}", defer=True)
