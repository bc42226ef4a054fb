"""Slices of volumes as pictures in stated HU windows, true to the voxels' shape.

Pictures are in radiological display: axial and coronal slices show the patient's right on the
left; sagittal ones have the front on the left; front or head is up. For RAS arrays this is every
axis reversed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.image import AxesImage
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray
from scipy import ndimage

from util.files import atomic_path
from util.metrics.regions import bounding_box

Window = tuple[float, float]
Kind = Literal["mask", "ct", "difference", "spread", "score", "share"]
Role = Literal["", "real", "generated", "control"]

LUNG: Window = (-1350.0, 150.0)  # centre -600, width 1500
MEDIASTINUM: Window = (-160.0, 240.0)  # centre 40, width 400
BONE: Window = (-450.0, 1050.0)  # centre 300, width 1500
DIVERGING = colormaps["RdBu_r"]  # blue: less dense, red: denser
LABEL_COLOURS = (
    "#4c9be8",
    "#f2a541",
    "#6fd08c",
    "#e06c9f",
    "#b08ae0",
    "#e8e070",
    "#5fd0d0",
    "#c98b6b",
)
BACKGROUND = "#0b0d11"
# Axis across the picture, axis down it, axis through it; letters at its left, right, top, bottom.
PLANES: Mapping[str, tuple[int, int, int, tuple[str, str, str, str]]] = {
    "axial": (0, 1, 2, ("R", "L", "A", "P")),
    "coronal": (0, 2, 1, ("R", "L", "S", "I")),
    "sagittal": (1, 2, 0, ("A", "P", "S", "I")),
}
COLUMN_INCHES = 2.2  # width of the widest plane in a file


@dataclass(frozen=True)
class Panel:
    """One volume to show.

    Attributes:
        title: Its name ("generated", "SMOKING HISTORY = Never smoker").
        kind: "mask" (integer labels), "ct" (HU), "difference" (HU), "spread" (HU, without sign),
            "score" (usual spreads) or "share" (percent).
        array: (X, Y, Z), RAS.
        spacing: Voxel size along the array's axes in mm.
        file: Link to the volume's file, relative to the page; `None` for no link.
        caption: A short line below the title.
        outline: Numbered regions (X, Y, Z) that pages outline, 0 for none.
        before: Of a difference or a score: the volume that pages lay it on.
        role: What it is to the case: the real scan, the volume of its own text, or the difference
            of other noise that a difference is compared with.
        attribute: Attribute that was varied; "" for none.
        values: Its value, or the two values of a difference.
        phrases: Phrases that it was generated from.
    """

    title: str
    kind: Kind
    array: NDArray[Any]
    spacing: Sequence[float]
    file: str | None = None
    caption: str = ""
    outline: NDArray[Any] | None = None
    before: Panel | None = None
    role: Role = ""
    attribute: str = ""
    values: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()

    def size_mm(self, plane: str) -> tuple[float, float]:
        """Return width and height of a plane in mm."""
        across, down, *_ = PLANES[plane]
        size = [n * float(s) for n, s in zip(self.array.shape, self.spacing, strict=True)]
        return size[across], size[down]


@dataclass(frozen=True)
class Display:
    """Which slices are drawn, and how.

    Attributes:
        at: Slice along each axis.
        window: Lowest and highest HU shown.
        limit: Differences run from -limit to +limit HU.
    """

    at: tuple[int, int, int]
    window: Window = LUNG
    limit: float = 1.0


def radiological_slice(array: NDArray[Any], plane: str, index: int) -> NDArray[Any]:
    """Return the slice `index` of an RAS array (X, Y, Z) as rows and columns of a picture."""
    across, down, through, _ = PLANES[plane]
    slice_ = np.take(array, index, axis=through)
    return (slice_ if across > down else slice_.T)[::-1, ::-1]


def label_colour(label: int) -> str:
    """Return the colour of a mask label above 0."""
    return LABEL_COLOURS[(label - 1) % len(LABEL_COLOURS)]


def mask_rgb(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return integer labels (...) as colours (..., 3), uint8."""
    values, inverse = np.unique(labels, return_inverse=True)
    colours = [to_rgb(BACKGROUND if v == 0 else label_colour(int(v))) for v in values]
    return np.round(np.array(colours) * 255).astype(np.uint8)[inverse].reshape(*labels.shape, 3)


