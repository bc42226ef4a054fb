"""Rows of counterfactuals.csv: an axiom, measured for a method and an attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

CHANGED, OTHER = "changed attribute", "other attribute"
LUNGS, OUTSIDE = "lungs", "outside"
MEAN_CHANGE = "mean absolute change (HU)"
DIVERGENCE = "counterfactual divergence"
FID = "2.5D FID"
PREDICTION_SHIFT = "change of the prediction"


@dataclass(frozen=True, kw_only=True)
class AxiomRow:
    """One row of counterfactuals.csv.

    Attributes:
        method: Name of the method.
        column: The attribute that was changed; "" for measures of a change of nothing.
        axiom: effectiveness, composition, reversibility, minimality or realism.
        of: What is measured: the changed or another attribute, or a region.
        measure: The measure, with its unit.
        value: Mean over volumes.
        low: Lower end of the 95 % bootstrap interval over cases; `high` is its upper end.
        reference: The value to compare with.
        reference_is: What `reference` is.
        volumes: Number of volumes.
        better: high, low, or near (the reference).
        note: A remark for the reader.
    """

    method: str
    column: str
    axiom: str
    of: str
    measure: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    reference: float = float("nan")
    reference_is: str = ""
    volumes: int = 0
    better: str = "low"
    note: str = ""

    def row(self) -> dict[str, Any]:
        """Return the row by column of counterfactuals.csv."""
        return asdict(self)


COLUMNS = tuple(AxiomRow.__dataclass_fields__)


@dataclass(frozen=True)
class CounterfactualReport:
    """The measured axioms.

    Attributes:
        rows: Rows of counterfactuals.csv.
        left_out: What was not measured, with the reason.
    """

    rows: Sequence[AxiomRow]
    left_out: Sequence[str]

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame([row.row() for row in self.rows], columns=list(COLUMNS))
