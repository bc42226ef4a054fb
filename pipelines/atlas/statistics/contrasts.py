"""Attributes and the contrasts between their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from util.cli import safe_name

Kind = Literal["category", "number"]


@dataclass(frozen=True)
class AtlasAttribute:
    """A column that can be studied: its `values` as the text says them, the reference first, or
    five quantiles.
    """

    column: str
    role: str
    kind: Kind
    values: tuple[str, ...]
    counts: Mapping[str, int]
    unit: str = ""

    @property
    def reference(self) -> str:
        return self.values[0]


@dataclass(frozen=True)
class Contrast:
    """A change: `weights` of the attribute's values, whose sum over generated volumes is the
    difference in HU.

    `id` is its name in all tables; `start` and `end` are empty for a slope, which is HU per `unit`.
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
    """Each value against the reference; for numbers the outer quantiles, and the slope through all
    of them.
    """
    a, name = attribute, safe_name(attribute.column)

    def pair(kind: Literal["category", "quantiles"], start: str, end: str, label: str) -> Contrast:
        made = f"{name}={safe_name(start)}_to_{safe_name(end)}"
        return Contrast(
            made, a.column, a.role, kind, start, end, a.unit, label, {start: -1.0, end: 1.0}
        )

    if a.kind == "category":
        start = a.reference
        return [
            pair("category", start, end, f"{a.column} {end} against {start}")
            for end in a.values[1:]
        ]
    unit = f" {a.unit}" if a.unit else ""
    first, last = a.values[0], a.values[-1]
    x = np.array([float(v) for v in a.values])
    slope = (x - x.mean()) / np.square(x - x.mean()).sum()
    label = f"{a.column}, per unit{f' ({a.unit})' if a.unit else ''}"
    per = Contrast(
        f"{name}=per_unit",
        a.column,
        a.role,
        "slope",
        "",
        "",
        a.unit,
        label,
        dict(zip(a.values, map(float, slope), strict=True)),
    )
    return [pair("quantiles", first, last, f"{a.column} {last} against {first}{unit}"), per]
