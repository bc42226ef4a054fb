"""Attributes that go together: how closely, and how much of one's effect may be the other's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy import stats

from pipelines.atlas.statistics.contrasts import AtlasAttribute

STRONG_ASSOCIATION = 0.5
MIN_ASSOCIATION_CASES = 15  # in which both are known, below which a tie counts for nothing
LATER_ROLES = ("outcome", "mediator")  # what comes after an exposure


def measure_association(
    first: pd.Series, second: pd.Series, kinds: tuple[str, str]
) -> tuple[str, float, int]:
    """How closely two columns go together, 0 to 1, in the cases where both are known: measure,
    size, cases.

    Two categories: Cramer's V, corrected for bias (Bergsma 2013); two numbers: Spearman's
    correlation; else the correlation ratio, corrected likewise (epsilon).
    """
    known = (first != "") & (second != "")
    a, b, n = first[known], second[known], int(known.sum())
    if n < 4 or a.nunique() < 2 or b.nunique() < 2:
        return "", 0.0, n
    if kinds == ("number", "number"):
        return (
            "Spearman",
            float(abs(stats.spearmanr(a.astype(float), b.astype(float)).statistic)),
            n,
        )
    if "number" in kinds:
        number, group = (a, b) if kinds[0] == "number" else (b, a)
        fit = sm.OLS(
            number.astype(float),
            sm.add_constant(pd.get_dummies(group, drop_first=True).astype(float)),
        ).fit()
        return (
            "correlation ratio",
            float(np.sqrt(max(fit.rsquared_adj, 0.0))) if fit.df_resid > 0 else 0.0,
            n,
        )
    table = pd.crosstab(a, b).to_numpy()
    rows, columns = table.shape
    square = stats.chi2_contingency(table, correction=False).statistic / n
    less = max(0.0, square - (rows - 1) * (columns - 1) / (n - 1))
    smaller = min(rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)) - 1
    return "Cramer's V", float(min(1.0, np.sqrt(less / smaller))) if smaller > 0 else 0.0, n


def pairwise_associations(
    table: pd.DataFrame, attributes: Sequence[AtlasAttribute]
) -> list[dict[str, Any]]:
    """Every pair of attributes with how closely they go together, the closest first."""
    rows = []
    for a, b in combinations(attributes, 2):
        measure, value, cases = measure_association(
            table[a.column], table[b.column], (a.kind, b.kind)
        )
        rows.append(
            {
                "column": a.column,
                "other": b.column,
                "measure": measure,
                "value": round(value, 3),
                "cases": cases,
            }
        )
    return sorted(rows, key=lambda row: -row["value"])


def ambiguous_columns(pair: Mapping[str, Any], roles: Mapping[str, str]) -> tuple[str, ...]:
    """The columns of a strong tie whose effect may be the other's: both, or the one that comes
    after; none of a weak tie.

    What comes after an exposure (an outcome, a mediator) takes nothing from it.
    """
    if pair["value"] < STRONG_ASSOCIATION or pair["cases"] < MIN_ASSOCIATION_CASES:
        return ()
    columns = (pair["column"], pair["other"])
    after = tuple(c for c in columns if roles.get(c) in LATER_ROLES)
    return after if len(after) == 1 else columns


def widen_intervals(
    effects: pd.DataFrame,
    pairs: Iterable[Mapping[str, Any]],
    table: pd.DataFrame,
    attributes: Sequence[AtlasAttribute],
    roles: Mapping[str, str],
) -> pd.DataFrame:
    """Effects whose intervals tell that part of a tied attribute's effect may be theirs, and part
    of theirs the other's.

    Of two attributes that go together, scans tell the sum of the effects better than how it
    divides. A network that stops learning early divides it the same way at every training, so that
    the spread over refits does not show it. The interval of an effect in doubt therefore reaches
    from what refits say to what they would say if it had all of the other's effect, and to what
    they would say if the other had all of its effect that goes with the other.

    Args:
        effects: Of `intervals.with_refits`.
        pairs: Of `ties`.
        table: The training rows, texts; empty where nothing is known.
        attributes: Those whose effects are known; a tie to another changes nothing here.
        roles: Of the columns.

    Returns:
        The effects with `tied_low_hu` (at most 0) and `tied_high_hu` (at least 0), by which their
        intervals are wider.
    """
    known = {a.column: a for a in attributes}
    effects = effects.assign(tied_low_hu=0.0, tied_high_hu=0.0)
    partners: dict[str, list[AtlasAttribute]] = {}
    for pair in pairs:
        for column in ambiguous_columns(pair, roles):
            other = pair["other"] if column == pair["column"] else pair["column"]
            if {column, other} <= known.keys():
                partners.setdefault(column, []).append(known[other])
    for _, rows in effects.groupby("region", sort=False):
        for column, others in partners.items():
            own = explained_part(rows, table, known[column])
            moved = [
                part
                for other in others
                for part in (
                    explained_part(rows, table, other),
                    -explained_values(own, table[other.column], other),
                )
            ]
            for index, row in rows[rows["column"] == column].iterrows():
                changes = [project_effect(part, table[column], row) for part in moved]
                effects.loc[index, "tied_low_hu"] = sum(min(0.0, change) for change in changes)
                effects.loc[index, "tied_high_hu"] = sum(max(0.0, change) for change in changes)
    effects["refit_low_hu"] += effects["tied_low_hu"]
    effects["refit_high_hu"] += effects["tied_high_hu"]
    return effects


def explained_part(
    effects: pd.DataFrame, table: pd.DataFrame, attribute: AtlasAttribute
) -> pd.Series:
    """The generated effect of an attribute in one region, by training row; NaN where its value is
    unknown; HU.
    """
    own, values = effects[effects["column"] == attribute.column], table[attribute.column]
    if attribute.kind == "number":
        per_unit = own.loc[own["kind"] == "slope", "generated_hu"]
        return pd.to_numeric(values, errors="coerce") * (
            float(per_unit.iloc[0]) if len(per_unit) else np.nan
        )
    of_value = own[own["from"] == attribute.reference].set_index("to")["generated_hu"].to_dict()
    return values.map({attribute.reference: 0.0, **of_value}).astype(float)


def explained_values(effect: pd.Series, values: pd.Series, other: AtlasAttribute) -> pd.Series:
    """The part of an effect by row that another attribute foretells: its mean by value, or a line;
    NaN where unknown; HU.
    """
    if other.kind == "category":
        return effect.groupby(values.where(values != "")).transform("mean")
    return slope(effect, values) * pd.to_numeric(values, errors="coerce")


def project_effect(effect: pd.Series, values: pd.Series, contrast: Mapping[str, Any]) -> float:
    """How much an effect by row differs between the rows of a contrast's two values; of numbers
    along a fitted line; HU.
    """
    if contrast["kind"] == "category":
        change = effect[values == contrast["to"]].mean() - effect[values == contrast["from"]].mean()
        return float(change) if np.isfinite(change) else 0.0
    span = 1.0 if contrast["kind"] == "slope" else float(contrast["to"]) - float(contrast["from"])
    return span * slope(effect, values)


def slope(effect: pd.Series, values: pd.Series) -> float:
    """Least squares; 0 where fewer than two numbers are known."""
    numbers = pd.to_numeric(values, errors="coerce")
    both = numbers.notna() & effect.notna()
    return (
        float(stats.linregress(numbers[both], effect[both]).slope)
        if numbers[both].nunique() > 1
        else 0.0
    )