def ct_gray(hu: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Return HU (...) as grey values (...), uint8; `window` is (lowest, highest) HU."""
    low, high = window
    return np.round(np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def difference_rgb(diff_hu: NDArray[Any], limit: float) -> NDArray[np.uint8]:
    """Return differences in HU (...) as colours (..., 3), uint8.

    Blue is -limit, white is 0, red is +limit.
    """
    return DIVERGING(Normalize(-limit, limit)(diff_hu), bytes=True)[..., :3]


def nice_limit(value: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, 50, ... HU that is not below `value`."""
    if not value > 0:
        return 1.0
    step = 10.0 ** np.floor(np.log10(value))
    return max(1.0, float(next(m * step for m in (1, 2, 5, 10) if m * step >= value * (1 - 1e-9))))


def inner_labels(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where a mask has labels, without one that surrounds all others, such as the body.

    Args:
        mask: Labels (X, Y, Z), or a region.
    """
    labels = mask.astype(np.uint8)
    foreground = labels > 0
    boxes = {k: box for k, box in enumerate(ndimage.find_objects(labels), 1) if box}
    counts = np.bincount(labels[foreground], minlength=1)
    largest = int(counts.argmax())
    others = [box for label, box in boxes.items() if label != largest]
    for box in others:
        for outer, inner in zip(boxes[largest], box, strict=True):
            if not outer.start <= inner.start <= inner.stop <= outer.stop:
                return foreground
    return foreground & (labels != largest) if others else foreground


def filled_range(content: NDArray[Any], axis: int) -> tuple[int, int]:
    """Return the first and the last slice along an axis that hold something; all for nothing."""
    if not content.any():
        return 0, content.shape[axis] - 1
    extent = bounding_box(content)[axis]
    return extent.start, extent.stop - 1


def fullest_slices(mask: NDArray[Any]) -> tuple[int, int, int]:
    """Return the slice along each axis that holds most of a mask's inner labels.

    Of an empty mask it is the middle.
    """
    foreground = inner_labels(mask)
    slices = []
    for axis in range(3):
        counts = foreground.sum(axis=tuple(a for a in range(3) if a != axis))
        slices.append(int(counts.argmax()) if counts.any() else mask.shape[axis] // 2)
    return slices[0], slices[1], slices[2]


def panel_colours(panel: Panel, plane: str, display: Display) -> NDArray[np.uint8]:
    """Return the slice of a volume as colours (rows, columns, 3), uint8."""
    values = radiological_slice(panel.array, plane, display.at[PLANES[plane][2]])
    if panel.kind == "mask":
        return mask_rgb(values)
    if panel.kind == "ct":
        return np.repeat(ct_gray(values, display.window)[..., None], 3, axis=-1)
    return difference_rgb(values, display.limit)


def draw_panel(axes: Axes, panel: Panel, plane: str, display: Display) -> AxesImage:
    """Draw the slice of a volume with the letters of its sides; return the picture."""
    width, height = panel.size_mm(plane)
    image = axes.imshow(
        panel_colours(panel, plane, display),
        extent=(0, width, height, 0),
        interpolation="nearest" if panel.kind == "mask" else "bilinear",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    left, right, top, _ = PLANES[plane][3]
    for x, y, side, letter in (
        (0.03, 0.5, "left", left),
        (0.97, 0.5, "right", right),
        (0.5, 0.95, "center", top),
    ):
        text = axes.text(x, y, letter, color="white", fontsize=7, transform=axes.transAxes)
        text.set(ha=side, va="center")
        text.set_path_effects([Stroke(linewidth=1.6, foreground=BACKGROUND), Normal()])
    return image


def save_slices_png(
    path: Path,
    panels: Sequence[Panel],
    at: tuple[int, int, int] | None = None,
    window: Window = LUNG,
    limit: float | None = None,
    dpi: int = 120,
    unit: str = "HU",
) -> None:
    """Save a picture with a row per volume, a column per plane, a colour bar for differences.

    Args:
        path: The file to write: SVG if it ends so, else PNG.
        panels: Volumes on one grid.
        at: Slice along each axis; by default those that hold most of the first mask among the
            panels.
        window: Lowest and highest HU shown.
        limit: Differences run from -limit to +limit HU; by default their 99.5th percentile, rounded
            up.
        dpi: Pixels per inch; a column is about 2.2 inches wide.
        unit: Unit of the differences.
    """
    if at is None:
        masks = [panel.array for panel in panels if panel.kind == "mask"]
        at = fullest_slices(masks[0] if masks else np.zeros(panels[0].array.shape))
    rows = [row for row, panel in enumerate(panels) if panel.kind == "difference"]
    if limit is None:
        sizes = [float(np.quantile(np.abs(panels[row].array), 0.995)) for row in rows]
        limit = nice_limit(max(sizes, default=1.0))
    display = Display(at, window, limit)
    figure = Figure(dpi=dpi, facecolor="white")
    grid = _sheet(figure, panels[0], len(panels), 0.9 if rows else 0.05)
    for row, panel in enumerate(panels):
        for column, plane in enumerate(PLANES):
            axes = figure.add_subplot(grid[row, column])
            draw_panel(axes, panel, plane, display)
            if column == 0:
                label = f"{panel.title}\n{panel.caption}".rstrip()
                text = axes.text(-0.06, 0.5, label, fontsize=9, transform=axes.transAxes)
                text.set(ha="right", va="center")
    if rows:
        _colour_bar(figure, grid, rows, limit, unit)
    ending = "svg" if path.suffix.lower() == ".svg" else "png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=ending, bbox_inches="tight", pad_inches=0.08)


def _sheet(figure: Figure, panel: Panel, rows: int, right: float) -> GridSpec:
    """Size a figure for `rows` volumes like `panel`, with `right` inches free, and name planes."""
    sizes = [panel.size_mm(plane) for plane in PLANES]
    scale = COLUMN_INCHES / max(width for width, _ in sizes)
    widths = [width * scale for width, _ in sizes]
    row_height = max(height for _, height in sizes) * scale
    left = 1.35
    top = 0.3
    width = left + sum(widths) + right
    height = rows * row_height + top
    figure.set_size_inches(width, height)
    grid = GridSpec(
        rows,
        len(PLANES),
        figure,
        width_ratios=widths,
        wspace=0.03,
        hspace=0.03,
        left=left / width,
        right=1 - right / width,
        bottom=0.01,
        top=1 - top / height,
    )
    for column, plane in enumerate(PLANES):
        place = grid[0, column].get_position(figure)
        middle = (place.x0 + place.x1) / 2
        figure.text(middle, 1 - 0.5 * top / height, plane, ha="center", va="center", fontsize=10)
    return grid


def _colour_bar(
    figure: Figure, grid: GridSpec, rows: Sequence[int], limit: float, unit: str
) -> None:
    place = grid[rows[0] : rows[-1] + 1, -1].get_position(figure)
    bottom = place.y0 + 0.1 * place.height
    axes = figure.add_axes((place.x1 + 0.015, bottom, 0.015, 0.8 * place.height))
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), DIVERGING), cax=axes)
    bar.set_ticks([-limit, 0, limit], labels=[f"−{limit:g}", "0", f"+{limit:g}"])
    bar.set_label(unit, fontsize=8)
    bar.ax.tick_params(labelsize=8)
