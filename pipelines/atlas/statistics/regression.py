"""Regressions of regional outcomes on an attribute in the real scans, with robust errors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from statsmodels.regression.linear_model import RegressionResults, RegressionResultsWrapper

from pipelines.atlas.statistics.contrasts import LATER_ROLES, AtlasAttribute, Contrast

MIN_LEVEL_CASES = 3  # cases of a level; rarer levels of a covariate are pooled
MIN_NUMBERS = 7  # distinct numbers of a covariate that is taken as a line, not as levels
MIN_RESIDUAL_PATIENTS = 8  # patients beyond the number of terms
# The primary estimate is the first of these that the cases suffice for.
ADJUSTMENT_ORDER = ("all+volume", "base+diagnosis+volume", "base+volume", "base")
# Adjusted for no later step on the way to the lungs: neither diagnosis, exposures nor lung volume.
TOTAL = "base"
UNKNOWN, OTHER = "(not known)", "(other)"
MIN_UNIQUE_VARIANCE = 1e-3  # share of an attribute's variance that covariates do not explain
ROUNDING_TOLERANCE = 1e-9  # a smaller share is rounding
INSEPARABLE = "cannot be told apart from the columns adjusted for"

REAL_COLUMNS = (
    "contrast",
    "outcome",
    "region",
    "adjustment",
    "primary",
    "adjusted_for",
    "cases",
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
    """

    outcomes: pd.DataFrame
    table: pd.DataFrame
    volume: pd.Series
    patient: pd.Series

    @property
    def places(self) -> list[tuple[str, str]]:
        """Every (outcome, region) that was measured."""
        outcomes, regions = (self.outcomes.columns.get_level_values(level) for level in (0, 1))
        return list(zip(map(str, outcomes), map(str, regions), strict=True))


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

    def adjustments(self, column: str) -> dict[str, list[str]]:
        """Return the sets of covariates for an attribute.

        They never contain outcomes or mediators, because these come after exposures.
        """
        base = self._covariates(column, "demographic", "acquisition")
        sets = {"base": base}
        diagnosis = self.attributes.get(self.diagnosis)
        is_later = diagnosis is None or diagnosis.role in LATER_ROLES
        if self.diagnosis != column and not is_later:
            sets["base+diagnosis"] = list(dict.fromkeys([*base, self.diagnosis]))
        sets["all"] = list(dict.fromkeys([*base, *self._covariates(column, "exposure")]))
        return sets

    def _covariates(self, column: str, *roles: str) -> list[str]:
        names = []
        for name, attribute in self.attributes.items():
            if attribute.role in roles and name != column and name not in self.dependants:
                names.append(name)
        return names


def estimate_contrasts(
    scans: RealScans, contrasts: Sequence[Contrast], roles: Roles
) -> pd.DataFrame:
    """Return real.csv: every contrast, outcome and region with every set of covariates.

    A row without an estimate holds the reason.
    """
    rows: list[dict[str, Any]] = []
    for column in dict.fromkeys(contrast.column for contrast in contrasts):
        attribute = roles.attributes[column]
        of_column = [contrast for contrast in contrasts if contrast.column == column]
        for name, covariates in roles.adjustments(column).items():
            for volume in (False, True):
                design = Design.from_scans(scans, attribute, covariates, volume)
                common = {
                    "adjustment": f"{name}+volume" if volume else name,
                    "adjusted_for": " | ".join(
                        [*covariates, *(["log lung volume"] if volume else [])]
                    ),
                }
                for row in _estimate_regions(design, scans, of_column):
                    rows.append({**row, **common})
    return _with_primary(pd.DataFrame(rows, columns=list(REAL_COLUMNS)))


def _estimate_regions(
    design: Design, scans: RealScans, contrasts: Sequence[Contrast]
) -> list[dict[str, Any]]:
    rows = []
    for outcome, region in scans.places:
        fit = design.fit(scans.outcomes[outcome, region], scans.patient)
        place = {"outcome": outcome, "region": region}
        for contrast in contrasts:
            rows.append({"contrast": contrast.id, **place, **design.estimate(fit, contrast)})
    return rows


