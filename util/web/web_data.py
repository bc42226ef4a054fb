"""Voxels as scripts, because a page opened from disk may load scripts but not fetch files."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from util.cli import UserError
from util.web.figures import Kind, Panel, fullest_slices

# Steps of the stored int16: a tenth of a HU for differences, so that small ones survive.
STEPS: dict[Kind, float] = {
    "mask": 1.0,
    "ct": 1.0,
    "difference": 0.1,
    "spread": 0.1,
    "score": 0.01,
}
INT16 = np.iinfo(np.int16)  # its lowest value stands for a voxel without value


class VolumeEntry(TypedDict):
    """A volume as the viewer knows it: its kind, and the step of its stored values."""

    kind: Kind
    step: float


@dataclass(frozen=True)
class PageGrid:
    """Grid of volumes as a page shows them.

    Attributes:
        shape: Voxels along each axis.
        spacing: Their size in mm.
        block: Voxels of the files along each axis that are one on the page.
        start: Slices shown first.
        extent: First and last slice along each axis that hold something.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    block: tuple[int, int, int]
    start: tuple[int, ...]
    extent: tuple[tuple[int, int], ...]

    @classmethod
    def around(
        cls,
        content: NDArray[Any],
        spacing: Sequence[float],
        block: tuple[int, int, int] = (1, 1, 1),
        start: tuple[int, ...] | None = None,
    ) -> PageGrid:
        """Return the grid of an array as shown, above 0 where there is something to see.

        Args:
            content: Mask (X, Y, Z) of what is looked at.
            spacing: Voxel size of the files in mm.
            block: See `PageGrid`.
            start: Slices shown first; by default those that hold most of `content`.
        """
        return cls(
            shape=content.shape,
            spacing=tuple(float(s) * n for s, n in zip(spacing, block, strict=True)),
            block=block,
            start=start or fullest_slices(content),
            extent=_extent(content),
        )


def _extent(content: NDArray[Any]) -> tuple[tuple[int, int], ...]:
    """Return the first and last slice along each axis that hold something."""
    ends = []
    for axis, length in enumerate(content.shape):
        across = tuple(a for a in range(content.ndim) if a != axis)
        filled = np.flatnonzero(content.any(across))
        ends.append((int(filled[0]), int(filled[-1])) if len(filled) else (0, length - 1))
    return tuple(ends)


def block_shape(shape: Sequence[int], max_size: int) -> tuple[int, int, int]:
    """Return the voxels that become one on a page, so that no axis is longer than `max_size`."""
    x, y, z = (math.ceil(n / max_size) for n in shape)
    return x, y, z


def shrink(array: NDArray[Any], block: Sequence[int], average: bool) -> NDArray[Any]:
    """Return blocks of voxels as one: their mean, or the voxel in their middle (for labels).

    The last block along an axis may be smaller.
    """
    if all(n == 1 for n in block):
        return array
    if not average:
        middles = [
            np.minimum(np.arange(n // 2, length + n // 2, n), length - 1)
            for n, length in zip(block, array.shape, strict=True)
        ]
        return array[np.ix_(*middles)]
    missing = [(0, -length % n) for n, length in zip(block, array.shape, strict=True)]
    padded = np.pad(array, missing, mode="edge")
    a, b, c = block
    x, y, z = padded.shape
    blocks = padded.reshape(x // a, a, y // b, b, z // c, c)
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def pack(array: NDArray[Any], step: float) -> str:
    """Return values (X, Y, Z) as base64 of gzip of little-endian int16, the first axis fastest.

    Values are multiples of `step`. NaN becomes the lowest int16, which no other value does.
    """
    rounded = np.clip(np.rint(np.asarray(array, np.float64) / step), INT16.min + 1, INT16.max)
    stored = np.nan_to_num(rounded, nan=INT16.min).astype("<i2")
    packed = gzip.compress(stored.tobytes(order="F"), compresslevel=6, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def write_volume(folder: Path, key: str, array: NDArray[Any], kind: Kind) -> VolumeEntry:
    """Write `folder`/KEY.js, which hands a volume to the viewer; return the volume's entry."""
    step = STEPS[kind]
    script = f"Mask2CT.addVolume({json.dumps(key)},{json.dumps(pack(array, step))});\n"
    (folder / f"{key}.js").write_text(script, encoding="ascii")
    return {"kind": kind, "step": step}


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
