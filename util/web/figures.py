"""Slices of volumes as pictures: the radiological way round, true to the voxels' shape, in stated
HU windows.

Axial and coronal slices show the patient's right on the left; sagittal ones have the front on the
left; front or head is up. For RAS arrays this is every axis reversed.
"""

from __future__ import annotations

import io
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
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

Window = tuple[float, float]
Kind = Literal["mask", "ct", "difference", "score"]

LUNG: Window = (-1350.0, 150.0)  # centre -600, width 1500
MEDIASTINUM: Window = (-160.0, 240.0)  # centre 40, width 400
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
LABEL_NAMES: Mapping[int, str] = {0: "background", 1: "left lung", 2: "right lung", 3: "airway"}
BACKGROUND = "#0b0d11"
# Axis across the picture, axis down it, axis through it; the letters at its left, right, top and
# bottom edges.
PLANES: Mapping[str, tuple[int, int, int, tuple[str, str, str, str]]] = {
    "axial": (0, 1, 2, ("R", "L", "A", "P")),
    "coronal": (0, 2, 1, ("R", "L", "S", "I")),
    "sagittal": (1, 2, 0, ("A", "P", "S", "I")),
}


@dataclass(frozen=True)
class Panel:
    """One volume to show.

    Attributes:
        title: What it is ("generated", "SMOKING HISTORY = Never smoker").
        kind: "mask" (integer labels), "ct" (HU), "difference" (HU) or "score" (usual spreads).
        array: (X, Y, Z), RAS.
        spacing: Voxel size along the array's axes in mm.
        file: Link to the volume's file, relative to the page; `None` for no link.
        caption: A short line below the title.
        outline: Numbered regions (X, Y, Z) drawn as outlines over the slice (on pages alone), 0 for
            none.
    """

    title: str
    kind: Kind
    array: NDArray[Any]
    spacing: Sequence[float]
    file: str | None = None
    caption: str = ""
    outline: NDArray[Any] | None = None


def picture(array: NDArray[Any], plane: str, index: int) -> NDArray[Any]:
    """The slice `index` of an RAS array (X, Y, Z) as rows and columns of a radiological picture."""
    across, down, through, _ = PLANES[plane]
    slice_ = np.take(array, index, axis=through)
    return (slice_ if across > down else slice_.T)[::-1, ::-1]


def label_colour(label: int) -> str:
    """The colour of a mask label above 0."""
    return LABEL_COLOURS[(label - 1) % len(LABEL_COLOURS)]


