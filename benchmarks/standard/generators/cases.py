"""What the standard benchmark gives to a generator: cases and requests, read and written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.phantom.kinds.chest import Chest
from data.volumes import load_volume, write_like
from util.files import read_csv, read_json

KEY = "File Name"
Hu = NDArray[np.float32]
Row = dict[str, str]


@dataclass(frozen=True)
class StandardCase:
    """A case of the benchmark's training or test folder.

    Attributes:
        name: Its id.
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
        labels = mask.array.astype(np.uint8)
        return Chest.from_scan(np.zeros(labels.shape, np.float32), labels, mask.spacing)


def read_cases(folder: Path) -> list[StandardCase]:
    """Return the cases of a folder in the order of its table."""
    rows = read_csv(folder / "clinical.csv", [KEY])
    return [StandardCase(row[KEY], folder, _cells(row)) for row in rows]


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
    case: StandardCase
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
