"""Many outcomes regressed at once against statsmodels, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm

from pipelines.atlas.statistics.least_squares import Floats, RobustFit, fit_outcomes

CASES, OUTCOMES = 60, 12
TERMS = slice(1, 3)


def regression(repeated: bool) -> tuple[Floats, Floats, np.ndarray]:
    """A design of two terms and five covariates, outcomes with unknown values, and patients."""
    rng = np.random.default_rng(5)
    x = np.hstack([np.ones((CASES, 1)), rng.normal(size=(CASES, 7))])
    x[:20, 6] = 0.0
    spread = np.exp(x[:, 1:2])  # not the same for all cases: robust errors matter
    outcomes = 3 * x[:, 1:2] + spread * rng.normal(size=(CASES, OUTCOMES))
    outcomes[2:9, :4] = np.nan
    patients = [number // 3 if repeated and number < 30 else number for number in range(CASES)]
    return x, outcomes, np.array(patients)


def fit_all(x: Floats, outcomes: Floats, patients: np.ndarray, terms: slice) -> list[RobustFit]:
    fits = fit_outcomes(x, outcomes, patients, terms)
    assert all(fit is not None for fit in fits)
    return [fit for fit in fits if fit is not None]


def test_values_errors_tests_and_sums_are_those_of_one_outcome_alone() -> None:
    x, outcomes, patients = regression(repeated=False)
    weights = np.array([0, 2.0, 0, -1, 0.5, 0, 0, 0])
    some = fit_all(x, outcomes, patients, TERMS)
    for y, few, all_terms in zip(
        outcomes.T, some, fit_all(x, outcomes, patients, slice(None)), strict=True
    ):
        is_known = np.isfinite(y)
        fit = sm.OLS(y[is_known], x[is_known]).fit(cov_type="HC3", use_t=True)
        assert few.cases == fit.nobs == is_known.sum() and few.df == fit.df_resid
        for own, terms in ((few, TERMS), (all_terms, slice(None))):
            assert np.allclose(own.values, fit.params[terms], rtol=1e-9)
            assert np.allclose(own.errors, fit.bse[terms], rtol=1e-9)
        assert all_terms.wald_p(slice(1, 4)) == pytest.approx(fit.f_test(np.eye(8)[1:4]).pvalue)
        known = fit.t_test(weights)
        expected = float(np.squeeze(known.effect)), float(np.squeeze(known.sd))
        assert all_terms.combine(weights) == pytest.approx(expected)


def test_errors_of_repeated_scans_are_a_jackknife_over_patients() -> None:
    x, outcomes, patients = regression(repeated=True)
    for y, fit in zip(outcomes.T, fit_all(x, outcomes, patients, TERMS), strict=True):
        is_known = np.isfinite(y)
        whole = sm.OLS(y[is_known], x[is_known]).fit().params
        present = np.unique(patients[is_known])
        changes = []
        for patient in present:
            kept = is_known & (patients != patient)
            changes.append(sm.OLS(y[kept], x[kept]).fit().params - whole)
        variance = (len(changes) - 1) / len(changes) * np.square(changes).sum(0)
        assert np.allclose(fit.errors, np.sqrt(variance)[TERMS], rtol=1e-6)
        assert fit.df == len(present) - 1


def test_too_few_cases_of_an_outcome_leave_the_others_alone() -> None:
    x, outcomes, patients = regression(repeated=False)
    outcomes[12:, 0] = np.nan
    few, *others = fit_outcomes(x, outcomes, patients, TERMS)
    assert few is None and all(fit is not None for fit in others)


def test_a_case_alone_on_a_covariate_changes_no_other_term() -> None:
    x, outcomes, patients = regression(repeated=False)
    x[:, 7] = 0.0
    x[30, 7] = 1.0
    (with_it,) = fit_all(x, outcomes[:, 11:], patients, TERMS)
    outcomes[30] = np.nan
    (without,) = fit_all(np.delete(x, 7, 1), outcomes[:, 11:], patients, TERMS)
    assert np.allclose(with_it.values, without.values) and np.isfinite(with_it.errors).all()
    assert np.allclose(with_it.errors, without.errors)


@pytest.mark.parametrize("repeated", [False, True])
def test_a_term_that_rests_on_one_patient_has_no_error(repeated: bool) -> None:
    x, outcomes, patients = regression(repeated)
    x[:, 2] = patients == patients[40]
    for fit in fit_all(x, outcomes, patients, TERMS):
        assert np.isnan(fit.errors[1]) and np.isfinite(fit.errors[0])
        assert np.isnan(fit.wald_p(slice(None))) and np.isfinite(fit.wald_p(slice(0, 1)))
