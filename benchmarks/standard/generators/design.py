"""Rows as numbers, for generators that read no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.standard.generators.cases import Row, StandardCase
from util.files import read_json, write_json

DESIGN_FILE = "design.json"


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
    def from_cases(cls, cases: Sequence[StandardCase]) -> Design:
        """Learn values and scales from the rows of the training cases."""
        table = pd.DataFrame([case.row for case in cases])
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
