"""Regressions of regional outcomes on an attribute in the real scans, with robust errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from pipelines.atlas.statistics.adjustment import (
    ADJUSTMENT_ORDER,
    DIRECT,
    TOTAL,
    VOLUME,
    Adjustment,
    Roles,
)
from pipelines.atlas.statistics.contrasts import AtlasAttribute, Contrast
from pipelines.atlas.statistics.imputation import (
    MIN_LEVEL_CASES,
    CompletedTables,
    PooledEstimate,
    impute_tables,
    is_number_column,
    pool_levels,
)
from pipelines.atlas.statistics.least_squares import Floats, RobustFit, fit_outcomes
from pipelines.atlas.statistics.outcomes import MEAN

MIN_UNIQUE_VARIANCE = 1e-3  # share of an attribute's variance that covariates do not explain
MAIN_PLACE = (MEAN, "lungs")  # where every adjustment is estimated
INSEPARABLE = "cannot be told apart from the columns adjusted for"

REAL_COLUMNS = (
    "contrast",
    "outcome",
    "region",
    "effect",
    "adjustment",
    "primary",
    "adjusted_for",
    "cases",
    "imputed_cases",
    "real",
    "se",
    "low",
    "high",
    "p",
    "vif",
    "reason",
)


@dataclass(frozen=True)
class RealScans:
    """Outcomes of real scans and their rows, indexed by case.

    Attributes:
        outcomes: One column per (outcome, region), each in the unit of its outcome.
        table: Columns of the clinical table as texts; "" where a value is not known.
        volume: Lung volume, ml.
        patient: The patient of each case.
        dependants: Columns that depend on another one. They are never adjusted for, and their
            empty cells may be meant (pack-years of a never smoker), so they are not imputed.
    """

    outcomes: pd.DataFrame
    table: pd.DataFrame
    volume: pd.Series
    patient: pd.Series
    dependants: frozenset[str] = frozenset()

    def of_cases(self, cases: Any, table: pd.DataFrame | None = None) -> RealScans:
        """Return some of the scans.

        Args:
            cases: Their index, or a mask over all cases.
            table: Another table of theirs; by default their own.
        """
        return replace(
            self,
            outcomes=self.outcomes.loc[cases],
            table=self.table.loc[cases] if table is None else table,
            volume=self.volume.loc[cases],
            patient=self.patient.loc[cases],
        )

    @property
    def places(self) -> list[tuple[str, str]]:
        """Every (outcome, region) that was measured."""
        outcomes, regions = (self.outcomes.columns.get_level_values(level) for level in (0, 1))
        return list(zip(map(str, outcomes), map(str, regions), strict=True))

    @cached_property
    def log_volume(self) -> pd.Series:
        """The logarithm of the lung volume."""
        return np.log(self.volume.clip(lower=1e-6))

    @cached_property
    def completed(self) -> CompletedTables:
        """The table with its unknown cells imputed."""
        columns = [column for column in self.table if column not in self.dependants]
        measured = np.column_stack([self.outcomes.to_numpy(float), self.log_volume])
        return impute_tables(self.table[columns], pd.DataFrame(measured))

    def covariates_known(self, covariates: Sequence[str]) -> list[str]:
        """Return the covariates that can be adjusted for: known, or imputed where they are not."""
        return [column for column in covariates if column not in self.completed.not_imputed]


def estimate_contrasts(
    scans: RealScans, contrasts: Sequence[Contrast], roles: Roles
) -> pd.DataFrame:
    """Return real.csv: every contrast, outcome and region with every set of covariates.

    Cases whose value of the attribute is not known are left out; unknown covariates are imputed.
    A row without an estimate holds the reason.
    """
    rows: list[dict[str, Any]] = []
    for column in dict.fromkeys(contrast.column for contrast in contrasts):
        attribute = roles.attributes[column]
        of_column = [contrast for contrast in contrasts if contrast.column == column]
        tables = AttributeTables.from_scans(scans, attribute)
        adjustments = {adjustment.name: adjustment for adjustment in roles.adjustments(column)}
        direct = _adjusted_rows(tables, adjustments.pop(DIRECT), of_column, scans.places)
        rows += _adjusted_rows(tables, adjustments.pop(TOTAL), of_column, scans.places)
        # Parts of the direct set stand in for it where the cases do not suffice.
        is_feasible = all(_is_feasible(row) for row in direct if place_of(row) == MAIN_PLACE)
        places = [MAIN_PLACE] if is_feasible and MAIN_PLACE in scans.places else scans.places
        for adjustment in adjustments.values():
            rows += _adjusted_rows(tables, adjustment, of_column, places)
        rows += direct
    return _with_primary(pd.DataFrame(rows, columns=list(REAL_COLUMNS)))


def place_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the outcome and the region of a row."""
    return row["outcome"], row["region"]


