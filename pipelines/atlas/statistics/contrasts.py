"""Attributes and the contrasts between their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data.text.free_text import TextEdit
from util.cli import safe_name, unique_names

Kind = Literal["category", "number"]
WORDING = "wording"  # role of words that texts hold, which are written from the columns
LATER_ROLES = ("outcome", "mediator", WORDING)  # come after an exposure


@dataclass(frozen=True)
class AtlasAttribute:
    """A column, or words of the texts, that can be studied.

    Attributes:
        column: Its name.
        role: Its role in the template; `WORDING` for words.
        kind: Category or number.
        values: Values as the text shows them: the reference first, or five quantiles.
        counts: Training cases by value.
        unit: Unit of a number.
        file_name: Name of the column in names of files and contrasts; "" for its safe name.
        edit: What replaces the words, for words of the texts.
        columns: Columns whose phrases hold the words; empty for a column itself.
    """

    column: str
    role: str
    kind: Kind
    values: tuple[str, ...]
    counts: Mapping[str, int]
    unit: str = ""
    file_name: str = ""
    edit: TextEdit | None = None
    columns: frozenset[str] = frozenset()

    def is_permuted(self, permuted: frozenset[str]) -> bool:
        """Return whether it was shuffled in a training with these columns permuted."""
        return (self.columns or {self.column}) <= permuted

    @property
    def name(self) -> str:
        """The column in names of files and contrasts."""
        return self.file_name or safe_name(self.column)

    @property
    def reference(self) -> str:
        """The value that the others are compared with."""
        return self.values[0]


@dataclass(frozen=True)
class Contrast:
    """A change of one attribute.

    Attributes:
        id: Its name in all tables.
        column: The attribute.
        role: Role of the attribute.
        kind: Category, quantiles, or slope (HU per unit).
        start: The value compared with; "" for a slope.
        end: The other value; "" for a slope.
        unit: Unit of a number.
        label: A text for readers.
        weights: Weight of each value; the weighted sum of the generated volumes is the effect.
    """

    id: str
    column: str
    role: str
    kind: Literal["category", "quantiles", "slope"]
    start: str
    end: str
    unit: str
    label: str
    weights: Mapping[str, float]


def contrasts_of(attribute: AtlasAttribute) -> list[Contrast]:
    """Return each value against the reference, or the outer quantiles and the slope of a number."""
    if attribute.kind == "category":
        start = attribute.reference
        contrasts = []
        for end in attribute.values[1:]:
            label = f"{attribute.column} {end} against {start}"
            contrasts.append(_pair(attribute, start, end, label))
        return contrasts
    first, last = attribute.values[0], attribute.values[-1]
    unit = f" {attribute.unit}" if attribute.unit else ""
    label = f"{attribute.column} {last} against {first}{unit}"
    return [_pair(attribute, first, last, label), _slope(attribute)]


def _pair(attribute: AtlasAttribute, start: str, end: str, label: str) -> Contrast:
    names = unique_names(attribute.values)
    return Contrast(
        f"{attribute.name}={names[start]}_to_{names[end]}",
        attribute.column,
        attribute.role,
        "category" if attribute.kind == "category" else "quantiles",
        start,
        end,
        attribute.unit,
        label,
        {start: -1.0, end: 1.0},
    )


def _slope(attribute: AtlasAttribute) -> Contrast:
    """Return the least-squares slope through all values of a number."""
    x = np.array([float(value) for value in attribute.values])
    weights = (x - x.mean()) / np.square(x - x.mean()).sum()
    unit = f" ({attribute.unit})" if attribute.unit else ""
    return Contrast(
        f"{attribute.name}=per_unit",
        attribute.column,
        attribute.role,
        "slope",
        "",
        "",
        attribute.unit,
        f"{attribute.column}, per unit{unit}",
        dict(zip(attribute.values, map(float, weights), strict=True)),
    )
