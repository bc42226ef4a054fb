"""Tests of additivity in the real scans: curves of numbers, and effects that differ by sex and age.

The regressions of `regression` take a number as a straight line and an effect as the same in all
patients. Here their residuals are tested for what that leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from patsy import dmatrix  # type: ignore[import-untyped]
from statsmodels.stats.multitest import multipletests

from pipelines.atlas.statistics.adjustment import Roles
from pipelines.atlas.statistics.contrasts import AtlasAttribute, Contrast
from pipelines.atlas.statistics.imputation import PooledEstimate, is_number_column
from pipelines.atlas.statistics.least_squares import ALL, RobustFit
from pipelines.atlas.statistics.regression import (
    MAIN_PLACE,
    AttributeTables,
    Design,
    RealScans,
)

SPLINE_DF = 4  # a natural cubic spline: constant, line, and two terms of curvature
MIN_SPLINE_VALUES = 8  # distinct values of a number that has a curve
MIN_CELL = 5  # cases of each pair of values of an interaction
MAX_Q = 0.05  # false-discovery rate of what is told
MIN_ALIKE_PATIENTS = 3  # whose generated effects are compared
# A generated effect is alike in all patients up to this SD, or up to this share of it.
MIN_ALIKE_HU, ALIKE_SHARE = 0.5, 0.05
CURVE = "curve"
INTERACTION = "interaction"
ADDITIVITY_COLUMNS = (
    "column",
    "test",
    "other",
    "outcome",
    "region",
    "cases",
    "p",
    "q",
    "contrast",
    "at_first",
    "effect_first",
    "at_second",
    "effect_second",
    "reason",
)
CURVE_COLUMNS = ("column", "value", "outcome", "region", "cases", "real", "low", "high")

Array = NDArray[np.floating]
Row = dict[str, Any]


def additivity_tests(
    scans: RealScans, contrasts: Sequence[Contrast], roles: Roles
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return additivity.csv and curves.csv, of the mean of both lungs.

    Every studied number is tested for a curve, and every studied column for an effect that differs
    by each demographic column. Wald tests use the robust errors of the regression; over completed
    tables the median p value counts (Eekhout, van de Wiel and Heymans 2017).
    """
    rows: list[Row] = []
    curves: list[Row] = []
    place = {"outcome": MAIN_PLACE[0], "region": MAIN_PLACE[1]}
    if MAIN_PLACE in scans.places:
        for column in dict.fromkeys(contrast.column for contrast in contrasts):
            attribute = roles.attributes[column]
            model = _AttributeModel(AttributeTables.from_scans(scans, attribute), roles)
            of_column = [c for c in contrasts if c.column == column and c.kind != "slope"]
            if attribute.kind == "number":
                rows.append({"column": column, "test": CURVE, "other": "", **model.test_curve()})
                curves += [{"column": column, **row, **place} for row in model.curve()]
            for other in _modifiers(roles, column, scans):
                tested = model.test_interaction(other, of_column)
                rows.append({"column": column, "test": INTERACTION, "other": other, **tested})
    frame = pd.DataFrame([{**row, **place} for row in rows], columns=list(ADDITIVITY_COLUMNS))
    known = frame["p"].notna()
    if known.any():
        frame.loc[known, "q"] = multipletests(frame.loc[known, "p"].astype(float), method="fdr_bh")[
            1
        ]
    return frame, pd.DataFrame(curves, columns=list(CURVE_COLUMNS))


def _modifiers(roles: Roles, column: str, scans: RealScans) -> list[str]:
    """Return the demographic columns, such as sex and age, that an effect may differ by."""
    names = []
    for name, attribute in roles.attributes.items():
        if attribute.role == "demographic" and name != column and name not in roles.dependants:
            names.append(name)
    return scans.covariates_known(names)