def _is_feasible(row: Mapping[str, Any]) -> bool:
    """Return whether a row has an estimate.

    An adjustment from which the attribute cannot be told apart counts too, because a thinner one
    would attribute effects of other columns to it.
    """
    return "reason" not in row or row["reason"] == INSEPARABLE


def _adjusted_rows(
    tables: AttributeTables,
    adjustment: Adjustment,
    contrasts: Sequence[Contrast],
    places: Sequence[tuple[str, str]],
) -> list[dict[str, Any]]:
    """Return the rows of real.csv of one set of covariates."""
    scans = tables.scans
    covariates = scans.covariates_known(adjustment.covariates)
    designs = tables.designs(covariates, adjustment.volume)
    common = {
        "effect": adjustment.effect,
        "adjustment": adjustment.name,
        "adjusted_for": " | ".join([*covariates, *([VOLUME] if adjustment.volume else [])]),
        "imputed_cases": designs.imputed_cases,
    }
    rows = []
    every = designs.fit(scans.outcomes[list(places)], scans.patient)
    for (outcome, region), fits in zip(places, every, strict=True):
        place = {"outcome": outcome, "region": region}
        for contrast in contrasts:
            estimate = designs.estimate(fits, contrast)
            rows.append({"contrast": contrast.id, **place, **estimate, **common})
    return rows


def _with_primary(real: pd.DataFrame) -> pd.DataFrame:
    """Mark each contrast's primary estimate: the richest adjustment that the cases suffice for."""
    real["primary"] = "no"
    is_feasible = real["reason"].isna() | (real["reason"] == INSEPARABLE)
    for _, part in real.groupby("contrast", sort=False):
        feasible = set(part.loc[is_feasible[part.index], "adjustment"])
        chosen = next((name for name in ADJUSTMENT_ORDER if name in feasible), ADJUSTMENT_ORDER[0])
        real.loc[part.index[part["adjustment"] == chosen], "primary"] = "yes"
    return real


@dataclass(frozen=True)
class AttributeTables:
    """The cases whose value of an attribute is known, one table per imputation.

    Attributes:
        terms: The attribute's terms by case; rare values of a category are left out.
        blocks: Columns of each covariate, by the number of the table and the covariate.
    """

    terms: pd.DataFrame
    attribute: AtlasAttribute
    scans: RealScans
    blocks: dict[tuple[int, str], Floats] = field(default_factory=dict)

    @classmethod
    def from_scans(cls, scans: RealScans, attribute: AtlasAttribute) -> AttributeTables:
        """Choose the cases."""
        values = scans.table[attribute.column]
        values = values[values != ""]
        if attribute.kind == "category":
            counts = values.value_counts()
            values = values[values.isin(counts.index[counts >= MIN_LEVEL_CASES])]
        return cls(_attribute_terms(values, attribute), attribute, scans)

    def designs(self, covariates: Sequence[str], volume: bool = False) -> Designs:
        """Return the design matrices with these covariates, which are known or imputed."""
        designs = []
        for number in range(len(self.scans.completed.of_columns(covariates))):
            blocks = [self.block(number, covariate) for covariate in covariates]
            if volume:
                logged = self.scans.log_volume.loc[self.terms.index]
                blocks.append((logged - logged.mean()).to_numpy(float)[:, None])
            designs.append(Design.from_blocks(self.terms, blocks, self.attribute))
        rows = self.scans.table.loc[self.terms.index, list(covariates)]
        return Designs(designs, int((rows == "").any(axis=1).sum()))

    def block(self, number: int, covariate: str) -> Floats:
        """Return the columns of a covariate in one of the tables; all hold the known ones."""
        key = (number if covariate in self.scans.completed.imputed else 0, covariate)
        if key not in self.blocks:
            table = self.scans.completed.tables[number]
            self.blocks[key] = covariate_columns(table.loc[self.terms.index, covariate])
        return self.blocks[key]


@dataclass(frozen=True)
class Designs:
    """The design matrices of one attribute and set of covariates, one per completed table."""

    designs: Sequence[Design]
    imputed_cases: int

    def fit(self, outcomes: pd.DataFrame, patient: pd.Series) -> list[tuple[RobustFit | None, ...]]:
        """Return the attribute's terms in each table, for each outcome; see `Design.fit`."""
        by_table = [design.fit(outcomes, patient) for design in self.designs]
        return list(zip(*by_table, strict=True))

    def estimate(self, fits: Sequence[RobustFit | None], contrast: Contrast) -> dict[str, Any]:
        """Return estimate, interval and p value of a contrast, or the reason why there is none."""
        estimates = []
        for design, fit in zip(self.designs, fits, strict=True):
            estimate = design.estimate(fit, contrast)
            if "reason" in estimate:
                return estimate
            estimates.append(estimate)
        pooled = PooledEstimate.from_tables(
            [estimate["value"] for estimate in estimates],
            [estimate["se"] for estimate in estimates],
            estimates[0]["df"],
        )
        low, high = pooled.interval()
        vif = float(np.mean([estimate["vif"] for estimate in estimates]))
        return {
            "cases": estimates[0]["cases"],
            "vif": round(vif, 2),
            "real": pooled.value,
            "se": pooled.se,
            "low": low,
            "high": high,
            "p": pooled.p,
        }


