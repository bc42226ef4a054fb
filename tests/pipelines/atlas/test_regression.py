"""Many outcomes regressed at once against statsmodels, one by one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from pipelines.atlas.statistics.regression import Design
from tests.atlas_scans import AGE

CASES = pd.Index([f"case_{number}" for number in range(60)])
OUTCOMES = 12


def regression(repeated: bool) -> tuple[Design, pd.DataFrame, pd.Series]:
    """A design of two terms and five covariates, outcomes with unknown values, and patients."""
    rng = np.random.default_rng(5)
    x = np.hstack([np.ones((len(CASES), 1)), rng.normal(size=(len(CASES), 7))])
    x[:20, 6] = 0.0
    spread = np.exp(x[:, 1:2])  # not the same for all cases: robust errors matter
    outcomes = pd.DataFrame(
        3 * x[:, 1:2] + spread * rng.normal(size=(len(CASES), OUTCOMES)), index=CASES
    )
    outcomes.iloc[2:9, :4] = np.nan
    patients = [number // 3 if repeated and number < 30 else number for number in range(len(CASES))]
    return Design(x, CASES, ("one", "two"), AGE), outcomes, pd.Series(patients, index=CASES)


@pytest.mark.parametrize("repeated", [False, True])
def test_values_and_errors_are_those_of_one_outcome_alone(repeated: bool) -> None:
    design, outcomes, patients = regression(repeated)
    together = design.estimate_terms(outcomes, patients)
    for column, terms in zip(outcomes, together, strict=True):
        fit = design.fit(outcomes[column], patients)
        assert terms is not None and terms.cases == fit.nobs == outcomes[column].count()
        assert np.allclose(terms.values, fit.params[1:3], rtol=1e-9)
        assert np.allclose(terms.errors, fit.bse[1:3], rtol=1e-9)
        assert terms.df == (patients[outcomes[column].notna()].nunique() - (1 if repeated else 8))


def test_errors_of_repeated_scans_are_a_jackknife_over_patients() -> None:
    design, outcomes, patients = regression(repeated=True)
    terms = design.estimate_terms(outcomes[[11]], patients)[0]
    assert terms is not None
    whole = sm.OLS(outcomes[11], design.x).fit().params.to_numpy()
    changes = []
    for patient in patients.unique():
        kept = (patients != patient).to_numpy()
        changes.append(sm.OLS(outcomes[11][kept], design.x[kept]).fit().params.to_numpy() - whole)
    variance = (len(changes) - 1) / len(changes) * np.square(changes).sum(0)
    assert np.allclose(terms.errors, np.sqrt(variance)[1:3], rtol=1e-6)


def test_too_few_cases_of_an_outcome_leave_the_others_alone() -> None:
    design, outcomes, patients = regression(repeated=False)
    outcomes.iloc[12:, 0] = np.nan
    few, *others = design.estimate_terms(outcomes, patients)
    assert few is None and all(terms is not None for terms in others)


def test_a_case_alone_on_a_covariate_changes_no_other_term() -> None:
    design, outcomes, patients = regression(repeated=False)
    design.x[:, 7] = 0.0
    design.x[30, 7] = 1.0
    others = Design(np.delete(design.x, 7, 1), CASES, design.terms, design.attribute)
    with_it = design.estimate_terms(outcomes[[11]], patients)[0]
    outcomes.iloc[30] = np.nan
    without = others.estimate_terms(outcomes[[11]], patients)[0]
    assert with_it is not None and without is not None
    assert np.allclose(with_it.values, without.values) and np.isfinite(with_it.errors).all()
    assert np.allclose(with_it.errors, without.errors)


def test_a_term_that_rests_on_one_case_has_no_error() -> None:
    design, outcomes, patients = regression(repeated=False)
    design.x[:, 2] = 0.0
    design.x[30, 2] = 1.0
    for terms in design.estimate_terms(outcomes, patients):
        assert terms is not None
        assert np.isnan(terms.errors[1]) and np.isfinite(terms.errors[0])
