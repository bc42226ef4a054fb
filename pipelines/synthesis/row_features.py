"""Clinical rows as numbers that a regression takes: standardised measurements, and categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data.text.prompts import Row, Template
from data.text.values import parse_number

MIN_NUMBERS = 5  # distinct numbers, fewer are categories
MAX_CATEGORIES = 20
MIN_CASES = 3  # with a category, or it has no column of its own


@dataclass(frozen=True)
class NumberFeature:
    """A measurement with its distribution in the training rows."""

    column: str
    mean: float
    sd: float
    low: float
    high: float

    def encode(self, value: str) -> list[float]:
        """Return the standardised number, at most as extreme as in training; 0 where unknown."""
        number = parse_number(value)
        if number is None:
            return [0.0]
        return [(float(np.clip(number, self.low, self.high)) - self.mean) / self.sd]


@dataclass(frozen=True)
class CategoryFeature:
    """A category with the share of each of its frequent values in the training rows."""

    column: str
    shares: Mapping[str, float]

    def encode(self, value: str) -> list[float]:
        """Return one number per value, 0 for the average patient and where it is not known."""
        if not value:
            return [0.0] * len(self.shares)
        return [float(value == name) - share for name, share in self.shares.items()]


@dataclass(frozen=True)
class RowFeatures:
    """Encoding of rows.

    Attributes:
        template: How values are read.
        features: The encoded columns.
    """

    template: Template
    features: tuple[NumberFeature | CategoryFeature, ...] = field(default=())

    @classmethod
    def from_rows(cls, rows: Sequence[Row], template: Template) -> RowFeatures:
        """Learn the encoding from training rows; columns that do not vary are left out."""
        features: list[NumberFeature | CategoryFeature] = []
        for column in template.attributes(rows[0] if rows else ()):
            known = [value for row in rows if (value := template.format_value(row, column))]
            numbers = [number for value in known if (number := parse_number(value)) is not None]
            if len(numbers) == len(known) and len(set(numbers)) >= MIN_NUMBERS:
                mean, sd = float(np.mean(numbers)), float(np.std(numbers))
                features.append(NumberFeature(column, mean, sd, min(numbers), max(numbers)))
                continue
            counts = {value: known.count(value) for value in sorted(set(known))}
            frequent = {v: n / len(known) for v, n in counts.items() if n >= MIN_CASES}
            if len(counts) > 1 and 0 < len(frequent) <= MAX_CATEGORIES:
                features.append(CategoryFeature(column, frequent))
        return cls(template, tuple(features))

    @property
    def columns(self) -> list[str]:
        """The encoded columns."""
        return [feature.column for feature in self.features]

    def encode(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """Return `(N, F)` the rows as numbers."""
        encoded = []
        for row in rows:
            numbers: list[float] = []
            for feature in self.features:
                numbers += feature.encode(self.template.format_value(row, feature.column))
            encoded.append(numbers)
        return np.array(encoded, float).reshape(len(rows), -1)

    def out_of_range(self, rows: Sequence[Row]) -> dict[str, str]:
        """Return the range of training of every measurement that some row exceeds, by column."""
        ranges = {}
        for feature in self.features:
            if not isinstance(feature, NumberFeature):
                continue
            values = [parse_number(self.template.format_value(row, feature.column)) for row in rows]
            numbers = [value for value in values if value is not None]
            if numbers and (min(numbers) < feature.low or max(numbers) > feature.high):
                ranges[feature.column] = f"{feature.low:g} to {feature.high:g}"
        return ranges
