"""Voxels as scripts, because a page opened from disk may load scripts but not fetch files.

A volume is stored in full resolution, in bricks of a script each. The viewer loads those through
which a slice goes.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from util.cli import UserError
from util.web.figures import Kind, Panel, filled_range, fullest_slices

# Steps of the stored int16: a tenth of a HU for differences, so that small ones survive.
STEPS: dict[Kind, float] = {
    "mask": 1.0,
    "ct": 1.0,
    "difference": 0.1,
    "spread": 0.1,
    "score": 0.01,
    "share": 0.1,
}
INT16 = np.iinfo(np.int16)  # its lowest value stands for a voxel without value
# Flat bricks: the axial slices, which are seen first, need few of them.
BRICK = (128, 128, 16)
UNDIVIDED = 2**21  # volumes of at most so many voxels are one brick (4 MiB)
COARSE = (
    "~"  # ends the keys of volumes in half the resolution, which are shown while slices fly past
)
GZIP_LEVEL = 1  # once the bytes are in planes, a higher one takes longer and saves nothing


class VolumeEntry(TypedDict):
    """A volume as the viewer knows it.

    Attributes:
        kind: What its values are.
        step: Stored values are multiples of this.
        unit: Unit of its values; "" for that of its kind.
    """

    kind: Kind
    step: float
    unit: str


@dataclass(frozen=True)
class PageGrid:
    """Grid of volumes on a page.

    Attributes:
        shape: Voxels along each axis.
        spacing: Their size in mm.
        start: Slices shown first.
        extent: First and last slice along each axis that hold something.
        brick: Voxels along each axis of a brick; those at the far ends may be smaller.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    start: tuple[int, ...]
    extent: tuple[tuple[int, int], ...]
    brick: tuple[int, ...]

    @classmethod
    def around(
        cls,
        content: NDArray[Any],
        spacing: Sequence[float],
        start: Sequence[int] | None = None,
    ) -> PageGrid:
        """Return the grid of an array that is above 0 where there is something to see.

        Args:
            content: Mask (X, Y, Z) of what is looked at.
            spacing: Voxel size in mm.
            start: Slices shown first; by default those that hold most of `content`.
        """
        return cls(
            shape=content.shape,
            spacing=tuple(map(float, spacing)),
            start=fullest_slices(content) if start is None else tuple(map(int, start)),
            extent=tuple(filled_range(content, axis) for axis in range(content.ndim)),
            brick=brick_shape(content.shape),
        )

    def halved(self) -> PageGrid | None:
        """Return the grid of `halve`; None for volumes that are one brick."""
        if self.brick == self.shape:
            return None
        x, y, z = self.shape
        shape = ((x + 1) // 2, (y + 1) // 2, z)
        factors = (2, 2, 1)
        start = tuple(k // f for k, f in zip(self.start, factors, strict=True))
        extent = tuple(
            (low // f, high // f) for (low, high), f in zip(self.extent, factors, strict=True)
        )
        spacing = tuple(
            side * n / half for side, n, half in zip(self.spacing, self.shape, shape, strict=True)
        )
        return PageGrid(shape, spacing, start, extent, brick_shape(shape))


def brick_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the voxels of a brick along each axis; a small volume is one brick."""
    if np.prod(shape, dtype=np.int64) <= UNDIVIDED:
        return tuple(shape)
    return tuple(min(n, size) for n, size in zip(shape, BRICK, strict=True))


def bricks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the bricks of a volume (X, Y, Z), along the first axis first."""
    corners = [
        range(0, n, size) for n, size in zip(array.shape, brick_shape(array.shape), strict=True)
    ]
    for z, y, x in product(*reversed(corners)):
        a, b, c = (
            slice(start, start + size)
            for start, size in zip((x, y, z), brick_shape(array.shape), strict=True)
        )
        yield array[a, b, c]


def halve(array: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """Return a volume (X, Y, Z) in half the resolution along X and Y.

    Values are means of four voxels, labels those of one of them.
    """
    x, y, z = array.shape
    even = np.pad(array, ((0, x % 2), (0, y % 2), (0, 0)), mode="edge")
    if kind == "mask":
        return even[::2, ::2]
    pairs = even.reshape((x + 1) // 2, 2, (y + 1) // 2, 2, z)
    return np.asarray(pairs.mean((1, 3), dtype=np.float32))


def pack(array: NDArray[Any], step: float) -> str:
    """Return values (X, Y, Z) as base64 of gzip of int16, the first axis fastest.

    Values are multiples of `step`. NaN becomes the lowest int16, which no other value does. The
    low bytes of all values come first, then their high bytes: so they compress better and faster.
    """
    rounded = np.rint(np.asarray(array, np.float32) / np.float32(step))
    np.clip(rounded, INT16.min + 1, INT16.max, out=rounded)
    stored = np.nan_to_num(rounded, copy=False, nan=INT16.min).astype("<i2")
    planes = np.frombuffer(stored.tobytes(order="F"), np.uint8).reshape(-1, 2).T
    packed = gzip.compress(planes.tobytes(), compresslevel=GZIP_LEVEL, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def write_volume(
    folder: Path,
    key: str,
    array: NDArray[Any],
    kind: Kind,
    step: float | None = None,
    unit: str = "",
) -> VolumeEntry:
    """Write `folder`/KEY.N.js for each brick of a volume; return the volume's entry.

    A volume of several bricks is written a second time, in half the resolution, as KEY~.N.js.

    Args:
        folder: The folder of the viewer's voxels.
        key: Name of the volume; it may begin with a folder.
        array: The volume (X, Y, Z).
        kind: What its values are.
        step: Stored values are multiples of this; by default that of the kind.
        unit: Unit of the values; by default that of the kind.
    """
    step = step or STEPS[kind]
    (folder / key).parent.mkdir(parents=True, exist_ok=True)
    _write_bricks(folder, key, array, step)
    if brick_shape(array.shape) != array.shape:
        _write_bricks(folder, f"{key}{COARSE}", halve(array, kind), step)
    return {"kind": kind, "step": step, "unit": unit}


def _write_bricks(folder: Path, key: str, array: NDArray[Any], step: float) -> None:
    for number, brick in enumerate(bricks(array)):
        arguments = f"{json.dumps(key)},{number},{json.dumps(pack(brick, step))}"
        path = folder / f"{key}.{number}.js"
        path.write_text(f"Mask2CT.addBrick({arguments});\n", encoding="ascii")


def check_panels(case: str, panels: Sequence[Panel]) -> None:
    """Raise `UserError` where volumes do not share a grid or hold what no page can show."""
    shape = panels[0].array.shape
    for panel in panels:
        where = f"Case {case}, volume {panel.title!r}"
        if panel.array.ndim != 3 or panel.array.shape != shape:
            raise UserError(
                f"{where} has shape {panel.array.shape}; the volumes of a case share one "
                f"three-dimensional grid, here {shape}. Resample it to the mask's grid."
            )
        if panel.outline is not None and panel.outline.shape != shape:
            raise UserError(
                f"{where} has outlines of shape {panel.outline.shape} instead of {shape}. "
                "Resample them to the mask's grid."
            )
        if not np.isfinite(panel.array).all():
            raise UserError(
                f"{where} holds values that are not finite; HU and labels must be. Generate or "
                "convert it again."
            )
        lowest, highest = int(panel.array.min()), int(panel.array.max())
        if panel.kind == "mask" and not 0 <= lowest <= highest <= INT16.max:
            raise UserError(
                f"{where} has labels outside 0 to {INT16.max}. Renumber the mask's labels."
            )
