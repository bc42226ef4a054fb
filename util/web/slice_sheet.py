"""Volumes side by side, slice by slice: figures, stacks of pictures and animations."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.animation import FFMpegWriter, FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from util.files import atomic_path
from util.web.figures import (
    DIVERGING,
    LUNG,
    PLANES,
    Display,
    Panel,
    Window,
    draw_panel,
    filled_range,
    panel_colours,
)

COLUMN_INCHES = 2.1
HEADING_INCHES = 0.3
TITLE_INCHES = 0.42
BAR_INCHES = 0.85
ONE_ROW = 5  # up to so many volumes stand in one row; else differences stand below the scans
DPI = 100
MAX_FRAMES = 60


class SliceSheet:
    """A figure of volumes on one grid, each at the same slice, with the bar of every row.

    Args:
        panels: The volumes, scans before differences.
        plane: "axial", "coronal" or "sagittal".
        heading: Text at the top; the slice is added to it.
        window: Lowest and highest HU of scans.
        limit: Differences run from -limit to +limit HU.
        indices: Slices that are shown below one another; by default one, which `show` changes.
        unit: Unit of intensities.
    """

    def __init__(
        self,
        panels: Sequence[Panel],
        plane: str,
        heading: str,
        window: Window = LUNG,
        limit: float = 20.0,
        indices: Sequence[int] = (),
        unit: str = "HU",
    ) -> None:
        self.plane = plane
        self.unit = unit
        self.through = PLANES[plane][2]
        self.window = window
        self.limit = limit
        self.heading = heading
        rows = sheet_rows(panels)
        self._cells = [row for _ in range(max(1, len(indices))) for row in rows]
        self.figure = self._layout(panels[0])
        self._title = self.figure.text(
            0.5, 1 - 0.5 * HEADING_INCHES / self._height, "", ha="center", va="center", fontsize=10
        )
        self._images: list[tuple[Any, Panel]] = []
        middle = panels[0].array.shape[self.through] // 2
        for number, row in enumerate(self._cells):
            index = indices[number // len(rows)] if indices else middle
            self._draw_row(number, row, index, bool(indices))
        if indices:
            self._title.set_text(heading)
        else:
            self.show(middle)

    def _layout(self, panel: Panel) -> Figure:
        across, down = panel.size_mm(self.plane)
        columns = max(len(row) for row in self._cells)
        row_inches = COLUMN_INCHES * down / across + TITLE_INCHES
        self._height = HEADING_INCHES + row_inches * len(self._cells)
        self._width = COLUMN_INCHES * columns + BAR_INCHES
        self._row = row_inches
        figure = Figure(figsize=(self._width, self._height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        return figure

    def _draw_row(self, number: int, row: Sequence[Panel], index: int, named: bool) -> None:
        bottom = self._height - HEADING_INCHES - (number + 1) * self._row
        picture = self._row - TITLE_INCHES
        for column, panel in enumerate(row):
            place = (
                (column * COLUMN_INCHES + 0.02) / self._width,
                bottom / self._height,
                (COLUMN_INCHES - 0.04) / self._width,
                picture / self._height,
            )
            axes = self.figure.add_axes(place)
            image = draw_panel(axes, panel, self.plane, self._display(index))
            title = f"{panel.title}\nslice {index + 1}" if named else panel.title
            axes.set_title(title, fontsize=8, pad=3)
            self._images.append((image, panel))
        kinds = {panel.kind for panel in row}
        left = len(row) * COLUMN_INCHES + 0.08
        for kind, colours, low, high in (
            ("ct", "gray", *self.window),
            ("difference", DIVERGING, -self.limit, self.limit),
        ):
            if kind not in kinds:
                continue
            both = {"ct", "difference"} <= kinds
            share = 0.5 if both else 1.0
            start = bottom + (picture * 0.5 if both and kind == "ct" else 0)
            axes = self.figure.add_axes(
                (
                    left / self._width,
                    (start + 0.08 * picture) / self._height,
                    0.09 / self._width,
                    picture * (share - 0.16) / self._height,
                )
            )
            bar = self.figure.colorbar(ScalarMappable(Normalize(low, high), colours), cax=axes)
            middle = (low + high) / 2
            bar.set_ticks([low, middle, high], labels=[_hu(v) for v in (low, middle, high)])
            bar.ax.tick_params(labelsize=7)
            bar.set_label(self.unit, fontsize=7)

    def _display(self, index: int) -> Display:
        at = [0, 0, 0]
        at[self.through] = index
        return Display((at[0], at[1], at[2]), self.window, self.limit)

    def show(self, index: int) -> None:
        """Show a slice in every picture."""
        for image, panel in self._images:
            image.set_data(panel_colours(panel, self.plane, self._display(index)))
        self._title.set_text(f"{self.heading} · {self.plane} slice {index + 1}")

    def save(self, path: Path) -> None:
        """Save the figure: SVG if the name ends so, else PNG."""
        ending = "svg" if path.suffix == ".svg" else "png"
        with atomic_path(path) as temporary:
            self.figure.savefig(temporary, format=ending)


def _hu(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def sheet_rows(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Return volumes in rows: one, or differences below the others where there are many."""
    differences = [panel for panel in panels if panel.kind == "difference"]
    others = [panel for panel in panels if panel.kind != "difference"]
    if len(panels) <= ONE_ROW or not differences or not others:
        return [[*others, *differences]]
    return [others, differences]


