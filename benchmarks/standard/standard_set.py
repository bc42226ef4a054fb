"""The standard set: what a generator is given, and the volumes that it is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from benchmarks.kinds import anatomy, make_cohort
from benchmarks.report.kinds_measure import Hu
from data.cohort import IMAGES, MASKS, SPLITS_FILE
from data.geometry import grids_match
from data.phantom.cohort import RANGE_HU
from data.phantom.kinds.cohort import TABLE_FILE, KindsCohort
from data.phantom.rows import KEY, Row
from data.volumes import load_volume
from options.benchmarks import common
from options.benchmarks.effects import KindsBenchmarkOptions
from util.cli import UserError
from util.files import json_digest, write_frame, write_json

VERSION = 1  # raise it whenever the set or a score changes: scores of two versions do not compare
SEED = 2001
REQUESTS = "requests.csv"
SET_FILE = "set.json"
DRAWS = 2  # noise draws of every request
# Groups of planted columns (see data/phantom/kinds/columns.py) in drawn and in scanned chests.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "phantom": common.GROUPS,
    "real": ("texture", "sparse"),
}
MAX_ABSOLUTE_HU = 5000.0  # beyond it, values are not HU


@dataclass(frozen=True)
class StandardSet:
    """One cohort of the benchmark.

    Attributes:
        name: Group and anatomy, such as "sparse_phantom".
        folder: Folder of the set below OUT.
        cohort: The cohort with its truth, which a generator does not see.
    """

    name: str
    folder: Path
    cohort: KindsCohort

    @classmethod
    def make(cls, out: Path, group: str, chests: tuple[str, ...], tiny: bool) -> StandardSet:
        """Make a cohort and what a generator is given of it, unless they are there.

        Args:
            out: Folder of the benchmark.
            group: Name of the planted columns.
            chests: Folders of scanned chests; empty for phantoms.
            tiny: A cohort of seconds, for trials.
        """
        sizes: dict[str, Any] = {"cases": 96, "test_cases": 12, "size": (48, 48, 32)}
        if tiny:
            sizes = {"cases": 10, "test_cases": 2, "size": (24, 24, 16), "spacing": 12.0}
        options = KindsBenchmarkOptions(OUT=str(out / "truth"), chests=chests, **sizes)
        name = f"{group}_{anatomy(options)}"
        made = cls(name, out / name, make_cohort(options, group, SEED))
        made.write_given()
        return made

    @property
    def train(self) -> Path:
        """Folder given for training: img/, gtlung/, clinical.csv, splits.json, set.json."""
        return self.folder / "given" / "train"

    @property
    def test(self) -> Path:
        """Folder given for generation: gtlung/, clinical.csv, requests.csv, set.json."""
        return self.folder / "given" / "test"

    @property
    def digest(self) -> str:
        """Digest of rows, seeds and splits."""
        cohort = self.cohort
        return json_digest([VERSION, cohort.rows, cohort.seeds, cohort.splits])[:12]

    @cached_property
    def requests(self) -> pd.DataFrame:
        """The volumes asked for: file, File Name, draw, and the cells of the row."""
        rows = []
        for case in self.cohort.splits["test"]:
            for number, row in enumerate(self._rows(case)):
                for draw in range(DRAWS):
                    file = f"{case}_row{number:02d}_draw{draw}.nii.gz"
                    rows.append({"file": file, KEY: case, "draw": str(draw), **_cells(row)})
        return pd.DataFrame(rows)

    def _rows(self, case: str) -> list[Row]:
        """Return the row of a case, and those of both ends of every contrast, each once."""
        row = self.cohort.rows[case]
        rows = [row]
        for contrast in self.cohort.columns.all_contrasts:
            for value in (contrast.start, contrast.end):
                changed = {**row, **contrast.setting, contrast.column: value}
                if changed not in rows:
                    rows.append(changed)
        return rows

    def write_given(self) -> None:
        """Write the two folders that a generator is given; the truth is in neither."""
        cohort = self.cohort
        if (self.test / SET_FILE).is_file():
            return
        table = pd.DataFrame(list(cohort.rows.values()))
        for split, folder in (("train", self.train), ("test", self.test)):
            shutil.rmtree(folder, ignore_errors=True)
            cases = list(cohort.splits[split])
            for part in (IMAGES, MASKS) if split == "train" else (MASKS,):
                (folder / part).mkdir(parents=True)
                for case in cases:
                    shutil.copy(cohort.root / part / f"{case}.nii.gz", folder / part)
            write_frame(folder / TABLE_FILE, table[table[KEY].isin(cases)])
            write_json(folder / SPLITS_FILE, {split: cases})
        write_frame(self.test / REQUESTS, self.requests)
        facts = {
            "version": VERSION,
            "set": self.name,
            "digest": self.digest,
            "labels": {"left lung": 1, "right lung": 2, "airway": 3},
            # Otherwise nothing outside the lungs depends on the row.
            "effects_outside_lungs": cohort.group == "fat",
        }
        for folder in (self.train, self.test):
            write_json(folder / SET_FILE, facts)

    def missing(self, folder: Path) -> list[str]:
        """Return the requested files that a folder lacks."""
        return [name for name in self.requests["file"] if not (folder / name).is_file()]

    def reader(self, folder: Path) -> VolumeReader:
        """Return a reader of the volumes in a folder."""
        files = {}
        columns = [c for c in self.requests.columns if c not in ("file", KEY, "draw")]
        for record in self.requests.to_dict("records"):
            key = (record[KEY], int(record["draw"]), tuple(record[c] for c in columns))
            files[key] = folder / record["file"]
        return VolumeReader(self.cohort, files, tuple(columns))


def _cells(row: Row) -> dict[str, str]:
    return {name: value for name, value in row.items() if name != KEY}


@dataclass(frozen=True)
class VolumeReader:
    """Volumes of a generator by case, row and draw, as the measurements take them."""

    cohort: KindsCohort
    files: Mapping[tuple[str, int, tuple[str, ...]], Path]
    columns: tuple[str, ...]

    def __call__(self, case: str, row: Row, draw: int) -> Hu:
        """Return a volume in HU on the grid of the case's mask.

        Raises:
            UserError: The file is not there, is not on the grid, or does not hold HU.
        """
        path = self.files[case, draw, tuple(row[name] for name in self.columns)]
        mask = self.cohort.root / MASKS / f"{case}.nii.gz"
        return read_generated(path, mask)

    def own_volumes(self) -> Iterator[tuple[str, Hu]]:
        """Yield every test case with the volume of its own row, first draw."""
        for case in self.cohort.splits["test"]:
            yield case, self(case, self.cohort.rows[case], 0)


def read_generated(path: Path, mask: Path) -> Hu:
    """Read a volume of a generator and check it; see `VolumeReader`."""
    if not path.is_file():
        raise UserError(f"{path} is not there; every file of {REQUESTS} must be written.")
    volume = load_volume(path)
    grid = nib.as_closest_canonical(nib.load(mask))
    if volume.shape != grid.shape or not grids_match(volume.shape, volume.affine, grid.affine):
        raise UserError(
            f"{path} is not on the grid of {mask} (shape {volume.shape} against {grid.shape}, or "
            "another affine). Write volumes with the mask's shape and affine."
        )
    hu = volume.array.astype(np.float32)
    if not np.isfinite(hu).all() or np.abs(hu).max() > MAX_ABSOLUTE_HU:
        raise UserError(f"{path} holds values that are not finite or not HU.")
    return np.clip(hu, *RANGE_HU)