def _with_primary(real: pd.DataFrame) -> pd.DataFrame:
    """Mark each contrast's primary estimate: the richest adjustment that the cases suffice for.

    An adjustment from which the attribute cannot be told apart counts too, because a thinner one
    would attribute effects of other columns to it.
    """
    real["primary"] = "no"
    is_feasible = real["real"].notna() | (real["reason"] == INSEPARABLE)
    for _, part in real.groupby("contrast", sort=False):
        feasible = set(part.loc[is_feasible[part.index], "adjustment"])
        chosen = next((name for name in ADJUSTMENT_ORDER if name in feasible), ADJUSTMENT_ORDER[0])
        real.loc[part.index[part["adjustment"] == chosen], "primary"] = "yes"
    return real


@dataclass(frozen=True)
class Design:
    """A design matrix.

    Attributes:
        x: `(cases, terms)`: the constant, the attribute's terms, then the covariates'.
        terms: The attribute's terms: one per value, or its column for a number.
        attribute: The attribute.
    """

    x: pd.DataFrame
    terms: tuple[str, ...]
    attribute: AtlasAttribute

    @classmethod
    def from_scans(
        cls, scans: RealScans, attribute: AtlasAttribute, covariates: Sequence[str], volume: bool
    ) -> Design:
        """Build the matrix of the cases whose value of the attribute is known.

        Args:
            scans: The real scans.
            attribute: The attribute; rare values of a category are left out.
            covariates: Columns to adjust for.
            volume: Adjust for the logarithm of the lung volume, too.
        """
        values = scans.table[attribute.column]
        if attribute.kind == "category":
            counts = values[values != ""].value_counts()
            values = values[values.isin(counts.index[counts >= MIN_LEVEL_CASES])]
        else:
            values = values[values != ""]
        parts = [_attribute_terms(values, attribute)]
        terms = tuple(parts[0].columns)
        table = scans.table.loc[values.index]
        for covariate in covariates:
            parts.append(covariate_columns(table[covariate]))
        if volume:
            logged = np.log(scans.volume.loc[values.index].clip(lower=1e-6))
            parts.append((logged - logged.mean()).to_frame("log lung volume"))
        x = pd.concat(parts, axis=1).astype(float)
        useful = [column for column in x if column in terms or x[column].nunique() > 1]
        return cls(sm.add_constant(x[useful], has_constant="add"), terms, attribute)

    def fit(self, values: pd.Series, patient: pd.Series) -> Any:
        """Fit the regression, with HC3 errors, or a jackknife over patients with repeated scans.

        Returns:
            The results of statsmodels; None where patients are too few. Scans of one patient do
            not count twice.
        """
        y = values.reindex(self.x.index).dropna()
        x = self.x.loc[y.index]
        groups = patient.loc[y.index]
        if groups.nunique() - np.linalg.matrix_rank(x.to_numpy()) < MIN_RESIDUAL_PATIENTS:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a leverage of one gives NaN, which is reported
            if groups.duplicated().any():
                return _with_jackknife_errors(sm.OLS(y, x).fit(), pd.factorize(groups)[0])
            return sm.OLS(y, x).fit(cov_type="HC3", use_t=True)

    def estimate(self, fit: Any, contrast: Contrast) -> dict[str, Any]:
        """Return estimate, interval and p value of a contrast, or the reason why there is none.

        Args:
            fit: Result of `fit`.
            contrast: A contrast of the attribute.
        """
        if fit is None:
            return {"cases": len(self.x), "reason": "too few cases for so many covariates"}
        is_category = self.attribute.kind == "category"
        name = contrast.end if is_category else self.attribute.column
        cases = {"cases": int(fit.nobs)}
        if name not in self.terms:
            rare = contrast.start if is_category and not self.terms else name
            return cases | {"reason": f"fewer than {MIN_LEVEL_CASES} cases have {rare}"}
        indices = [list(fit.model.exog_names).index(term) for term in self.terms]
        vif = variance_inflation(fit.model.exog, indices)
        inflated = {**cases, "vif": round(vif, 2) if np.isfinite(vif) else None}
        if not vif < 1 / MIN_UNIQUE_VARIANCE:
            return inflated | {"reason": INSEPARABLE}
        scale = 1.0
        if contrast.kind == "quantiles":
            scale = float(contrast.end) - float(contrast.start)
        se = abs(scale) * fit.bse[name]
        if not (np.isfinite(se) and se > 0):
            return cases | {"reason": "the spread cannot be estimated"}
        low, high = sorted(scale * bound for bound in fit.conf_int().loc[name])
        return inflated | {
            "real": scale * fit.params[name],
            "se": se,
            "low": low,
            "high": high,
            "p": fit.pvalues[name],
        }


