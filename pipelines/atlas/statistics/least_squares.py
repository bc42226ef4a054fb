"""Least squares of many outcomes on one design, with errors from leaving out each patient.

These are HC3 (MacKinnon and White 1985) and, where patients have several scans, its form for
clusters, CR3 (MacKinnon, Nielsen and Webb 2023, J. Econometrics 232). The usual clustered errors
are too small with few or unequal clusters. statsmodels has HC3 for one outcome at a time, and an
atlas has some hundred of them for each of a hundred designs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MIN_RESIDUAL_PATIENTS = 8  # patients beyond the number of terms
ROUNDING_TOLERANCE = 1e-9  # a smaller share is rounding

Floats = NDArray[np.floating]
ALL = slice(None)


@dataclass(frozen=True)
class RobustFit:
    """Some terms of the regression of one outcome.

    Attributes:
        cases: Cases with the outcome.
        values: Coefficients of the K terms.
        changes: `(patients, K)`: how each coefficient changes without a patient, scaled so that
            the sum of squares is its variance; NaN where the coefficient rests on the patient.
        df: Degrees of freedom of Student's t.
        vif: Variance inflation of the terms by the rest of the design.
    """

    cases: int
    values: Floats
    changes: Floats
    df: float
    vif: float

    @cached_property
    def errors(self) -> Floats:
        """Standard errors; NaN where the spread cannot be estimated."""
        return np.sqrt(np.square(self.changes).sum(0))

    def combine(self, weights: Floats) -> tuple[float, float]:
        """Return a weighted sum of the coefficients, and its standard error."""
        used = np.flatnonzero(weights)  # errors of other terms may be NaN
        change = self.changes[:, used] @ weights[used]
        return float(weights[used] @ self.values[used]), float(np.sqrt(np.square(change).sum()))

    def wald_p(self, terms: slice) -> float:
        """Return the p value of an F test that some terms are all 0; NaN without their errors."""
        values, changes = self.values[terms], self.changes[:, terms]
        if not np.isfinite(changes).all():
            return float("nan")
        covariance = changes.T @ changes
        rank = np.linalg.matrix_rank(covariance, hermitian=True)
        f = values @ np.linalg.pinv(covariance, hermitian=True) @ values / rank
        return float(stats.f.sf(f, rank, self.df))


def fit_outcomes(
    x: Floats, outcomes: Floats, patients: NDArray[np.intp], terms: slice = ALL
) -> list[RobustFit | None]:
    """Regress each outcome on a design, in the cases that have it.

    Args:
        x: `(cases, columns)`.
        outcomes: `(cases, outcomes)`, NaN where not known.
        patients: Number of each case's patient.
        terms: Columns whose coefficients are wanted.

    Returns:
        A fit per outcome; None where patients are too few.
    """
    found: list[RobustFit | None] = [None] * outcomes.shape[1]
    patterns, pattern_of = np.unique(np.isfinite(outcomes), axis=1, return_inverse=True)
    for number, is_known in enumerate(patterns.T):
        columns = np.flatnonzero(pattern_of == number)
        y = outcomes[is_known][:, columns]
        for column, fit in zip(
            columns, _fit_known(x[is_known], y, patients[is_known], terms), strict=False
        ):
            found[column] = fit
    return found


def _fit_known(x: Floats, y: Floats, patients: NDArray[np.intp], terms: slice) -> list[RobustFit]:
    """Regress outcomes that are known in all cases; none where patients are too few."""
    distinct, groups = np.unique(patients, return_inverse=True)
    rank = int(np.linalg.matrix_rank(x)) if len(x) else 0
    if not len(x) or len(distinct) - rank < MIN_RESIDUAL_PATIENTS:
        return []
    inverse = np.linalg.pinv(x)
    values = (inverse @ y)[terms]
    residuals = y - x @ (inverse @ y)
    if len(distinct) < len(x):
        changes = _without_clusters(x, inverse, terms, residuals, groups)
        changes *= np.sqrt((len(distinct) - 1) / len(distinct))
        df = len(distinct) - 1
    else:
        changes = _without_cases(x, inverse, terms, residuals)
        df = len(x) - rank
    vif = variance_inflation(x, range(*terms.indices(x.shape[1])))
    return [RobustFit(len(x), values[:, k], changes[:, :, k], df, vif) for k in range(y.shape[1])]


def _without_cases(x: Floats, inverse: Floats, terms: slice, residuals: Floats) -> Floats:
    """Return the changes of coefficients without each case in turn, `(cases, K, outcomes)`.

    A case that is alone in one of the design's directions is fitted without a residual. Its weight
    in a coefficient is then 0, or the coefficient rests on it, and the change is NaN.
    """
    unexplained = 1 - np.einsum("np,pn->n", x, inverse)
    alone = unexplained < ROUNDING_TOLERANCE
    weights = inverse[terms].T
    scaled = residuals / np.where(alone, 1.0, unexplained)[:, None]
    changes = weights[:, :, None] * scaled[:, None, :]
    size = np.abs(weights).max(axis=0, keepdims=True)
    rests_on_it = alone[:, None] & (np.abs(weights) > ROUNDING_TOLERANCE * size)
    changes[alone] = 0.0
    changes[rests_on_it] = np.nan
    return changes


def _without_clusters(
    x: Floats, inverse: Floats, terms: slice, residuals: Floats, groups: NDArray[np.intp]
) -> Floats:
    """Return the changes of coefficients without each cluster in turn, `(G, K, outcomes)`.

    NaN where a coefficient rests on one cluster alone.

    Args:
        groups: Number of each case's cluster, 0 to G - 1.
    """
    gram = inverse @ inverse.T
    weights = inverse[terms]
    changes = np.full((int(groups.max()) + 1, len(weights), residuals.shape[1]), np.nan)
    for group in range(len(changes)):
        rows = groups == group
        leverage = x[rows] @ gram @ x[rows].T
        unexplained = np.eye(len(leverage)) - leverage
        if np.linalg.eigvalsh(unexplained)[0] > ROUNDING_TOLERANCE:
            changes[group] = weights[:, rows] @ np.linalg.solve(unexplained, residuals[rows])
            continue
        rest = np.linalg.pinv(x[~rows])[terms]  # may not determine every term
        is_known = np.isclose(rest @ x[~rows], np.eye(x.shape[1])[terms], atol=1e-6).all(axis=1)
        changes[group] = np.where(is_known[:, None], -rest @ residuals[~rows], np.nan)
    return changes


def variance_inflation(x: Floats, indices: Sequence[int]) -> float:
    """Return the variance inflation of some terms by the other columns of a design.

    The generalised factor of Fox and Monette (1992), to the power of one over the terms: for a
    number it is the common variance inflation factor, and rare levels of an attribute itself do
    not count. It is 1 without other columns, or without terms.

    Args:
        x: `(cases, columns)`, with the constant.
        indices: Columns of the terms.
    """
    if len(indices) in (0, x.shape[1]):
        return 1.0
    centred = x - x.mean(0)
    terms = centred[:, indices]
    others = np.delete(centred, indices, axis=1)
    residuals = terms - others @ np.linalg.lstsq(others, terms, rcond=None)[0]
    share = np.linalg.det(residuals.T @ residuals) / np.linalg.det(terms.T @ terms)
    return float(share ** (-1 / len(indices))) if share > ROUNDING_TOLERANCE else float("inf")
