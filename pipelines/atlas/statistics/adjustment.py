"""Adjustment sets of an attribute, from the roles of the columns.

The roles stand for a graph (Pearl 2009): demographics and acquisition come before exposures,
exposures before the diagnosis, this before mediators and lung volume, these before the picture, and
outcomes after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.atlas.statistics.contrasts import AtlasAttribute

TOTAL = "total"
DIRECT = "direct"
VOLUME = "log lung volume"
# The primary estimate is the first of these that the cases suffice for.
ADJUSTMENT_ORDER = (DIRECT, "direct: diagnosis, volume", "direct: volume", TOTAL)
EARLIER_ROLES = ("demographic", "acquisition")  # columns of these come before the exposures
BETWEEN_ROLES = ("exposure", "mediator")
ADJUSTMENT_COLUMNS = ("column", "other", "role", "place", "total", "direct", "why")


@dataclass(frozen=True)
class Adjustment:
    """A set of covariates.

    Attributes:
        name: Its name in real.csv: total, direct, or a part of direct.
        covariates: Columns adjusted for.
        volume: Whether the logarithm of the lung volume is adjusted for, too.
    """

    name: str
    covariates: tuple[str, ...]
    volume: bool = False

    @property
    def effect(self) -> str:
        """The effect that is left: total or direct."""
        return TOTAL if self.name == TOTAL else DIRECT


@dataclass(frozen=True)
class Roles:
    """The columns that a regression may adjust for.

    Attributes:
        attributes: All columns that can be studied or adjusted for.
        dependants: Columns that depend on another one; they are never adjusted for.
        diagnosis: The column of the diagnosis.
    """

    attributes: Mapping[str, AtlasAttribute]
    dependants: frozenset[str]
    diagnosis: str

    def total(self, column: str) -> tuple[str, ...]:
        """Return the covariates of an attribute's total effect: what comes before it.

        Exposures come before the diagnosis and the mediators, so that they are common causes of
        these and of the picture. The order of other exposures is not known.
        """
        role = self.attributes[column].role
        if role == "mediator":
            return self._covariates(column, (*EARLIER_ROLES, "exposure"))
        if role == "exposure" and column == self.diagnosis:
            return self._covariates(column, (*EARLIER_ROLES, "exposure"))
        return self._covariates(column, EARLIER_ROLES)

    def direct(self, column: str) -> tuple[str, ...]:
        """Return the covariates of an attribute's direct effect, without the lung volume."""
        return self._covariates(column, (*EARLIER_ROLES, *BETWEEN_ROLES))

    def adjustments(self, column: str) -> list[Adjustment]:
        """Return the sets of covariates for an attribute, the leanest first.

        They never contain outcomes or dependants of other columns. Both are caused by what is
        studied or by the picture, and adjusting for them would make associations (colliders).
        """
        total = self.total(column)
        sets = [Adjustment(TOTAL, total), Adjustment("direct: volume", total, True)]
        diagnosis = self.attributes.get(self.diagnosis)
        if self.diagnosis != column and diagnosis is not None and diagnosis.role in BETWEEN_ROLES:
            covariates = tuple(dict.fromkeys([*total, self.diagnosis]))
            sets.append(Adjustment("direct: diagnosis, volume", covariates, True))
        direct = self.direct(column)
        return [
            *sets,
            Adjustment("direct: other columns", direct),
            Adjustment(DIRECT, direct, True),
        ]

    def _covariates(self, column: str, roles: tuple[str, ...]) -> tuple[str, ...]:
        names = []
        for name, attribute in self.attributes.items():
            if attribute.role in roles and name != column and name not in self.dependants:
                names.append(name)
        return tuple(names)

    def rows(self, column: str, not_imputed: Mapping[str, float]) -> list[dict[str, Any]]:
        """Return the rows of adjustment.csv: each other column, and its part in the regressions.

        Args:
            column: The attribute.
            not_imputed: Share of unknown cells by column with too few known ones to adjust for.
        """
        total, direct = self.total(column), self.direct(column)
        # Nothing lies between the picture and an outcome: all other columns come before both.
        between = "before" if self.attributes[column].role == "outcome" else "between"
        rows = []
        for name, attribute in self.attributes.items():
            if name == column:
                continue
            place, why = "before", ""
            if name in self.dependants:
                place, why = "after", "depends on another column"
            elif name not in direct:
                place, why = "after", f"{attribute.role}: a common effect, not a common cause"
            elif name not in total:
                place = between
            is_used = name not in not_imputed
            if place != "after" and not is_used:
                why = f"not known in {not_imputed[name]:.0%} of the scans"
            rows.append(
                {
                    "column": column,
                    "other": name,
                    "role": attribute.role,
                    "place": place,
                    "total": "yes" if name in total and is_used else "no",
                    "direct": "yes" if name in direct and is_used else "no",
                    "why": why,
                }
            )
        volume = {"role": "mask", "place": between, "total": "no", "direct": "yes", "why": ""}
        return [*rows, {"column": column, "other": VOLUME, **volume}]