class _AttributeModel:
    """The regression of one attribute on the mean of both lungs, to which terms are added.

    Args:
        tables: The cases whose value of the attribute is known.
        roles: The roles of the columns.
    """

    def __init__(self, tables: AttributeTables, roles: Roles) -> None:
        self.tables = tables
        self.scans = tables.scans
        self.attribute: AtlasAttribute = tables.attribute
        column = self.attribute.column
        self.covariates = self.scans.covariates_known(roles.direct(column))
        self.designs = tables.designs(self.covariates, volume=True).designs
        self.measured = self.scans.outcomes[[MAIN_PLACE]]

    def _fits(self, extra: Sequence[Array]) -> list[RobustFit] | None:
        """Fit each table's regression with more columns; None where cases are too few."""
        fits = []
        for design, columns in zip(self.designs, extra, strict=True):
            wider = Design(
                np.hstack([design.x, columns]), design.cases, design.terms, design.attribute
            )
            fit = wider.fit(self.measured, self.scans.patient, ALL)[0]
            if fit is None:
                return None
            errors = fit.errors[design.own_terms], fit.errors[-columns.shape[1] :]
            if not np.isfinite(np.concatenate(errors)).all():
                return None
            fits.append(fit)
        return fits

    def _test(self, extra: Sequence[Array]) -> tuple[list[RobustFit] | None, Row]:
        """Return the fits with more columns, and a joint test of these."""
        fits = self._fits(extra)
        cases = {"cases": len(self.tables.terms)}
        if fits is None:
            return None, cases | {"reason": "too few cases for so many terms"}
        values = [
            fit.wald_p(slice(-columns.shape[1], None))
            for fit, columns in zip(fits, extra, strict=True)
        ]
        return fits, {"cases": fits[0].cases, "p": float(np.median(values))}

    def _curvature(self) -> tuple[Array, Array] | None:
        """Return the curvature terms of the cases, and of the attribute's values shown.

        They are a natural cubic spline (patsy's `cr`) without its constant and its line.
        """
        x = self.tables.terms.to_numpy(float)[:, 0]
        if len(np.unique(x)) < MIN_SPLINE_VALUES:
            return None
        shown = np.array([float(value) for value in self.attribute.values])
        low, high = (float(end([*x, *shown])) for end in (min, max))
        bounds = f"lower_bound={low}, upper_bound={high}"  # a spline has no values beyond its ends
        basis = dmatrix(f"cr(x, df={SPLINE_DF}, {bounds}) - 1", {"x": x})
        at_values = dmatrix(basis.design_info, {"x": shown})
        line = np.column_stack([np.ones_like(x), x])
        coefficients = np.linalg.lstsq(line, np.asarray(basis), rcond=None)[0]
        residual = np.asarray(basis) - line @ coefficients
        axes = np.linalg.svd(residual, full_matrices=False)[2][: SPLINE_DF - 2].T
        lines = np.column_stack([np.ones_like(shown), shown])
        return residual @ axes, (np.asarray(at_values) - lines @ coefficients) @ axes

    def test_curve(self) -> Row:
        """Test whether a number acts along a straight line."""
        curvature = self._curvature()
        if curvature is None:
            reason = f"fewer than {MIN_SPLINE_VALUES} different values"
            return {"cases": len(self.tables.terms), "reason": reason}
        return self._test([curvature[0]] * len(self.designs))[1]

    def curve(self) -> list[Row]:
        """Return the spline of a number at its values, against the first of them."""
        curvature = self._curvature()
        if curvature is None:
            return []
        at_cases, at_values = curvature
        fits = self._fits([at_cases] * len(self.designs))
        if fits is None:
            return []
        shown = [float(value) for value in self.attribute.values]
        rows = []
        for number, value in enumerate(self.attribute.values[1:], 1):
            changes = []
            for fit in fits:
                weights = np.zeros(len(fit.values))
                weights[1] = shown[number] - shown[0]
                weights[-at_cases.shape[1] :] = at_values[number] - at_values[0]
                changes.append(fit.combine(weights))
            values, errors = zip(*changes, strict=True)
            pooled = PooledEstimate.from_tables(values, errors, fits[0].df)
            low, high = pooled.interval()
            bounds = {"real": pooled.value, "low": low, "high": high}
            rows.append({"value": value, "cases": fits[0].cases, **bounds})
        return rows

    def test_interaction(self, other: str, contrasts: Sequence[Contrast]) -> Row:
        """Test whether an effect differs by another column, and return it at two of its values."""
        cases = len(self.tables.terms)
        known = self.scans.table.loc[self.tables.terms.index]
        reason = _rare_pair(known[self.attribute.column], known[other], self.attribute)
        if reason:
            return {"cases": cases, "reason": reason}
        terms = self.tables.terms.to_numpy(float)
        if not terms.shape[1]:
            return {"cases": cases, "reason": "the reference is not among the cases"}
        if not any(self._term(contrast) in self.tables.terms for contrast in contrasts):
            return {"cases": cases, "reason": "no value that is studied is among the cases"}
        blocks: list[Array] = []
        for number in range(len(self.designs)):
            # A column without unknown cells is the same in every table.
            same = min(number, len(self.scans.completed.of_columns([other])) - 1)
            blocks.append(self.tables.block(same, other))
        width = min(block.shape[1] for block in blocks)
        if not width or any(block.shape[1] != width for block in blocks):
            return {"cases": cases, "reason": f"{other} hardly varies"}
        extra: list[Array] = []
        for block in blocks:
            centred = block - block.mean(0)
            products = (terms - terms.mean(0))[:, :, None] * centred[:, None, :]
            extra.append(products.reshape(len(terms), -1))
        fits, row = self._test(extra)
        if fits is None:
            return row
        return row | self._at_two_values(other, fits, blocks, contrasts)

    def _term(self, contrast: Contrast) -> str:
        """Return the term of the regression that a contrast compares with the reference."""
        return contrast.end if self.attribute.kind == "category" else contrast.column

    def _at_two_values(
        self,
        other: str,
        fits: Sequence[RobustFit],
        blocks: Sequence[Array],
        contrasts: Sequence[Contrast],
    ) -> Row:
        """Return the effect of the contrast that differs most, at two values of another column."""
        values = self.scans.table.loc[self.tables.terms.index, other]
        (first, second), points = _two_values(values, blocks)
        count, width = len(self.tables.terms.columns), blocks[0].shape[1]
        names = [str(term) for term in self.tables.terms.columns]
        best: Row = {}
        for contrast in contrasts:
            if self._term(contrast) not in names:
                continue
            index = names.index(self._term(contrast))
            scale = 1.0
            if contrast.kind == "quantiles":
                scale = float(contrast.end) - float(contrast.start)
            effects = []
            for point in points:
                changes = []
                for fit, place in zip(fits, point, strict=True):
                    products = fit.values[-count * width :].reshape(count, width)[index]
                    changes.append(scale * (fit.values[1 + index] + products @ place))
                effects.append(float(np.mean(changes)))
            difference = abs(effects[1] - effects[0])
            if not best or difference > abs(best["effect_second"] - best["effect_first"]):
                best = {
                    "contrast": contrast.id,
                    "at_first": first,
                    "effect_first": effects[0],
                    "at_second": second,
                    "effect_second": effects[1],
                }
        return best


