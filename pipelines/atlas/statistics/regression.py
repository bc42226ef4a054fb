"""Regressions of regional outcomes on an attribute in the real scans, with robust errors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy import stats
from statsmodels.regression.linear_model import RegressionResults, RegressionResultsWrapper

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
from pipelines.atlas.statistics.outcomes import MEAN

Floats = NDArray[np.floating]

MIN_RESIDUAL_PATIENTS = 8  # patients beyond the number of terms
MIN_UNIQUE_VARIANCE = 1e-3  # share of an attribute's variance that covariates do not explain
ROUNDING_TOLERANCE = 1e-9  # a smaller share is rounding
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
    every = designs.estimate_terms(scans.outcomes[list(places)], scans.patient)
    for (outcome, region), terms in zip(places, every, strict=True):
        place = {"outcome": outcome, "region": region}
        for contrast in contrasts:
            estimate = designs.estimate(terms, contrast)
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
class TermEstimates:
    """The regression of one outcome, as far as an attribute's terms go.

    Attributes:
        cases: Cases with the outcome.
        values: Coefficient of each term.
        errors: Their robust standard errors; NaN where the spread cannot be estimated.
        df: Degrees of freedom of Student's t.
        vif: Variance inflation of the terms in these cases.
    """

    cases: int
    values: Floats
    errors: Floats
    df: float
    vif: float


@dataclass(frozen=True)
class Designs:
    """The design matrices of one attribute and set of covariates, one per completed table."""

    designs: Sequence[Design]
    imputed_cases: int

    def estimate_terms(
        self, outcomes: pd.DataFrame, patient: pd.Series
    ) -> list[tuple[TermEstimates | None, ...]]:
        """Return the terms in each table, for each column; see `Design.estimate_terms`."""
        by_table = [design.estimate_terms(outcomes, patient) for design in self.designs]
        return list(zip(*by_table, strict=True))

    def estimate(self, terms: Sequence[TermEstimates | None], contrast: Contrast) -> dict[str, Any]:
        """Return estimate, interval and p value of a contrast, or the reason why there is none."""
        estimates = []
        for design, of_table in zip(self.designs, terms, strict=True):
            estimate = design.estimate(of_table, contrast)
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

    def estimate_terms(
        self, outcomes: pd.DataFrame, patient: pd.Series
    ) -> list[TermEstimates | None]:
        """Regress many outcomes at once, with errors as `fit` has them.

        Returns:
            The attribute's terms for each column; None where patients are too few.
        """
        measured = outcomes.reindex(self.cases).to_numpy(float)
        groups = pd.factorize(patient.loc[self.cases])[0]
        found: list[TermEstimates | None] = [None] * measured.shape[1]
        patterns, pattern_of = np.unique(np.isfinite(measured), axis=1, return_inverse=True)
        for number, is_known in enumerate(patterns.T):
            columns = np.flatnonzero(pattern_of == number)
            estimates = self._estimate_known(is_known, measured[:, columns], groups)
            for column, estimate in zip(columns, estimates, strict=False):
                found[column] = estimate
        return found

    def _estimate_known(
        self, is_known: NDArray[np.bool_], measured: Floats, groups: NDArray[np.intp]
    ) -> list[TermEstimates]:
        """Regress outcomes that are known in the same cases; none where patients are too few."""
        x, y, groups = self.x[is_known], measured[is_known], groups[is_known]
        clusters, groups = np.unique(groups, return_inverse=True)
        rank = int(np.linalg.matrix_rank(x)) if len(x) else 0
        if not len(x) or len(clusters) - rank < MIN_RESIDUAL_PATIENTS:
            return []
        inverse = np.linalg.pinv(x)
        coefficients = inverse @ y
        residuals = y - x @ coefficients
        terms = slice(1, 1 + len(self.terms))
        if len(clusters) < len(x):
            changes = _jackknife_changes(x, terms, residuals, groups)
            variances = (len(clusters) - 1) / len(clusters) * np.square(changes).sum(0)
            df = len(clusters) - 1
        else:
            variances = _hc3_variances(x, inverse, terms, residuals)
            df = len(x) - rank
        vif = variance_inflation(x, range(1, 1 + len(self.terms))) if self.terms else 1.0
        errors = np.sqrt(variances)
        return [
            TermEstimates(len(x), value, error, df, vif)
            for value, error in zip(coefficients[terms].T, errors.T, strict=True)
        ]

    def fit(self, values: pd.Series, patient: pd.Series) -> Any:
        """Fit the regression, with HC3 errors, or a jackknife over patients with repeated scans.

        Returns:
            The results of statsmodels; None where patients are too few. Scans of one patient do
            not count twice.
        """
        measured = values.reindex(self.cases).to_numpy(float)
        is_known = np.isfinite(measured)
        y, x = measured[is_known], self.x[is_known]
        groups = patient.loc[self.cases[is_known]]
        if not len(y) or groups.nunique() - np.linalg.matrix_rank(x) < MIN_RESIDUAL_PATIENTS:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a leverage of one gives NaN, which is reported
            if groups.duplicated().any():
                return _with_jackknife_errors(sm.OLS(y, x).fit(), pd.factorize(groups)[0])
            return sm.OLS(y, x).fit(cov_type="HC3", use_t=True)

    def estimate(self, terms: TermEstimates | None, contrast: Contrast) -> dict[str, Any]:
        """Return value, standard error and degrees of freedom of a contrast, or a reason."""
        if terms is None:
            return {"cases": len(self.x), "reason": "too few cases for so many covariates"}
        is_category = self.attribute.kind == "category"
        name = contrast.end if is_category else self.attribute.column
        cases = {"cases": terms.cases}
        if name not in self.terms:
            rare = contrast.start if is_category and not self.terms else name
            return cases | {"reason": f"fewer than {MIN_LEVEL_CASES} cases have {rare}"}
        inflated = {**cases, "vif": round(terms.vif, 2) if np.isfinite(terms.vif) else None}
        if not terms.vif < 1 / MIN_UNIQUE_VARIANCE:
            return inflated | {"reason": INSEPARABLE}
        scale = 1.0
        if contrast.kind == "quantiles":
            scale = float(contrast.end) - float(contrast.start)
        index = self.terms.index(name)
        se = float(abs(scale) * terms.errors[index])
        if not (np.isfinite(se) and se > 0):
            return cases | {"reason": "the spread cannot be estimated"}
        value = float(scale * terms.values[index])
        return inflated | {"value": value, "se": se, "df": float(terms.df)}


def _hc3_variances(x: Floats, inverse: Floats, terms: slice, residuals: Floats) -> Floats:
    """Return the HC3 variances of coefficients `(coefficients, outcomes)`; see statsmodels.

    A case that is alone in one of the design's directions is fitted without a residual. Its weight
    in a coefficient must then be 0; else the coefficient rests on it alone, and its variance is
    NaN.

    Args:
        x: `(cases, columns)`.
        inverse: Its pseudo-inverse.
        terms: The coefficients that are wanted.
        residuals: `(cases, outcomes)`.
    """
    unexplained = 1 - np.einsum("np,pn->n", x, inverse)
    alone = unexplained < ROUNDING_TOLERANCE
    weights = inverse[terms]
    without_case = residuals[~alone] / unexplained[~alone, None]
    variances = np.square(weights[:, ~alone]) @ np.square(without_case)
    size = np.abs(weights).max(axis=1, keepdims=True)
    rests_on_it = (np.abs(weights[:, alone]) > ROUNDING_TOLERANCE * size).any(axis=1)
    variances[rests_on_it] = np.nan
    return variances


def _jackknife_changes(
    x: Floats, terms: slice, residuals: Floats, groups: NDArray[np.intp]
) -> Floats:
    """Return how coefficients change without each cluster in turn.

    Their squares give the errors CR3, which are HC3 for clusters (MacKinnon, Nielsen and Webb 2023,
    J. Econometrics 232). The usual clustered errors are too small with few or unequal clusters.

    Args:
        x: `(cases, columns)`.
        terms: The coefficients that are wanted.
        residuals: `(cases, outcomes)`.
        groups: Number of each case's cluster, 0 to G - 1.

    Returns:
        `(G, coefficients, outcomes)`; NaN for a term that rests on one cluster alone.
    """
    count = int(groups.max()) + 1
    gram = np.linalg.pinv(x.T @ x)
    inverse = np.linalg.pinv(x)[terms]
    changes = np.full((count, len(inverse), residuals.shape[1]), np.nan)
    for group in range(count):
        rows = groups == group
        leverage = x[rows] @ gram @ x[rows].T
        unexplained = np.eye(len(leverage)) - leverage
        if np.linalg.eigvalsh(unexplained)[0] > ROUNDING_TOLERANCE:
            changes[group] = inverse[:, rows] @ np.linalg.solve(unexplained, residuals[rows])
            continue
        rest = np.linalg.pinv(x[~rows])[terms]  # may not determine every term
        is_known = np.isclose(rest @ x[~rows], np.eye(x.shape[1])[terms], atol=1e-6).all(axis=1)
        changes[group] = np.where(is_known[:, None], -rest @ residuals[~rows], np.nan)
    return changes


def _with_jackknife_errors(fit: Any, groups: NDArray[np.intp]) -> Any:
    """Return a fit of statsmodels with the errors of `_jackknife_changes`.

    Args:
        fit: A fit of ordinary least squares.
        groups: Number of each row's cluster, 0 to G - 1.

    Returns:
        Results with Student's t at G - 1 degrees of freedom.
    """
    x = fit.model.exog
    residuals = np.asarray(fit.resid)[:, None]
    changes = _jackknife_changes(x, slice(None), residuals, groups)[..., 0]
    count = len(changes)
    covariance = (count - 1) / count * changes.T @ changes
    normalized = covariance / fit.scale  # statsmodels multiplies by the residual variance
    results = RegressionResults(fit.model, np.asarray(fit.params), normalized, use_t=True)
    results.df_resid_inference = count - 1
    return RegressionResultsWrapper(results)


def combine_terms(fit: Any, weights: NDArray[np.float64]) -> tuple[float, float]:
    """Return a weighted sum of a fit's terms and its standard error.

    Errors of terms without weight may be NaN (see `_with_jackknife_errors`).
    """
    used = np.flatnonzero(weights)
    covariance = np.asarray(fit.cov_params())[np.ix_(used, used)]
    variance = weights[used] @ covariance @ weights[used]
    return float(weights[used] @ np.asarray(fit.params)[used]), float(np.sqrt(variance))


def wald_p(fit: Any, terms: slice) -> float:
    """Return the p value of an F test that some terms of a fit are all 0."""
    values = np.asarray(fit.params)[terms]
    covariance = np.asarray(fit.cov_params())[terms, terms]
    if not np.isfinite(covariance).all():
        return float("nan")
    rank = np.linalg.matrix_rank(covariance, hermitian=True)
    f = values @ np.linalg.pinv(covariance, hermitian=True) @ values / rank
    return float(stats.f.sf(f, rank, degrees_of_freedom(fit)))


def degrees_of_freedom(fit: Any) -> float:
    """Return the degrees of freedom of a fit's errors."""
    return float(getattr(fit, "df_resid_inference", None) or fit.df_resid)


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


def variance_inflation(x: np.ndarray, indices: Sequence[int]) -> float:
    """Return the variance inflation of an attribute's terms by the other columns of a design.

    The generalised factor of Fox and Monette (1992), to the power of one over the terms: for a
    number it is the common variance inflation factor, and rare levels of the attribute itself do
    not count. It is 1 without other columns.

    Args:
        x: `(cases, columns)`, with the constant.
        indices: Columns of the attribute's terms.
    """
    if len(indices) == x.shape[1]:
        return 1.0
    centred = x - x.mean(0)
    terms = centred[:, indices]
    others = np.delete(centred, indices, axis=1)
    residuals = terms - others @ np.linalg.lstsq(others, terms, rcond=None)[0]
    share = np.linalg.det(residuals.T @ residuals) / np.linalg.det(terms.T @ terms)
    return float(share ** (-1 / len(indices))) if share > ROUNDING_TOLERANCE else float("inf")