@dataclass(frozen=True)
class Design:
    """A design matrix.

    Attributes:
        x: `(cases, columns)`: the constant, the attribute's terms, then the covariates' columns.
        terms: The attribute's terms: one per value, or its column for a number.
    """

    x: Floats
    cases: pd.Index
    terms: tuple[str, ...]
    attribute: AtlasAttribute

    @classmethod
    def from_blocks(
        cls, terms: pd.DataFrame, blocks: Sequence[Floats], attribute: AtlasAttribute
    ) -> Design:
        """Join the terms of an attribute and the columns of its covariates; constant ones go."""
        columns = [np.ones((len(terms), 1)), terms.to_numpy(float)]
        for block in blocks:
            columns.append(block[:, np.ptp(block, axis=0) > 0] if len(block) else block)
        return cls(np.hstack(columns), terms.index, tuple(map(str, terms.columns)), attribute)

    @property
    def own_terms(self) -> slice:
        """Columns of the attribute's terms."""
        return slice(1, 1 + len(self.terms))

    def fit(
        self, outcomes: pd.DataFrame, patient: pd.Series, terms: slice | None = None
    ) -> list[RobustFit | None]:
        """Regress outcomes, one column each; scans of one patient do not count twice.

        Args:
            patient: The patient of each case.
            terms: Columns of the design whose coefficients are wanted; by default the attribute's.

        Returns:
            See `fit_outcomes`.
        """
        measured = outcomes.reindex(self.cases).to_numpy(float)
        patients = pd.factorize(patient.loc[self.cases])[0]
        return fit_outcomes(self.x, measured, patients, self.own_terms if terms is None else terms)

    def estimate(self, fit: RobustFit | None, contrast: Contrast) -> dict[str, Any]:
        """Return value, standard error and degrees of freedom of a contrast, or a reason.

        Args:
            fit: The attribute's terms.
        """
        if fit is None:
            return {"cases": len(self.x), "reason": "too few cases for so many covariates"}
        is_category = self.attribute.kind == "category"
        name = contrast.end if is_category else self.attribute.column
        cases = {"cases": fit.cases}
        if name not in self.terms:
            rare = contrast.start if is_category and not self.terms else name
            return cases | {"reason": f"fewer than {MIN_LEVEL_CASES} cases have {rare}"}
        inflated = {**cases, "vif": round(fit.vif, 2) if np.isfinite(fit.vif) else None}
        if not fit.vif < 1 / MIN_UNIQUE_VARIANCE:
            return inflated | {"reason": INSEPARABLE}
        scale = 1.0
        if contrast.kind == "quantiles":
            scale = float(contrast.end) - float(contrast.start)
        index = self.terms.index(name)
        se = float(abs(scale) * fit.errors[index])
        if not (np.isfinite(se) and se > 0):
            return cases | {"reason": "the spread cannot be estimated"}
        value = float(scale * fit.values[index])
        return inflated | {"value": value, "se": se, "df": float(fit.df)}


def _attribute_terms(values: pd.Series, attribute: AtlasAttribute) -> pd.DataFrame:
    """Return a number as it is, or an indicator for each value of a category but the reference."""
    if attribute.kind == "number":
        return values.astype(float).to_frame(attribute.column)
    if attribute.reference not in set(values):
        return pd.DataFrame(index=values.index)
    return pd.get_dummies(values).drop(columns=attribute.reference)


def covariate_columns(values: pd.Series) -> Floats:
    """Return a covariate, known in every case, as columns of a design `(cases, columns)`.

    They are the centred number, or an indicator of each level but the commonest; rare levels are
    pooled.
    """
    if values.empty:
        return np.empty((0, 0))
    if is_number_column(values):
        numbers = pd.to_numeric(values).to_numpy(float)
        return (numbers - numbers.mean())[:, None]
    codes, levels = pd.factorize(pool_levels(values), sort=True)
    indicators = (codes[:, None] == np.arange(len(levels))).astype(float)
    return np.delete(indicators, indicators.sum(0).argmax(), axis=1)
