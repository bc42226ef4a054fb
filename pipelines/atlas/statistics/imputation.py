"""Multiple imputation of unknown cells by chained equations.

Completed tables hold observed values in place of unknown ones, so that regressions read them as any
table. See docs/explanation/atlas_statistics.md for the assumption and the references.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.imputation.mice import MICEData
from statsmodels.tools.sm_exceptions import SingularMatrixWarning

IMPUTATIONS = 10
BURN_IN = 10  # cycles before the first table
CYCLES = 2  # cycles from one table to the next
DONORS = 5  # cases whose value a number may take (Morris, White and Royston 2014)
MAX_IMPUTED = 0.5  # share of unknown cells up to which a column is imputed
MIN_KNOWN = 10  # known values of a column that is imputed
MAX_COMPONENTS = 3  # principal components of the measurements in the imputation models
MIN_EXPLAINED = 1e-3  # share of the variance that a component explains; less is rounding
CASES_PER_TERM = 4  # known cases for each term of an imputation model
PENALTY = 10.0  # inverse strength of the penalty of logistic regression, as in scikit-learn
SEED = 20  # of the draws: the same cohort gives the same tables
OTHER = "(other)"  # rare levels of a category, pooled
MIN_LEVEL_CASES = 3  # cases of a level; rarer levels of a covariate are pooled
MIN_NUMBERS = 7  # distinct numbers of a covariate that is taken as a number, not as levels


@dataclass(frozen=True)
class CompletedTables:
    """Tables without unknown cells in the columns that were imputed.

    Attributes:
        tables: The completed tables, texts as in the original; the original alone where every
            cell is known.
        imputed: Share of unknown cells by column that was imputed.
        not_imputed: Share of unknown cells by column with too few known ones.
    """

    tables: Sequence[pd.DataFrame]
    imputed: Mapping[str, float] = field(default_factory=dict)
    not_imputed: Mapping[str, float] = field(default_factory=dict)

    def of_columns(self, columns: Sequence[str]) -> Sequence[pd.DataFrame]:
        """Return the tables that differ in these columns: one where all their cells are known."""
        if any(column in self.imputed for column in columns):
            return self.tables
        return self.tables[:1]


def is_number_column(values: pd.Series) -> bool:
    """Return whether a covariate is taken as a number; `values` are texts, "" for unknown."""
    known = values[values != ""]
    numbers = pd.to_numeric(known, errors="coerce")
    return bool(len(known)) and bool(numbers.notna().all()) and numbers.nunique() >= MIN_NUMBERS


def impute_tables(
    table: pd.DataFrame, measurements: pd.DataFrame, count: int = IMPUTATIONS
) -> CompletedTables:
    """Impute the unknown cells of a table under the assumption that they are missing at random.

    Numbers are imputed by predictive mean matching, categories by multinomial regression on a
    bootstrap sample. The measurements enter as principal components, because an imputation that
    ignores them would weaken their associations (Howard, Rhemtulla and Little 2015).

    Args:
        table: Columns as texts; "" where a value is not known.
        measurements: Numbers of the same cases without which a column cannot be imputed, such as
            the regional densities.
        count: Number of tables.
    """
    unknown = (table == "").mean()
    known = (table != "").sum()
    imputed: dict[str, float] = {}
    not_imputed: dict[str, float] = {}
    for column in table.columns[unknown > 0]:
        can_impute = unknown[column] <= MAX_IMPUTED and known[column] >= MIN_KNOWN
        (imputed if can_impute else not_imputed)[str(column)] = float(unknown[column])
    if not imputed:
        return CompletedTables([table], {}, not_imputed)
    encoded = _EncodedTable.from_texts(table.drop(columns=list(not_imputed)))
    data = pd.concat([encoded.data, _components(measurements)], axis=1)
    chain = _ChainedEquations(data, encoded.levels)
    tables = []
    chain.update_all(BURN_IN)
    for _ in range(count):
        chain.update_all(CYCLES)
        tables.append(encoded.fill(table, chain.data, list(imputed)))
    return CompletedTables(tables, imputed, not_imputed)


def _components(measurements: pd.DataFrame) -> pd.DataFrame:
    """Return the leading principal components of the standardised measurements."""
    filled = measurements.astype(float)
    filled = filled.fillna(filled.mean()).dropna(axis=1)
    filled = filled.loc[:, filled.std() > 0]
    count = min(MAX_COMPONENTS, filled.shape[1], len(filled) - 1)
    if count < 1:
        return pd.DataFrame(index=range(len(measurements)))
    model = PCA(count)
    scores = model.fit_transform(StandardScaler().fit_transform(filled))
    scores = scores[:, model.explained_variance_ratio_ > MIN_EXPLAINED]
    return pd.DataFrame(scores, columns=[f"y{k}" for k in range(scores.shape[1])])


@dataclass(frozen=True)
class _EncodedTable:
    """A table as numbers, for the imputation models.

    Attributes:
        data: Numbers, or codes of levels, NaN where not known; columns x0, x1, ...
        names: The table's columns, in the order of `data`.
        levels: Levels by the name in `data` of a category.
        texts: Texts of a number by the name in `data`.
    """

    data: pd.DataFrame
    names: Sequence[str]
    levels: Mapping[str, Sequence[str]]
    texts: Mapping[str, Mapping[float, str]]

    @classmethod
    def from_texts(cls, table: pd.DataFrame) -> _EncodedTable:
        """Encode a table; rare levels of a category are pooled."""
        data: dict[str, Any] = {}
        levels: dict[str, Sequence[str]] = {}
        texts: dict[str, Mapping[float, str]] = {}
        names = [str(column) for column in table.columns if (table[column] != "").any()]
        for number, name in enumerate(names):
            key = f"x{number}"
            values = table[name]
            if is_number_column(values):
                data[key] = pd.to_numeric(values, errors="coerce").to_numpy(float)
                texts[key] = dict(zip(data[key], values, strict=True))
            else:
                pooled = pool_levels(values[values != ""]).reindex(values.index)
                codes, found = pd.factorize(pooled, sort=True)
                data[key] = np.where(codes < 0, np.nan, codes)
                levels[key] = [str(level) for level in found]
        return cls(pd.DataFrame(data), names, levels, texts)

    def fill(self, table: pd.DataFrame, data: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
        """Return the table with imputed values in the unknown cells of some columns."""
        completed = table.copy()
        for number, name in enumerate(self.names):
            if name not in columns:
                continue
            key = f"x{number}"
            is_unknown = (table[name] == "").to_numpy()
            values = data[key].to_numpy()[is_unknown]
            if key in self.levels:
                drawn = [self.levels[key][int(code)] for code in values]
            else:
                drawn = [self.texts[key][value] for value in values]
            completed.loc[is_unknown, name] = drawn
        return completed


def pool_levels(values: pd.Series) -> pd.Series:
    """Return a category with its rare levels pooled, or in its commonest level where few remain."""
    counts = values.value_counts()
    rare = counts.index[counts < MIN_LEVEL_CASES]
    if rare.empty:
        return values
    levels = values.where(~values.isin(rare), OTHER)
    counts = levels.value_counts()
    if counts.get(OTHER, MIN_LEVEL_CASES) < MIN_LEVEL_CASES:
        levels = levels.replace(OTHER, counts.index[0])
    return levels


class _ChainedEquations(MICEData):  # type: ignore[misc]  # statsmodels has no types
    """Chained equations with multinomial regression for categories.

    Args:
        data: Numbers and codes, NaN where not known.
        levels: Levels by column that is a category.
    """

    def __init__(self, data: pd.DataFrame, levels: Mapping[str, Sequence[str]]) -> None:
        self.levels = levels
        super().__init__(data, k_pmm=DONORS, rng=np.random.default_rng(SEED))
        self.predictors = {name: self._choose_predictors(name) for name in self._cycle_order}

    def _block(self, name: str) -> np.ndarray:
        """Return a column as numbers `(cases, terms)`: itself, or indicators of its levels."""
        values = self.data[name].to_numpy(float)[:, None]
        if name in self.levels:
            return (values == np.arange(1, len(self.levels[name]))).astype(float)
        return values

    def _choose_predictors(self, name: str) -> list[str]:
        """Return the columns of a column's model: measurements, then the most associated columns.

        Few cases allow few terms.
        """
        rows = self.ix_obs[name]
        own = self._block(name)[rows]
        blocks = {other: self._block(other)[rows] for other in self.data if other != name}
        left = max(2, len(rows) // CASES_PER_TERM)

        def association(other: str) -> float:
            joined = np.hstack([own, blocks[other]])
            if joined.shape[1] < 2:
                return 0.0  # a single level on one side
            with np.errstate(invalid="ignore", divide="ignore"):
                correlation = np.corrcoef(joined, rowvar=False)[: own.shape[1], own.shape[1] :]
            return float(np.nan_to_num(np.abs(correlation)).max(initial=0.0))

        chosen = []
        for other in sorted(blocks, key=lambda other: (other[0] != "y", -association(other))):
            if blocks[other].shape[1] <= left:
                left -= blocks[other].shape[1]
                chosen.append(other)
        return chosen

    def _exog(self, vname: str) -> np.ndarray:
        """Return the model's matrix; parsing a formula in every cycle takes most of the time."""
        blocks = [self._block(name) for name in self.predictors[vname]]
        return np.hstack([np.ones((len(self.data), 1)), *blocks])

    def get_fitting_data(self, vname: str) -> tuple[Any, ...]:
        """Return the known values, their predictors, and no options."""
        rows = self.ix_obs[vname]
        return self.data[vname].to_numpy(float)[rows], self._exog(vname)[rows], {}, {}

    def get_split_data(self, vname: str) -> tuple[Any, ...]:
        """Return the known values, the predictors of known and of unknown ones, and no options."""
        known, exog, *options = self.get_fitting_data(vname)
        return known[:, None], exog, self._exog(vname)[self.ix_miss[vname]], *options

    def update(self, vname: str) -> None:
        """Draw the unknown values of one column anew."""
        if vname not in self.levels:
            with warnings.catch_warnings():  # predictors that determine each other do no harm
                warnings.simplefilter("ignore", SingularMatrixWarning)
                super().update(vname)
            return
        codes, observed, *_ = self.get_fitting_data(vname)
        missing = self._exog(vname)[self.ix_miss[vname]]
        rows = self.rng.integers(0, len(codes), len(codes))
        if len(np.unique(codes[rows])) < 2:
            self._store_changes(vname, self.rng.choice(codes, len(missing)))
            return
        model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=500))
        model.fit(observed[rows], codes[rows])
        cumulated = model.predict_proba(missing).cumsum(1)
        chosen = (cumulated < self.rng.random((len(missing), 1))).sum(1)
        self._store_changes(vname, model.classes_[np.minimum(chosen, len(model.classes_) - 1)])


