"""Counterfactuals of a method, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.evaluation.counterfactuals.sets import Counterfactual
from pipelines.evaluation.measurements import VolumeMeasurements


@dataclass(frozen=True)
class MeasuredChange:
    """One counterfactual, measured.

    Attributes:
        counterfactual: The volume.
        value: Its new value as the text shows it.
        row: The changed row, "" where a value is not known or contradicted.
        change_hu: Mean absolute change in HU by region, against the factual volume.
    """

    counterfactual: Counterfactual
    value: str
    row: Mapping[str, str]
    volume: VolumeMeasurements
    change_hu: Mapping[str, float]

    @property
    def case(self) -> str:
        """The case."""
        return self.counterfactual.case


@dataclass(frozen=True)
class MeasuredMethod:
    """The measured counterfactuals of one method.

    Attributes:
        name: Name of the method.
        factual: Measurements of the unchanged volume by case.
        rows: Formatted factual row by case.
        changes: The counterfactuals by changed attribute.
        composition_hu: Mean absolute difference of the null intervention from the scan, in HU, by
            case and region.
        reported: See `CounterfactualSet.reported`.
        edits_scans: See `CounterfactualSet.edits_scans`.
        is_reference: See `CounterfactualSet.is_reference`.
    """

    name: str
    factual: Mapping[str, VolumeMeasurements]
    rows: Mapping[str, Mapping[str, str]]
    changes: Mapping[str, Sequence[MeasuredChange]]
    composition_hu: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reported: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    edits_scans: bool = False
    is_reference: bool = False
