"""Associations between attributes, and what they mean for the effects of either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy import stats

from pipelines.atlas.statistics.contrasts import LATER_ROLES, AtlasAttribute

STRONG_ASSOCIATION = 0.5
MIN_ASSOCIATION_CASES = 15  # with both values known; an association in fewer cases is ignored


@dataclass(frozen=True)
class Association:
    """The association of two columns.

    Attributes:
        column: The first column.
        other: The second column.
        measure: Cramer's V, correlation ratio or Spearman; "" where it cannot be computed.
        value: Its size, 0 to 1.
        cases: Cases in which both values are known.
    """

    column: str
    other: str
    measure: str
    value: float
    cases: int


def measure_association(
    table: pd.DataFrame, first: AtlasAttribute, second: AtlasAttribute
) -> Association:
    """Return the association of two columns in the cases where both are known.

    Two categories: Cramer's V, corrected for bias (Bergsma 2013). Two numbers: Spearman's
    correlation. Otherwise the correlation ratio, corrected likewise (epsilon).
    """
    known = (table[first.column] != "") & (table[second.column] != "")
    a = table.loc[known, first.column]
    b = table.loc[known, second.column]
    cases = int(known.sum())
    if cases < 4 or a.nunique() < 2 or b.nunique() < 2:
        measure, value = "", 0.0
    elif first.kind == second.kind == "number":
        correlation = stats.spearmanr(a.astype(float), b.astype(float)).statistic
        measure, value = "Spearman", float(abs(correlation))
    elif first.kind == second.kind:
        measure, value = "Cramer's V", _cramers_v(a, b)
    else:
        number, group = (a, b) if first.kind == "number" else (b, a)
        measure, value = "correlation ratio", _correlation_ratio(number.astype(float), group)
    return Association(first.column, second.column, measure, round(value, 3), cases)


def _cramers_v(first: pd.Series, second: pd.Series) -> float:
    """Return the bias-corrected V; `scipy.stats.contingency.association` gives the raw one."""
    table = pd.crosstab(first, second).to_numpy()
    rows, columns = table.shape
    n = table.sum()
    phi2 = stats.chi2_contingency(table, correction=False).statistic / n
    corrected = max(0.0, phi2 - (rows - 1) * (columns - 1) / (n - 1))
    smaller = min(rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)) - 1
    return float(min(1.0, np.sqrt(corrected / smaller))) if smaller > 0 else 0.0


def _correlation_ratio(number: pd.Series, group: pd.Series) -> float:
    dummies = pd.get_dummies(group, drop_first=True).astype(float)
    fit = sm.OLS(number, sm.add_constant(dummies)).fit()
    return float(np.sqrt(max(fit.rsquared_adj, 0.0))) if fit.df_resid > 0 else 0.0


def pairwise_associations(
    table: pd.DataFrame, attributes: Sequence[AtlasAttribute]
) -> list[Association]:
    """Return the association of every pair of attributes, the strongest first."""
    pairs = [measure_association(table, a, b) for a, b in combinations(attributes, 2)]
    return sorted(pairs, key=lambda pair: -pair.value)


def ambiguous_columns(pair: Association, roles: Mapping[str, str]) -> tuple[str, ...]:
    """Return the columns of a pair whose effect may belong to the other column.

    These are both columns of a strong association, and none of a weak one. Where one column is an
    outcome, a mediator or words of the text, and the other is not, it is that column alone.
    """
    if pair.value < STRONG_ASSOCIATION or pair.cases < MIN_ASSOCIATION_CASES:
        return ()
    columns = (pair.column, pair.other)
    later = tuple(column for column in columns if roles.get(column) in LATER_ROLES)
    return later if len(later) == 1 else columns


def widen_intervals(
    effects: pd.DataFrame,
    pairs: Iterable[Association],
    table: pd.DataFrame,
    attributes: Sequence[AtlasAttribute],
    roles: Mapping[str, str],
) -> pd.DataFrame:
    """Widen the intervals of effects that may partly belong to an associated attribute.

    Scans determine the sum of two associated effects better than its division. A network that
    stops learning early divides it the same way in every training, so the spread over refits does
    not show this uncertainty. The interval of an ambiguous effect therefore extends from the
    interval over refits to two others: the one if the attribute had all of the other's effect, and
    the one if the other attribute had all of the effect that it explains.

    Args:
        effects: Table of `intervals.add_refits`.
        pairs: Associations of `pairwise_associations`.
        table: The training rows as texts; "" where a value is not known.
        attributes: Attributes whose effects are in `effects`; others are ignored here.
        roles: Role by column.

    Returns:
        The effects with `tied_low` (at most 0) and `tied_high` (at least 0), by which their
        intervals are wider.
    """
    known = {attribute.column: attribute for attribute in attributes}
    partners: dict[str, list[AtlasAttribute]] = {}
    for pair in pairs:
        for column in ambiguous_columns(pair, roles):
            other = pair.other if column == pair.column else pair.column
            if column in known and other in known:
                partners.setdefault(column, []).append(known[other])
    effects = effects.assign(tied_low=0.0, tied_high=0.0)
    for _, rows in effects.groupby(["outcome", "region"], sort=False):
        for column, others in partners.items():
            parts = _shiftable_parts(rows, table, known[column], others)
            for index, row in rows[rows["column"] == column].iterrows():
                shifts = [project_effect(part, table[column], row) for part in parts]
                effects.loc[index, "tied_low"] = sum(min(0.0, shift) for shift in shifts)
                effects.loc[index, "tied_high"] = sum(max(0.0, shift) for shift in shifts)
    effects["refit_low"] += effects["tied_low"]
    effects["refit_high"] += effects["tied_high"]
    return effects


def _shiftable_parts(
    effects: pd.DataFrame,
    table: pd.DataFrame,
    attribute: AtlasAttribute,
    others: Sequence[AtlasAttribute],
) -> list[pd.Series]:
    """Return the effects by row that may move to an attribute from others, or from it to them."""
    effect = effect_by_row(effects, table, attribute)
    parts = []
    for other in others:
        parts.append(effect_by_row(effects, table, other))
        parts.append(-explained_part(effect, table[other.column], other))
    return parts


def effect_by_row(
    effects: pd.DataFrame, table: pd.DataFrame, attribute: AtlasAttribute
) -> pd.Series:
    """Return an attribute's generated effect on one outcome of a region by training row.

    It is NaN where the value is not known.
    """
    rows = effects[effects["column"] == attribute.column]
    values = table[attribute.column]
    if attribute.kind == "number":
        slopes = rows.loc[rows["kind"] == "slope", "generated"]
        per_unit = float(slopes.iloc[0]) if len(slopes) else np.nan
        return pd.to_numeric(values, errors="coerce") * per_unit
    of_value = rows[rows["from"] == attribute.reference].set_index("to")["generated"].to_dict()
    return values.map({attribute.reference: 0.0, **of_value}).astype(float)


def explained_part(effect: pd.Series, values: pd.Series, other: AtlasAttribute) -> pd.Series:
    """Return the part of an effect by row that another attribute's values explain, HU.

    It is the mean by value for a category, and a fitted line for a number; NaN where the value is
    not known.
    """
    if other.kind == "category":
        return effect.groupby(values.where(values != "")).transform("mean")
    return fitted_slope(effect, values) * pd.to_numeric(values, errors="coerce")


def project_effect(effect: pd.Series, values: pd.Series, contrast: Mapping[str, Any]) -> float:
    """Return the difference of an effect by row between a contrast's two values, HU.

    For numbers it is the difference along a fitted line.
    """
    if contrast["kind"] == "category":
        change = effect[values == contrast["to"]].mean() - effect[values == contrast["from"]].mean()
        return float(change) if np.isfinite(change) else 0.0
    span = 1.0 if contrast["kind"] == "slope" else float(contrast["to"]) - float(contrast["from"])
    return span * fitted_slope(effect, values)


def fitted_slope(effect: pd.Series, values: pd.Series) -> float:
    """Return the least-squares slope; 0 where fewer than two numbers are known."""
    numbers = pd.to_numeric(values, errors="coerce")
    known = numbers.notna() & effect.notna()
    if numbers[known].nunique() < 2:
        return 0.0
    return float(stats.linregress(numbers[known], effect[known]).slope)
