"""Arrays in compressed chunks (blosc2), of which a patch unpacks the blocks that it touches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from util.cli import UserError

CHUNK = 64  # voxels along a side
BLOCK = 16  # voxels along a side of the unit that is unpacked
SUFFIX = ".b2nd"


def import_blosc2() -> Any:
    """Return the package blosc2; raise `UserError` where it is not installed."""
    try:
        import blosc2
    except ImportError:
        raise UserError(
            "--cache_compression blosc2 needs the package blosc2. Install it (pip install blosc2), "
            "or leave the flag out."
        ) from None
    return blosc2


def save_chunks(path: Path, array: np.ndarray) -> None:
    """Write an array (X, Y, Z) in compressed chunks, without loss."""
    blosc2 = import_blosc2()
    settings = {
        "codec": blosc2.Codec.LZ4HC,
        "clevel": 5,
        "filters": [blosc2.Filter.SHUFFLE],
        "filters_meta": [0],
        "nthreads": 1,
    }
    chunks = tuple(min(CHUNK, side) for side in array.shape)
    blocks = tuple(min(BLOCK, side) for side in chunks)
    blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=chunks,
        blocks=blocks,
        cparams=settings,
        urlpath=str(path),
        mode="w",
    )


def open_chunks(path: Path) -> Any:
    """Open an array of `save_chunks`; a box of it (slices) is unpacked as a numpy array.

    One thread unpacks, because loaders are processes.
    """
    return import_blosc2().open(str(path), mode="r", dparams={"nthreads": 1})
