"""The files of an atlas: tables as CSV, everything as JSON, maps as NPZ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from util.files import write_json

FORMAT_VERSION = 1  # of the files' layout, see docs/atlas.md
ATLAS_RECORD = "atlas.json"


def write_table(folder: Path, name: str, frame: pd.DataFrame) -> None:
    """`NAME.csv`, numbers with six digits."""
    frame.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")


def to_json(value: Any) -> Any:
    """A value as JSON takes it: frames as lists of rows, NaN as null."""
    if isinstance(value, pd.DataFrame):
        return [to_json(row) for row in value.to_dict("records")]
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return None if value is pd.NA or value is pd.NaT else value


def write_record(folder: Path, values: Mapping[str, Any]) -> None:
    """`atlas.json`."""
    write_json(folder / ATLAS_RECORD, {"version": FORMAT_VERSION, **to_json(values)})


def write_maps(
    folder: Path, maps: Sequence[tuple[str, str, int, NDArray[np.float32]]]
) -> pd.DataFrame:
    """`maps.npz` with float16 arrays, and the rows of maps.csv."""
    rows, arrays = [], {}
    for number, (kind, contrast, cases, array) in enumerate(maps):
        key = f"map_{number:03d}"
        arrays[key] = array.astype(np.float16)
        known = array[np.isfinite(array)]
        low, high = np.percentile(known, [1, 99]) if known.size else (np.nan, np.nan)
        rows.append(
            {
                "key": key,
                "kind": kind,
                "contrast": contrast,
                "cases": cases,
                "low_hu": low,
                "high_hu": high,
            }
        )
    np.savez_compressed(folder / "maps.npz", **arrays)  # type: ignore[arg-type]
    return pd.DataFrame(rows, columns=["key", "kind", "contrast", "cases", "low_hu", "high_hu"])
