"""The slice viewer's HTML and settings, for assets/slices.js and assets/viewer.js."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from dominate import tags
from matplotlib import colormaps
from matplotlib.colors import Colormap, to_hex
from numpy.typing import NDArray

from util.modality import CT, LABEL_NAMES, Terms
from util.web import page_parts
from util.web.figures import (
    BACKGROUND,
    BONE,
    DIVERGING,
    LUNG,
    MEDIASTINUM,
    PLANES,
    Window,
    label_colour,
    nice_limit,
)
from util.web.web_data import PageGrid, VolumeEntry

SCRIPTS = ("slices.js", "voxels.js", "gestures.js", "viewer.js")
LIMITS = (5, 10, 20, 50, 100, 200, 500, 1000)  # ranges of differences to choose from, HU
MIN_LIMIT = 20.0  # smallest range of differences, HU: a null effect is to look like one
SHARE_SHOWN = 0.995  # of a difference's voxels that its range of colours holds
SIZES = {"small": 170, "medium": 245, "large": 400}  # width of a picture, pixels
RANK_COLOURS = ("#000000", "#7b2fbe", "#0a7d3c")  # outlines of the strongest zones, in order
SEQUENTIAL = colormaps["YlOrBr"]  # sizes without sign
FRAMES_PER_SECOND = 8
READING = (
    "The patient's right is on the left of axial and coronal pictures (letters R, L). The front is "
    "on the left of sagittal ones (A: front, P: back, S: head, I: feet).",
    "Differences are in Hounsfield units (HU): red is denser, blue is less dense, white is no "
    "change. The colour bar runs from minus to plus the same value in all pictures of an "
    "attribute; choose another one at the top. Changes beyond it are outlined in yellow.",
    "Point at a picture to read the value of that voxel in all of them. The mouse wheel and the "
    "arrow keys go through the slices, a drag sets the window, a click enlarges the picture, and "
    "“?” lists all keys.",
)


def fitting_limit(largest: float) -> float:
    """Return the first of `LIMITS` that holds a change of so many HU."""
    return next((float(v) for v in LIMITS if v >= largest), float(LIMITS[-1]))


def largest_change(difference: NDArray[Any]) -> float:
    """Return the size in HU that only few voxels of a difference exceed."""
    return float(np.quantile(np.abs(difference), SHARE_SHOWN))


def difference_limit(largest: float) -> float:
    """Return the range of colours for changes of so many HU."""
    return fitting_limit(max(MIN_LIMIT, nice_limit(largest)))


def viewer_config(
    window: Window,
    limit: float,
    labels: Sequence[int] = (),
    *,
    voxels: str = "web/",
    plane: str = "axial",
    score_limit: float = 10.0,
    terms: Terms = CT,
) -> dict[str, Any]:
    """Return the settings that all viewers of a page share, for `data-config` of its body.

    Args:
        window: The model's window, HU.
        limit: Range of the differences, HU; 0 where every picture has its own.
        labels: Labels of the masks.
        voxels: Folder of the volumes' scripts, relative to the page.
        plane: Plane shown first.
        score_limit: Scores are coloured from minus to plus this.
        terms: Unit, words and names of labels of the modality.
    """
    windows = {"lung": LUNG, "mediastinum": MEDIASTINUM, "bone": BONE} if terms.is_ct else {}
    return {
        "windows": {**windows, "model": window},
        "unit": terms.unit,
        "no_value": terms.text("no lung"),
        "limit": limit,
        "score_limit": int(score_limit) if float(score_limit).is_integer() else score_limit,
        "share_limit": 100,  # percent
        "voxels": voxels,
        "plane": plane,
        "planes": PLANES,
        "sizes": SIZES,
        "frames_per_second": FRAMES_PER_SECOND,
        "background": BACKGROUND,
        "labels": {k: [label_colour(k), label_name(k, terms.label_names)] for k in labels if k},
        "ranks": RANK_COLOURS,
        "diverging": _palette(DIVERGING),
        "sequential": _palette(SEQUENTIAL),
    }


def _palette(colours: Colormap) -> list[str]:
    return [to_hex(colours(i / 255)) for i in range(256)]


def viewer_attributes(
    grid: PageGrid,
    volumes: Mapping[str, VolumeEntry],
    *,
    plane: str = "axial",
    mask: str = "",
    zones: str = "",
    zone_names: Sequence[str] = (),
) -> dict[str, str]:
    """Return the attributes of an element whose pictures move together.

    Args:
        grid: Grid of the volumes as shown.
        volumes: Kind and step of each volume by its key.
        plane: Plane shown first; space for its pictures is kept.
        mask: Key of the labels to outline in every picture.
        zones: Key of numbered zones, which panels may outline.
    """
    coarse = grid.halved()
    data = {
        "grid": asdict(grid),
        "coarse": coarse and asdict(coarse),
        "volumes": volumes,
        "mask": mask,
        "zones": zones,
        "zone_names": list(zone_names),
    }
    across, down, *_ = PLANES[plane]
    width, height = (grid.shape[axis] * grid.spacing[axis] for axis in (across, down))
    return {"data_viewer": json.dumps(data), "style": f"--aspect:{width / height:.4g}"}


@dataclass(frozen=True)
class SlicePanel:
    """One picture of a slice viewer.

    Attributes:
        title: What it shows.
        layers: Keys of volumes, or pairs of them (the second minus the first); two layers make a
            before-and-after.
        kind: "mask", "ct", "difference", "score", "spread", "share" or "wipe" (a before-and-after).
        caption: A line below the title.
        file: Link to the volume's file.
        plane: Plane that is always shown; empty for the toolbar's.
        role: Name by which a page's script changes it.
        outline: Key of numbered regions to outline.
        zones: Numbers of the zones to outline, the strongest first.
        under: Key of the CT that a difference can be laid on.
        limit: Range of a difference, HU, where the page has no common one.
        badges: What has to be known before judging it, in a few words each.
    """

    title: str
    layers: Sequence[Any] = ()
    kind: str = "ct"
    caption: str = ""
    file: str | None = None
    plane: str = ""
    role: str = ""
    outline: str = ""
    zones: Sequence[int] = ()
    under: str = ""
    limit: float = 0.0
    badges: Sequence[str] = ()

    def add(self) -> tags.figure:
        """Add the picture to the element whose `with` block this stands in."""
        settings = {
            "kind": self.kind,
            "layers": list(self.layers),
            "plane": self.plane,
            "role": self.role,
            "outline": self.outline,
            "zones": list(self.zones),
            "under": self.under,
            "limit": self.limit,
        }
        figure = tags.figure(
            cls=f"panel {self.kind}",
            data_panel=json.dumps(settings),
            data_role=self.role,
            data_plane=self.plane,
        )
        with figure:
            self._caption()
            tags.div(cls="stage")  # viewer.js makes what is in it once it is seen
        return figure

    def _caption(self) -> None:
        with tags.figcaption():
            tags.span(self.title, cls="title")
            if self.file:
                tags.a("NIfTI", href=page_parts.link(self.file), cls="file", title=self.file)
            if self.caption:
                tags.span(page_parts.typeset(self.caption), cls="caption")
            page_parts.badges(self.badges)


def toolbar(label: str, cls: str = "") -> tags.div:
    """Add a toolbar, to be filled in a `with` block."""
    return tags.div(cls=f"toolbar {cls}".strip(), role="toolbar", aria_label=label)


def plane_and_window(plane: str, terms: Terms = CT) -> None:
    """Add the choices of the plane and, for CT, of the HU window."""
    planes = {**{name: name.capitalize() for name in PLANES}, "three": "Three planes"}
    windows = {"lung": "Lung", "mediastinum": "Mediastinum", "bone": "Bone", "model": "Whole"}
    page_parts.choice_buttons("plane", "Plane", planes, plane)
    if not terms.is_ct:
        windows = {"model": windows["model"]}
    page_parts.choice_buttons("window", "Window", windows, next(iter(windows)))
    tags.output(id="window-range")


def limit_choice(limit: float = 0.0, by: str = "attribute") -> None:
    """Add the choice of the range of the differences; 0 is the range of each `by`."""
    with tags.label("Differences ±", cls="group"), tags.select(id="limit"):
        if not limit:
            tags.option(f"by {by}", value="0", selected=True)
        for value in LIMITS:
            chosen = {"selected": True} if value == limit else {}
            tags.option(f"{value} HU", value=value, **chosen)


def overlay_choice() -> None:
    """Add the choice to lay the differences on the CT, and their opacity."""
    page_parts.check_box("overlay", "On the CT")
    tags.input_(
        type="range",
        id="opacity",
        min=10,
        max=100,
        value=80,
        step=5,
        disabled=True,
        aria_label="Opacity of the differences on the CT",
    )


def size_choice(size: str = "medium") -> None:
    """Add the choices of the pictures' size and smoothing."""
    page_parts.choice_buttons("size", "Size", {"small": "S", "medium": "M", "large": "L"}, size)
    page_parts.check_box("smooth", "Smooth", checked=True)


def play_button() -> None:
    """Add the button that goes to and fro through the slices."""
    tags.button("▶ Play through the slices", type="button", cls="play", aria_pressed="false")


def slice_slider(label: str, play: bool = False) -> None:
    """Add the slider through the slices; `label` names it for readers who do not see it."""
    with tags.div(cls="slices"):
        if play:
            play_button()
        tags.span("Slice", cls="name")
        tags.input_(type="range", min=0, max=0, value=0, step=1, aria_label=label)
        tags.output()


def label_name(label: int, names: Mapping[int, str] = LABEL_NAMES) -> str:
    """Return the name of a mask's label."""
    return names.get(label, f"label {label}")


def label_legend(labels: Sequence[int], names: Mapping[int, str] = LABEL_NAMES) -> None:
    """Add the colours of a mask's labels."""
    page_parts.legend({label_name(k, names): label_colour(k) for k in labels if k})


def reading_help(extra: Sequence[str] = ()) -> None:
    """Add a card that explains the pictures, with further sentences."""
    with page_parts.fold("How to read the pictures", "card reading", open=True):
        page_parts.bullet_list((*READING, *extra))
