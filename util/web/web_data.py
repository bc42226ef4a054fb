"""Voxels as scripts: a page opened from disk may not fetch files, but it may load a script when it
needs it.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from util.cli import UserError
from util.web.figures import Kind, Panel

# Steps of the stored int16: a tenth of a HU for differences, so that small ones survive.
STEP: dict[Kind, float] = {"mask": 1.0, "ct": 1.0, "difference": 0.1, "score": 0.01}
INT16 = np.iinfo(np.int16)  # its lowest value stands for a voxel without value


def block(shape: Sequence[int], max_size: int) -> tuple[int, int, int]:
    """How many voxels along each axis become one on the page, so that none is longer than
    `max_size`.
    """
    x, y, z = (math.ceil(n / max_size) for n in shape)
    return x, y, z


def shrink(array: NDArray[Any], factors: Sequence[int], average: bool) -> NDArray[Any]:
    """Blocks of voxels as one: their mean, or (labels) the voxel in their middle; the last block
    may be smaller.
    """
    if all(f == 1 for f in factors):
        return array
    if not average:
        grids = [
            np.minimum(np.arange(f // 2, n + f // 2, f), n - 1)
            for f, n in zip(factors, array.shape, strict=True)
        ]
        return array[np.ix_(*grids)]
    padded = np.pad(
        array, [(0, -n % f) for f, n in zip(factors, array.shape, strict=True)], mode="edge"
    )
    x, y, z = (n // f for n, f in zip(padded.shape, factors, strict=True))
    a, b, c = factors
    return padded.reshape(x, a, y, b, z, c).mean(axis=(1, 3, 5), dtype=np.float32)


def pack(array: NDArray[Any], step: float) -> str:
    """Values (X, Y, Z) as base64 of gzip of little-endian int16 multiples of `step`, the first axis
    fastest.

    NaN becomes the lowest int16, which no other value does.
    """
    rounded = np.clip(np.rint(np.asarray(array, np.float64) / step), INT16.min + 1, INT16.max)
    whole = np.nan_to_num(rounded, nan=INT16.min).astype("<i2")
    return base64.b64encode(
        gzip.compress(whole.tobytes(order="F"), compresslevel=6, mtime=0)
    ).decode("ascii")


def write_case(path: Path, key: str, panels: Sequence[tuple[Panel, NDArray[Any]]]) -> None:
    """Writes the script that hands a case's voxels (each panel's, as shown) to the viewer."""
    with path.open("w", encoding="ascii") as file:
        file.write(f"mask2ctCase({json.dumps(key)},[\n")
        for panel, shown in panels:
            entry = {
                "kind": panel.kind,
                "step": STEP[panel.kind],
                "voxels": pack(shown, STEP[panel.kind]),
            }
            if panel.outline is not None:
                entry["outline"] = pack(panel.outline, 1.0)
            file.write(json.dumps(entry) + ",\n")
        file.write("]);\n")


def write_volume(path: Path, key: str, array: NDArray[Any], kind: Kind) -> float:
    """Writes the script that hands one volume to the atlas' viewer; returns the step of its stored
    values.
    """
    path.write_text(
        f"mask2ctVolume({json.dumps(key)},{json.dumps(pack(array, STEP[kind]))});\n",
        encoding="ascii",
    )
    return STEP[kind]


def check_panels(case: str, panels: Sequence[Panel]) -> None:
    """Raises `UserError` where a case's volumes cannot be shown together or hold what no page can
    show.
    """
    for panel in panels:
        where = f"Case {case}, volume {panel.title!r}"
        if panel.array.ndim != 3 or panel.array.shape != panels[0].array.shape:
            raise UserError(
                f"{where} has shape {panel.array.shape}; the volumes of a case share one "
                f"three-dimensional grid, here {panels[0].array.shape}. Resample it to the mask's "
                "grid."
            )
        if panel.outline is not None and panel.outline.shape != panel.array.shape:
            raise UserError(
                f"{where} has outlines of shape {panel.outline.shape}; they need its own "
                f"{panel.array.shape}."
            )
        if not np.isfinite(panel.array).all():
            raise UserError(
                f"{where} holds values that are not finite; HU and labels must be. See how it was "
                "made."
            )
        if (
            panel.kind == "mask"
            and not 0 <= int(panel.array.min()) <= int(panel.array.max()) <= INT16.max
        ):
            raise UserError(
                f"{where} has labels outside 0 to {INT16.max}. Renumber the mask's labels."
            )
