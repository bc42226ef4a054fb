"""The counterfactuals to judge, with the rows of their cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data.text.prompts import Row, Template
from pipelines.evaluation.counterfactuals.sets import Counterfactual, CounterfactualSet


@dataclass(frozen=True)
class CounterfactualPlan:
    """The counterfactuals to judge, checked before anything is measured.

    Attributes:
        sets: The methods.
        template: How rows become text; None without a table.
        rows: Raw rows by case.
        formatted: The same as the text shows them, "" where not known or contradicted.
        columns: Columns that are read from volumes beside those that were changed.
    """

    sets: Sequence[CounterfactualSet]
    template: Template | None = None
    rows: Mapping[str, Row] = field(default_factory=dict)
    formatted: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    columns: Sequence[str] = ()

    @classmethod
    def from_table(
        cls,
        sets: Sequence[CounterfactualSet],
        template: Template | None,
        rows: Mapping[str, Row],
        columns: Sequence[str],
    ) -> CounterfactualPlan:
        """Read the rows of the real scans' table.

        Raises:
            UserError: A value is not a number where one is needed.
        """
        if template is None or not sets:
            return cls(sets)
        formatted = {
            case: _formatted(template, template.consistent(r).row) for case, r in rows.items()
        }
        return cls(sets, template, rows, formatted, columns)

    @property
    def changed_columns(self) -> list[str]:
        """The attributes that any method changed."""
        return list(dict.fromkeys(column for one in self.sets for column in one.columns))

    def changed_row(self, change: Counterfactual) -> tuple[dict[str, str], str]:
        """Return the formatted row after a change, and the new value as the text shows it."""
        raw = self.rows.get(change.case, {})
        if self.template is None or change.column not in raw:
            return {}, change.value
        row = self.template.change(dict(raw), change.column, change.value).row
        formatted = _formatted(self.template, row)
        return formatted, formatted.get(change.column, "") or change.value


def _formatted(template: Template, row: Row) -> dict[str, str]:
    """Return the values of a row as the text shows them."""
    return {column: template.format_value(row, column) for column in template.attributes(row)}