def frame_slices(content: NDArray[Any], plane: str, most: int = MAX_FRAMES) -> list[int]:
    """Return at most `most` slices, evenly spread over those of a plane that hold something."""
    first, last = filled_range(content > 0, PLANES[plane][2])
    count = min(most, last - first + 1)
    return [int(k) for k in np.unique(np.rint(np.linspace(first, last, count)))]


def top_slices(
    differences: Sequence[NDArray[Any]], content: NDArray[Any], plane: str, count: int
) -> list[int]:
    """Return the slices of a plane with the largest mean size of the differences, in their order.

    Neighbours of a slice are passed over, so that the slices show several places.

    Args:
        differences: HU, (X, Y, Z).
        content: Above 0 where voxels count, such as the lungs.
        count: The number of slices.
    """
    through = PLANES[plane][2]
    across = tuple(axis for axis in range(3) if axis != through)
    inside = content > 0
    change = sum(np.where(inside, np.abs(difference), 0).sum(across) for difference in differences)
    change = np.asarray(change, float)
    apart = max(1, len(change) // (4 * count))
    chosen: list[int] = []
    for index in np.argsort(-change, kind="stable"):
        if change[index] > 0 and all(abs(index - other) >= apart for other in chosen):
            chosen.append(int(index))
        if len(chosen) == count:
            break
    return sorted(chosen)


def save_animation(
    sheet: SliceSheet, slices: Sequence[int], path: Path, frames_per_second: int = 8
) -> None:
    """Save an animation through slices: MP4 if the name ends so (needs ffmpeg), or GIF."""
    animation = FuncAnimation(
        sheet.figure,
        sheet.show,  # type: ignore[arg-type]  # it changes the figure and returns nothing
        frames=list(slices),
        cache_frame_data=False,
        init_func=list,
    )
    is_film = path.suffix == ".mp4"
    writer = FFMpegWriter(fps=frames_per_second) if is_film else PillowWriter(fps=frames_per_second)
    with (
        atomic_path(path) as temporary,
        mpl.rc_context({"animation.ffmpeg_path": find_ffmpeg() or "ffmpeg"}),
    ):
        animation.save(str(temporary), writer=writer)


def find_ffmpeg() -> str | None:
    """Return the program ffmpeg, else that of the package imageio-ffmpeg; None without either."""
    program = shutil.which("ffmpeg")
    if program is None and importlib.util.find_spec("imageio_ffmpeg") is not None:
        import imageio_ffmpeg

        try:
            program = str(imageio_ffmpeg.get_ffmpeg_exe())
        except RuntimeError:  # the package holds none for this system
            return None
    return program