@dataclass(frozen=True)
class PooledEstimate:
    """An estimate over completed tables.

    Attributes:
        value: The estimate.
        se: Its standard error.
        df: Degrees of freedom of Student's t.
    """

    value: float
    se: float
    df: float

    @classmethod
    def from_tables(
        cls, values: Sequence[float], errors: Sequence[float], df: float
    ) -> PooledEstimate:
        """Pool the estimates of completed tables by Rubin's rules.

        statsmodels pools with the normal distribution, which is too narrow for few cases; degrees
        of freedom are those of Barnard and Rubin (1999).

        Args:
            values: Estimate in each table.
            errors: Standard error in each table.
            df: Degrees of freedom of a complete table.
        """
        count = len(values)
        value = float(np.mean(values))
        within = float(np.mean(np.square(errors)))
        between = float(np.var(values, ddof=1)) * (1 + 1 / count) if count > 1 else 0.0
        total = within + between
        share = between / total if total > 0 else 0.0
        if share > 0:
            observed = (df + 1) / (df + 3) * df * (1 - share)
            df = 1 / (share**2 / (count - 1) + 1 / observed)
        return cls(value, float(np.sqrt(total)), df)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the interval of a level."""
        half = float(stats.t.ppf(0.5 + level / 2, self.df)) * self.se
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """The two-sided p value of no effect."""
        return float(2 * stats.t.sf(abs(self.value) / self.se, self.df))