def mask_rgb(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Integer labels (...) as colours (..., 3), uint8."""
    values, inverse = np.unique(labels, return_inverse=True)
    colours = [to_rgb(BACKGROUND if v == 0 else label_colour(int(v))) for v in values]
    return np.round(np.array(colours) * 255).astype(np.uint8)[inverse].reshape(*labels.shape, 3)


def ct_gray(hu: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """HU (...) as grey values (...), uint8; `window` is (lowest, highest) HU."""
    low, high = window
    return np.round(np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def difference_rgb(diff_hu: NDArray[Any], limit: float) -> NDArray[np.uint8]:
    """Differences in HU (...) as colours (..., 3), uint8: blue at -limit, white at 0, red at
    +limit.
    """
    return DIVERGING(Normalize(-limit, limit)(diff_hu), bytes=True)[..., :3]


def nice_limit(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50, ... HU that is not below `value`."""
    if not value > 0:
        return 1.0
    step = 10.0 ** np.floor(np.log10(value))
    return max(1.0, float(next(m * step for m in (1, 2, 5, 10) if m * step >= value * (1 - 1e-9))))


def fullest_slices(mask: NDArray[Any]) -> tuple[int, int, int]:
    """For each axis the slice that holds most of the mask's foreground; the middle where the mask
    is empty.
    """
    foreground = mask > 0
    found = []
    for axis in range(3):
        counts = foreground.sum(axis=tuple(a for a in range(3) if a != axis))
        found.append(int(counts.argmax()) if counts.any() else mask.shape[axis] // 2)
    return found[0], found[1], found[2]


def _colours(
    panel: Panel, plane: str, index: int, window: Window, limit: float
) -> NDArray[np.uint8]:
    values = picture(panel.array, plane, index)
    if panel.kind == "mask":
        return mask_rgb(values)
    if panel.kind in ("difference", "score"):
        return difference_rgb(values, limit)
    return np.repeat(ct_gray(values, window)[..., None], 3, axis=-1)


def _size_mm(panel: Panel, plane: str) -> tuple[float, float]:
    across, down, *_ = PLANES[plane]
    size = [n * float(s) for n, s in zip(panel.array.shape, panel.spacing, strict=True)]
    return size[across], size[down]


def _draw(axes: Axes, panel: Panel, plane: str, index: int, window: Window, limit: float) -> None:
    width, height = _size_mm(panel, plane)
    axes.imshow(
        _colours(panel, plane, index, window, limit),
        extent=(0, width, height, 0),
        interpolation="nearest" if panel.kind == "mask" else "bilinear",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    left, right, top, _ = PLANES[plane][3]
    edge = [Stroke(linewidth=1.6, foreground="#0b0d11"), Normal()]
    for x, y, side, letter in (
        (0.03, 0.5, "left", left),
        (0.97, 0.5, "right", right),
        (0.5, 0.95, "center", top),
    ):
        axes.text(
            x,
            y,
            letter,
            color="white",
            fontsize=7,
            ha=side,
            va="center",
            path_effects=edge,
            transform=axes.transAxes,
        )


def slice_row(
    mask: NDArray[Any],
    generated: NDArray[Any],
    real: NDArray[Any] | None,
    spacing: Sequence[float],
    window: Window = LUNG,
) -> bytes:
    """Mask, generated and (where there is one) real slices side by side, in three planes, as a PNG
    file's bytes.

    Args:
        mask: Integer labels (X, Y, Z), RAS; the slices shown are those that hold most of it.
        generated: HU, same shape.
        real: HU, same shape, or `None`.
        spacing: Voxel size in mm.
        window: Lowest and highest HU shown.
    """
    panels = [Panel("mask", "mask", mask, spacing), Panel("generated", "ct", generated, spacing)]
    if real is not None:
        panels.append(Panel("real", "ct", real, spacing))
    at = fullest_slices(mask)
    cells = [(plane, panel) for plane in PLANES for panel in panels]
    tall = max(_size_mm(panel, plane)[1] for plane, panel in cells)
    widths = [_size_mm(panel, plane)[0] / tall for plane, panel in cells]
    figure = Figure(
        figsize=(2.2 * sum(widths) + 0.05 * len(cells), 2.5), dpi=130, facecolor="white"
    )
    grid = GridSpec(
        1, len(cells), figure, width_ratios=widths, left=0, right=1, bottom=0, top=0.89, wspace=0.03
    )
    for i, (plane, panel) in enumerate(cells):
        axes = figure.add_subplot(grid[i])
        _draw(axes, panel, plane, at[PLANES[plane][2]], window, 1.0)
        axes.set_anchor("N")
        axes.set_title(
            f"{plane}: {panel.title}" if i % len(panels) == 0 else panel.title, fontsize=8, pad=3
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def save_slices_png(
    path: Path,
    panels: Sequence[Panel],
    at: tuple[int, int, int] | None = None,
    window: Window = LUNG,
    limit: float | None = None,
    dpi: int = 120,
) -> None:
    """A picture with a row a volume and a column a plane, with a colour bar for differences.

    Args:
        path: The file to write: SVG if it ends so, else PNG.
        panels: Volumes on one grid.
        at: Slice along each axis; by default those that hold most of the first mask among the
            panels.
        window: Lowest and highest HU shown.
        limit: Differences run from -limit to +limit HU; by default their 99.5th percentile, rounded
            up.
        dpi: Pixels an inch; a column is about 2.2 inches wide.
    """
    masks = [p.array for p in panels if p.kind == "mask"]
    at = at or fullest_slices(masks[0] if masks else np.zeros(panels[0].array.shape))
    changes = [p for p in panels if p.kind == "difference"]
    if limit is None:
        limit = nice_limit(
            max((float(np.quantile(np.abs(p.array), 0.995)) for p in changes), default=1.0)
        )
    figure, grid = _sheet(panels[0], len(panels), 0.9 if changes else 0.05, dpi)
    for row, panel in enumerate(panels):
        for column, plane in enumerate(PLANES):
            axes = figure.add_subplot(grid[row, column])
            _draw(axes, panel, plane, at[PLANES[plane][2]], window, limit)
            if column == 0:
                label = "\n".join(filter(None, (panel.title, panel.caption)))
                axes.text(
                    -0.06, 0.5, label, ha="right", va="center", fontsize=9, transform=axes.transAxes
                )
    if changes:
        _colour_bar(
            figure, grid, [i for i, p in enumerate(panels) if p.kind == "difference"], limit
        )
    figure.savefig(
        path, format="svg" if path.suffix == ".svg" else "png", bbox_inches="tight", pad_inches=0.08
    )


def _sheet(panel: Panel, rows: int, right: float, dpi: int) -> tuple[Figure, GridSpec]:
    """An empty figure with places for `rows` volumes like `panel`, planes named above, `right`
    inches free.
    """
    sizes = [_size_mm(panel, plane) for plane in PLANES]
    scale = 2.2 / max(width for width, _ in sizes)
    widths, height = (
        [width * scale for width, _ in sizes],
        max(height for _, height in sizes) * scale,
    )
    left, top = 1.35, 0.3
    total = (left + sum(widths) + right, rows * height + top)
    figure = Figure(figsize=total, dpi=dpi, facecolor="white")
    grid = GridSpec(
        rows,
        len(PLANES),
        figure,
        width_ratios=widths,
        wspace=0.03,
        hspace=0.03,
        left=left / total[0],
        right=1 - right / total[0],
        bottom=0.01,
        top=1 - top / total[1],
    )
    for column, plane in enumerate(PLANES):
        place = grid[0, column].get_position(figure)
        middle = (place.x0 + place.x1) / 2
        figure.text(middle, 1 - 0.5 * top / total[1], plane, ha="center", va="center", fontsize=10)
    return figure, grid


def _colour_bar(figure: Figure, grid: GridSpec, rows: Sequence[int], limit: float) -> None:
    place = grid[rows[0] : rows[-1] + 1, -1].get_position(figure)
    axes = figure.add_axes(
        (place.x1 + 0.015, place.y0 + 0.1 * place.height, 0.015, 0.8 * place.height)
    )
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), DIVERGING), cax=axes)
    bar.set_ticks([-limit, 0, limit], labels=[f"−{limit:g}", "0", f"+{limit:g}"])
    bar.set_label("HU", fontsize=8)
    bar.ax.tick_params(labelsize=8)