def _two_values(values: pd.Series, blocks: Sequence[Array]) -> tuple[list[str], list[list[Array]]]:
    """Return the outer quantiles of a number, or the two commonest values of a category.

    Args:
        values: The column as texts by case, "" where it is not known.
        blocks: Its columns `(cases, columns)` in each completed table.

    Returns:
        The values, and for each its place in every table: its columns less their mean.
    """
    known = values[values != ""]
    if is_number_column(values):
        chosen = [f"{v:g}" for v in pd.to_numeric(known).quantile([0.1, 0.9])]
        one = int(np.flatnonzero(values != "")[0])  # columns are the number, less a constant
        shifts = [block[one] - float(values.iloc[one]) - block.mean(0) for block in blocks]
        return chosen, [[float(value) + shift for shift in shifts] for value in chosen]
    chosen = [str(value) for value in known.value_counts().index[:2]]
    points = []
    for value in chosen:
        rows = (values == value).to_numpy()
        points.append([block[rows].mean(0) - block.mean(0) for block in blocks])
    return chosen, points


def _rare_pair(first: pd.Series, second: pd.Series, attribute: AtlasAttribute) -> str:
    """Return why the cohort cannot tell an interaction of two categories, or ""."""
    known = (first != "") & (second != "")
    numbers = pd.to_numeric(second[known], errors="coerce")
    if attribute.kind != "category" or numbers.notna().all():
        return ""
    table = pd.crosstab(first[known], second[known])
    common = table.loc[:, table.sum() >= MIN_CELL]
    if common.shape[1] < 2:
        return f"fewer than {MIN_CELL} cases have a second value of {second.name}"
    rare = common.stack()
    rare = rare[rare < MIN_CELL]
    if len(rare):
        one, other = rare.index[0]
        return f"fewer than {MIN_CELL} cases have both {one} and {other}"
    return ""


def alike_sentence(effect: Mapping[str, Any]) -> str:
    """Return that the model changes all patients alike, or "".

    Args:
        effect: Row of effects.csv of a mean.
    """
    sd, mean = effect.get("patients_sd"), effect["generated"]
    if pd.isna(sd) or effect.get("patients", 0) < MIN_ALIKE_PATIENTS:
        return ""
    if sd > max(MIN_ALIKE_HU, ALIKE_SHARE * abs(mean)):
        return ""
    return (
        f"The model changes all patients alike (SD over {effect['patients']:.0f} patients "
        f"{sd:.1f} HU): it says nothing of how this patient differs from others."
    )


def _generated_text(row: Mapping[Any, Any]) -> str:
    """Return what the generator shows of an interaction of the real scans, or ""."""
    first, second = row.get("generated_first"), row.get("generated_second")
    if first is None or second is None or pd.isna(first) or pd.isna(second):
        return ""
    real = row["effect_second"] - row["effect_first"]
    generated = second - first
    numbers = f"{first:+.0f} HU and {second:+.0f} HU"
    if abs(generated) < max(MIN_ALIKE_HU, ALIKE_SHARE * abs(real)):
        return f" The generator does not show it: {numbers}."
    verb = "shows it, too" if np.sign(generated) == np.sign(real) else "shows the opposite"
    return f" The generator {verb}: {numbers}."


def additivity_sentences(tests: pd.DataFrame, labels: Mapping[str, str]) -> dict[str, list[str]]:
    """Return, by column, sentences on what an additive model does not fit."""
    sentences: dict[str, list[str]] = {}
    for row in tests.to_dict("records"):
        if not (pd.notna(row["q"]) and row["q"] <= MAX_Q):
            continue
        column = str(row["column"])
        shown = ""
        if row["test"] == CURVE:
            what = "it does not act along a straight line"
        else:
            what = (
                f"its effect differs by {row['other']} ({labels[row['contrast']]}: "
                f"{row['effect_first']:+.0f} HU at {row['at_first']}, {row['effect_second']:+.0f} "
                f"HU at {row['at_second']})"
            )
            shown = _generated_text(row)
        text = (
            f"An additive model does not fit {column}: {what}; real scans, mean of both lungs, "
            f"p = {row['p']:.2g}.{shown}"
        )
        sentences.setdefault(column, []).append(text)
    return sentences
