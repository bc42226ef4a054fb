"""The files of an atlas: tables as CSV, everything as JSON, maps as NPZ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.atlas.statistics.findings import TEST_COLUMNS
from pipelines.atlas.statistics.population import PopulationMap
from util.cli import unique_names
from util.files import read_frame, read_json, write_frame, write_json
from util.modality import CT, Terms

FORMAT_VERSION = 3  # of the files' layout, see docs/reference/atlas_tables.md
ATLAS_RECORD = "atlas.json"
TEXT_COLUMNS = ["region", "prompt", "unit", "sentence", "reason", "text", "why"]
MAP_COLUMNS = ["key", "kind", "contrast", "cases", "low_hu", "high_hu"]


def write_table(folder: Path, name: str, frame: pd.DataFrame, terms: Terms = CT) -> None:
    """Write `NAME.csv`, numbers with six digits, in the names and words of the modality."""
    if not terms.is_ct:
        frame = frame.rename(columns=terms.name)
        for column in frame.columns.intersection(TEXT_COLUMNS):
            change = {"region": terms.name, "prompt": terms.prompt}.get(column, terms.text)
            frame[column] = frame[column].map(change, na_action="ignore")
    write_frame(folder / f"{name}.csv", frame, float_format="%.6g")


def to_json(value: Any) -> Any:
    """Return a value as JSON takes it: tables as lists of rows, NaN as null, six digits."""
    if isinstance(value, pd.DataFrame):
        return [to_json(row) for row in value.to_dict("records")]
    if isinstance(value, Mapping):
        return {str(name): to_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return None if value is pd.NA or value is pd.NaT else value


def write_record(folder: Path, values: Mapping[str, Any]) -> None:
    """Write `atlas.json`."""
    write_json(folder / ATLAS_RECORD, {"version": FORMAT_VERSION, **to_json(values)})


def write_maps(folder: Path, maps: Sequence[PopulationMap]) -> pd.DataFrame:
    """Write `maps.npz` with float16 arrays, and return the rows of maps.csv."""
    rows = []
    arrays: dict[str, Any] = {}
    for number, one in enumerate(maps):
        key = f"map_{number:03d}"
        arrays[key] = one.array.astype(np.float16)
        known = one.array[np.isfinite(one.array)]
        low, high = np.percentile(known, [1, 99]) if known.size else (np.nan, np.nan)
        rows.append((key, one.kind, one.contrast, one.cases, low, high))
    np.savez_compressed(folder / "maps.npz", **arrays)
    return pd.DataFrame(rows, columns=MAP_COLUMNS)


@dataclass(frozen=True)
class AtlasFiles:
    """The files in an atlas' folder."""

    folder: Path
    record: Mapping[str, Any]
    cases: pd.DataFrame
    arms: pd.DataFrame
    volumes: pd.DataFrame
    tests: pd.DataFrame

    @classmethod
    def from_folder(cls, folder: Path) -> AtlasFiles:
        """Read an atlas."""
        record = read_json(folder / ATLAS_RECORD)
        return cls(
            folder,
            record,
            read_frame(folder / "cases.csv"),
            read_frame(folder / "arms.csv"),
            read_frame(folder / "volumes.csv"),
            pd.DataFrame(record["tests"], columns=list(TEST_COLUMNS)),
        )

    @property
    def kept_cases(self) -> list[str]:
        """Cases whose volumes are kept."""
        return self.volumes.loc[self.volumes["kind"] == "own", "case"].tolist()

    @property
    def page_names(self) -> dict[str, str]:
        """The name of each kept case's page, without ending."""
        return unique_names(self.kept_cases)

    def read_maps(self) -> dict[str, np.ndarray]:
        """Return the population maps by key, float32."""
        with np.load(self.folder / "maps.npz", allow_pickle=False) as maps:
            return {key: maps[key].astype(np.float32) for key in maps.files}
