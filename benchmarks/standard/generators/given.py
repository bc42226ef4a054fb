"""What the standard benchmark gives to a generator, read and written."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from data.phantom.kinds.chest import Chest
from data.volumes import load_volume, write_like
from util.files import read_csv, read_json, write_json

KEY = "File Name"
DESIGN_FILE = "design.json"
Hu = NDArray[np.float32]
Row = dict[str, str]


@dataclass(frozen=True)
class GivenCase:
    """A case of a given folder.

    Attributes:
        name: Its id.
        folder: The given folder.
        row: Its cells.
    """

    name: str
    folder: Path
    row: Row

    @property
    def mask_file(self) -> Path:
        """File of the mask."""
        return self.folder / "gtlung" / f"{self.name}.nii.gz"

    def scan(self) -> Hu:
        """Return the scan in HU, `(X, Y, Z)` in RAS; of training cases alone."""
        return load_volume(self.folder / "img" / f"{self.name}.nii.gz").array.astype(np.float32)

    @cached_property
    def chest(self) -> Chest:
        """The mask with its maps of place; the voxels of its CT are 0."""
        mask = load_volume(self.mask_file)
        x, y, z = (float(side) for side in voxel_sizes(mask.affine))
        labels = mask.array.astype(np.uint8)
        return Chest.from_scan(np.zeros(labels.shape, np.float32), labels, (x, y, z))


def read_cases(folder: Path) -> list[GivenCase]:
    """Return the cases of a given folder in the order of its table."""
    rows = read_csv(folder / "clinical.csv", [KEY])
    return [GivenCase(row[KEY], folder, _cells(row)) for row in rows]


def effects_outside_lungs(folder: Path) -> bool:
    """Return whether the row acts outside the lungs in a set."""
    return bool(read_json(folder / "set.json")["effects_outside_lungs"])


@dataclass(frozen=True)
class Request:
    """A volume that is asked for.

    Attributes:
        file: Name of the file to write.
        case: The case whose mask is taken.
        row: The cells, of which some may differ from the case's own.
        draw: Number of the noise draw.
    """

    file: str
    case: GivenCase
    row: Row
    draw: int

    @property
    def seed(self) -> int:
        """Seed of its noise, the same for all rows of a case."""
        text = f"{self.case.name}, draw {self.draw}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def read_requests(folder: Path) -> Iterator[Request]:
    """Yield the volumes that are asked for."""
    cases = {case.name: case for case in read_cases(folder)}
    for row in read_csv(folder / "requests.csv", ["file", KEY, "draw"]):
        cells = {k: v for k, v in _cells(row).items() if k not in ("file", "draw")}
        yield Request(row["file"], cases[row[KEY]], cells, int(row["draw"]))


def _cells(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != KEY}


def write_request(folder: Path, request: Request, hu: Hu) -> None:
    """Write the volume of a request on the grid of its mask."""
    write_like(folder / request.file, hu, request.case.mask_file, np.int16)


@dataclass(frozen=True)
class Design:
    """Rows as numbers: 0 or 1 for each value of a category, standardised numbers.

    Attributes:
        columns: Names of the cells.
        categories: Values of each category by column.
        scales: Mean and SD of each number by column.
    """

    columns: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]
    scales: dict[str, tuple[float, float]]

    @classmethod
    def from_rows(cls, rows: Sequence[Row]) -> Design:
        """Learn values and scales from the training rows."""
        table = pd.DataFrame(list(rows))
        categories, scales = {}, {}
        for column in table.columns:
            numbers = pd.to_numeric(table[column], errors="coerce")
            if numbers.notna().all():
                scales[column] = (float(numbers.mean()), float(numbers.std()) or 1.0)
            else:
                categories[column] = tuple(sorted(set(table[column])))[1:]
        return cls(tuple(table.columns), categories, scales)

    def save(self, folder: Path) -> None:
        """Write it to a folder."""
        write_json(folder / DESIGN_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Design:
        """Read it from a folder."""
        values = read_json(folder / DESIGN_FILE)
        categories = {name: tuple(texts) for name, texts in values["categories"].items()}
        scales = {name: (mean, sd) for name, (mean, sd) in values["scales"].items()}
        return cls(tuple(values["columns"]), categories, scales)

    def __call__(self, row: Row) -> NDArray[np.float64]:
        """Return a row as `(F,)`."""
        values: list[float] = []
        for column in self.columns:
            if column in self.scales:
                mean, sd = self.scales[column]
                values.append((float(row[column]) - mean) / sd)
            else:
                values += [float(row[column] == value) for value in self.categories[column]]
        return np.array(values)


Train = Callable[[Path, Path], Any]
Generate = Callable[[Path, Path, Path], Any]


def run_stage(
    argv: Sequence[str] | None, description: str, train: Train, generate: Generate
) -> None:
    """Run the stage that the benchmark asks for: `train TRAIN WORK`, `generate TEST WORK OUT`."""
    parser = argparse.ArgumentParser(description=description)
    stages = parser.add_subparsers(dest="stage", required=True)
    for stage, words in (("train", ("TRAIN", "WORK")), ("generate", ("TEST", "WORK", "VOLUMES"))):
        sub = stages.add_parser(stage)
        for word in words:
            sub.add_argument(word, type=Path)
    given = parser.parse_args(argv)
    if given.stage == "train":
        train(given.TRAIN, given.WORK)
    else:
        generate(given.TEST, given.WORK, given.VOLUMES)