def _with_jackknife_errors(fit: Any, groups: np.ndarray) -> Any:
    """Return a fit with errors from the fits without each cluster in turn.

    This is HC3 for clusters (CR3; MacKinnon, Nielsen and Webb 2023, J. Econometrics 232). The
    usual clustered errors are too small with few or unequal clusters.

    Args:
        fit: A fit of ordinary least squares.
        groups: Number of each row's cluster, 0 to G - 1.

    Returns:
        Results with Student's t at G - 1 degrees of freedom. Errors are NaN where a term rests on
        one cluster alone.
    """
    x = fit.model.exog
    inverse = np.asarray(fit.normalized_cov_params)
    residuals = np.asarray(fit.resid)
    count = int(groups.max()) + 1
    changes = np.full((count, x.shape[1]), np.nan)
    for group in range(count):
        rows = groups == group
        leverage = x[rows] @ inverse @ x[rows].T
        unexplained = np.eye(len(leverage)) - leverage
        if np.linalg.eigvalsh(unexplained)[0] > ROUNDING_TOLERANCE:
            changes[group] = inverse @ x[rows].T @ np.linalg.solve(unexplained, residuals[rows])
    covariance = (count - 1) / count * changes.T @ changes
    normalized = covariance / fit.scale  # statsmodels multiplies by the residual variance
    results = RegressionResults(fit.model, np.asarray(fit.params), normalized, use_t=True)
    results.df_resid_inference = count - 1
    return RegressionResultsWrapper(results)


def _attribute_terms(values: pd.Series, attribute: AtlasAttribute) -> pd.DataFrame:
    """Return a number as it is, or an indicator for each value of a category but the reference."""
    if attribute.kind == "number":
        return values.astype(float).to_frame(attribute.column)
    if attribute.reference not in set(values):
        return pd.DataFrame(index=values.index)
    return pd.get_dummies(values).drop(columns=attribute.reference)


def covariate_columns(values: pd.Series) -> pd.DataFrame:
    """Return a covariate as columns of a design.

    A value that is not known is a level of its own; rare levels are pooled.
    """
    if values.empty:
        return pd.DataFrame(index=values.index)
    numbers = pd.to_numeric(values, errors="coerce")
    known = values != ""
    if numbers[known].notna().all() and numbers.nunique() >= MIN_NUMBERS:
        columns = (numbers - numbers.mean()).fillna(0).to_frame(values.name)
        if (~known).sum() >= MIN_LEVEL_CASES:
            columns[f"{values.name} {UNKNOWN}"] = ~known
        return columns
    levels = values.where(known, UNKNOWN)
    levels = levels.where(levels.map(levels.value_counts()) >= MIN_LEVEL_CASES, OTHER)
    counts = levels.value_counts()
    if counts.get(OTHER, MIN_LEVEL_CASES) < MIN_LEVEL_CASES:
        levels = levels.replace(OTHER, counts.index[0])
    reference = f"{values.name}_{levels.value_counts().index[0]}"
    return pd.get_dummies(levels, prefix=str(values.name)).drop(columns=reference)


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
