"""Sensitivity of the real scans' estimates to unknown cells that are not missing at random.

Imputed values are shifted (Carpenter and Kenward 2013, ch. 10), column by column, and the
regression is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from pipelines.atlas.statistics.adjustment import DIRECT, TOTAL, Adjustment, Roles
from pipelines.atlas.statistics.contrasts import AtlasAttribute, Contrast
from pipelines.atlas.statistics.imputation import MIN_LEVEL_CASES, is_number_column
from pipelines.atlas.statistics.regression import (
    MAIN_PLACE,
    AttributeTables,
    Design,
    Designs,
    RealScans,
)

TABLES = 3  # completed tables of each scenario
SHIFT_SD = 0.5  # by which unknown numbers are higher or lower
LEVEL_SHARE = 0.5  # of the unknown cells of a category that take one level
MAX_LEVELS = 4  # levels of a category that are tried, the commonest first
AT_RANDOM = "missing at random"
COMPLETE = "complete cases"
MISSING_COLUMNS = (
    "contrast",
    "outcome",
    "region",
    "effect",
    "assumption",
    "cases",
    "real",
    "low",
    "high",
)

Scenario = tuple[str, list[pd.DataFrame]]  # the assumption, and tables without unknown cells


def missing_sensitivity(
    scans: RealScans, contrasts: Sequence[Contrast], roles: Roles
) -> pd.DataFrame:
    """Return missing.csv: effects on the mean of both lungs under each assumption.

    Contrasts whose attribute and covariates are known in every case have no rows.
    """
    rows: list[dict[str, Any]] = []
    if MAIN_PLACE in scans.places:
        for column in dict.fromkeys(contrast.column for contrast in contrasts):
            of_column = [contrast for contrast in contrasts if contrast.column == column]
            for adjustment in roles.adjustments(column):
                if adjustment.name in (TOTAL, DIRECT):
                    attribute = roles.attributes[column]
                    rows += _attribute_rows(scans, attribute, adjustment, of_column)
    return pd.DataFrame(rows, columns=list(MISSING_COLUMNS))


def _attribute_rows(
    scans: RealScans,
    attribute: AtlasAttribute,
    adjustment: Adjustment,
    contrasts: Sequence[Contrast],
) -> list[dict[str, Any]]:
    covariates = scans.covariates_known(adjustment.covariates)
    columns = [attribute.column, *covariates]
    rows = []
    for assumption, tables in _scenarios(scans, attribute, columns):
        designs: list[Design] = []
        for table in tables:
            complete = AttributeTables.from_scans(scans.of_cases(table.index, table), attribute)
            designs += complete.designs(covariates, adjustment.volume).designs
        pooled = Designs(designs, 0)
        fits = pooled.fit(scans.outcomes[[MAIN_PLACE]], scans.patient)[0]
        for contrast in contrasts:
            estimate = pooled.estimate(fits, contrast)
            if "reason" not in estimate:
                rows.append(
                    {
                        "contrast": contrast.id,
                        "outcome": MAIN_PLACE[0],
                        "region": MAIN_PLACE[1],
                        "effect": adjustment.effect,
                        "assumption": assumption,
                        **{name: estimate[name] for name in ("cases", "real", "low", "high")},
                    }
                )
    return rows


def _scenarios(
    scans: RealScans, attribute: AtlasAttribute, columns: Sequence[str]
) -> Iterator[Scenario]:
    """Yield each assumption with its completed tables of the attribute and its covariates."""
    completed = scans.completed
    unknown = [column for column in columns if column in completed.imputed]
    if not unknown:
        return
    original = scans.table[list(columns)]
    is_known = original[attribute.column] != ""
    tables = [
        table.assign(**{attribute.column: original[attribute.column]})[list(columns)]
        for table in completed.of_columns(unknown)[:TABLES]
    ]
    yield AT_RANDOM, [table[is_known] for table in tables]
    yield COMPLETE, [original[(original != "").all(axis=1)]]
    for column in unknown:
        cells = original[column] == ""
        rows = is_known
        if column == attribute.column:
            rows = pd.Series(True, original.index)
            imputed = completed.of_columns(unknown)[:TABLES]
            tables = [
                table.assign(**{column: filled[column]})
                for table, filled in zip(tables, imputed, strict=True)
            ]
            yield f"{column} imputed where unknown", tables
        for assumption, shift in _shifts(original[column]):
            yield (
                assumption,
                [table.assign(**{column: shift(table[column], cells)})[rows] for table in tables],
            )
        if column == attribute.column:
            tables = [table.assign(**{column: original[column]}) for table in tables]


def _shifts(values: pd.Series) -> Iterator[tuple[str, Any]]:
    """Yield assumptions on the unknown values of a column, each with its change of the column."""
    column = str(values.name)
    known = values[values != ""]
    if is_number_column(values):
        sd = SHIFT_SD * float(pd.to_numeric(known).std())
        for sign, word in ((1, "higher"), (-1, "lower")):

            def move(filled: pd.Series, cells: pd.Series, step: float = sign * sd) -> pd.Series:
                moved = (pd.to_numeric(filled[cells]) + step).map("{:.6g}".format)
                return filled.mask(cells, moved.reindex(filled.index))

            yield f"unknown {column} {word} by {SHIFT_SD:g} SD", move
        return
    counts = known.value_counts()
    for level in counts.index[counts >= MIN_LEVEL_CASES][:MAX_LEVELS]:

        def assign(filled: pd.Series, cells: pd.Series, value: str = level) -> pd.Series:
            chosen = cells & (cells.cumsum() % round(1 / LEVEL_SHARE) == 0)
            return filled.mask(chosen, value)

        yield f"unknown {column}: {LEVEL_SHARE:.0%} are {level}", assign


def sensitivity_ranges(missing: pd.DataFrame) -> pd.DataFrame:
    """Return the lowest and highest estimate over assumptions, by contrast and effect.

    Columns `at_random` with its interval `low` and `high`, `least` and `most`, HU.
    """
    keys = ["contrast", "effect"]
    at_random = missing[missing["assumption"] == AT_RANDOM].set_index(keys)
    grouped = missing.groupby(keys, sort=False)["real"]
    ranges = pd.DataFrame({"least": grouped.min(), "most": grouped.max()})
    estimates = at_random[["real", "low", "high"]].rename(columns={"real": "at_random"})
    return ranges.join(estimates).reset_index()
