"""The real scans: regressions of regional attenuation on an attribute, with robust errors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm

from pipelines.atlas.statistics.contrasts import AtlasAttribute, Contrast

MIN_LEVEL_CASES = 3  # cases of a level; rarer ones of a covariate are taken together
MIN_RESIDUAL_PATIENTS = (
    8  # patients that must remain beyond the terms, below which nothing is estimated
)
ADJUSTMENT_ORDER = (
    "all+volume",
    "base+diagnosis+volume",
    "base+volume",
    "base",
)  # the first that the cases suffice for
UNKNOWN, OTHER = "(not known)", "(other)"
MIN_UNIQUE_VARIANCE = 1e-3  # share of an attribute's variance that covariates must leave over
ROUNDING_TOLERANCE = 1e-9  # a share so small is rounding
INSEPARABLE = "cannot be told apart from the columns adjusted for"

REAL_COLUMNS = (
    "contrast",
    "region",
    "adjustment",
    "primary",
    "adjusted_for",
    "cases",
    "real_hu",
    "se_hu",
    "low_hu",
    "high_hu",
    "p",
    "vif",
    "reason",
)


@dataclass(frozen=True)
class RealScans:
    """Regional means of real scans and their rows, indexed by case.

    Attributes:
        density: A column a region, HU.
        table: The columns of the clinical table as the text says them, "" where not known.
        volume: Lung volume in ml.
        patient: Who each case is of.
    """

    density: pd.DataFrame
    table: pd.DataFrame
    volume: pd.Series
    patient: pd.Series


@dataclass(frozen=True)
class Roles:
    """Which columns may be adjusted for; `dependants` hang on another column and never are."""

    attributes: Mapping[str, AtlasAttribute]
    dependants: frozenset[str]
    diagnosis: str

    def adjustments(self, column: str) -> dict[str, list[str]]:
        """The sets of covariates for one attribute; exposures are never adjusted for outcomes or
        mediators.
        """

        def having(*roles: str) -> list[str]:
            return [
                c
                for c, a in self.attributes.items()
                if a.role in roles and c != column and c not in self.dependants
            ]

        base = having("demographic", "acquisition")
        sets = {"base": base}
        role = (
            self.attributes[self.diagnosis].role if self.diagnosis in self.attributes else "outcome"
        )
        if self.diagnosis != column and role not in ("outcome", "mediator"):
            sets["base+diagnosis"] = list(dict.fromkeys([*base, self.diagnosis]))
        sets["all"] = list(dict.fromkeys([*base, *having("exposure")]))
        return sets


def estimate_contrasts(
    scans: RealScans, contrasts: Sequence[Contrast], roles: Roles
) -> pd.DataFrame:
    """Every contrast in every region with every set of covariates; a row says why where there is no
    estimate.
    """
    rows: list[dict[str, Any]] = []
    for column in dict.fromkeys(c.column for c in contrasts):
        attribute, own = roles.attributes[column], [c for c in contrasts if c.column == column]
        for name, covariates in roles.adjustments(column).items():
            for volume in (False, True):
                rows += _adjusted(
                    scans,
                    attribute,
                    own,
                    f"{name}{'+volume' if volume else ''}",
                    covariates,
                    volume,
                )
    return _with_primary(pd.DataFrame(rows, columns=list(REAL_COLUMNS)))


def _with_primary(real: pd.DataFrame) -> pd.DataFrame:
    """Marks, for each contrast, the estimate that counts: the richest adjustment that the cases
    suffice for.

    One that the attribute cannot be told apart in counts too: a thinner one would claim what
    belongs to others.
    """
    real["primary"] = "no"
    for _, part in real.groupby("contrast", sort=False):
        feasible = set(
            part.loc[part["real_hu"].notna() | (part["reason"] == INSEPARABLE), "adjustment"]
        )
        chosen = next((name for name in ADJUSTMENT_ORDER if name in feasible), ADJUSTMENT_ORDER[0])
        real.loc[part.index[part["adjustment"] == chosen], "primary"] = "yes"
    return real


def _adjusted(
    scans: RealScans,
    attribute: AtlasAttribute,
    contrasts: Sequence[Contrast],
    adjustment: str,
    covariates: Sequence[str],
    volume: bool,
) -> list[dict[str, Any]]:
    common = {
        "adjustment": adjustment,
        "adjusted_for": " | ".join([*covariates, *(["log lung volume"] if volume else [])]),
    }
    design = Design.from_scans(scans, attribute, covariates, volume)
    rows = []
    for region in scans.density.columns:
        fit = design.fit(scans.density[region], scans.patient)
        for contrast in contrasts:
            found = design.contrast(fit, contrast)
            rows.append({"contrast": contrast.id, "region": region, **common, **found})
    return rows


@dataclass(frozen=True)
class Design:
    """A design matrix: `x` (cases, terms) with the attribute's terms first, `terms` by value (None
    for a number).
    """

    x: pd.DataFrame
    terms: tuple[str, ...]
    attribute: AtlasAttribute

    @staticmethod
    def from_scans(
        scans: RealScans, attribute: AtlasAttribute, covariates: Sequence[str], volume: bool
    ) -> Design:
        values = scans.table[attribute.column]
        values = values[
            values.isin(_levels(values)) if attribute.kind == "category" else values != ""
        ]
        parts = [_own_terms(values, attribute)]
        terms = tuple(parts[0].columns)
        table = scans.table.loc[values.index]
        parts += [covariate_columns(table[c]) for c in covariates]
        if volume:
            logged = np.log(scans.volume.loc[values.index].clip(lower=1e-6))
            parts.append((logged - logged.mean()).to_frame("log lung volume"))
        x = pd.concat(parts, axis=1).astype(float)
        useful = [c for c in x if c in terms or x[c].nunique() > 1]
        return Design(sm.add_constant(x[useful], has_constant="add"), terms, attribute)

    def fit(self, density: pd.Series, patient: pd.Series) -> Any:
        """The regression, with errors robust to unequal spread (HC3) or clustered by patient; None
        where cases are few.
        """
        y = density.reindex(self.x.index).dropna()
        x = self.x.loc[y.index]
        groups = patient.loc[y.index]
        if (
            groups.nunique() - np.linalg.matrix_rank(x.to_numpy()) < MIN_RESIDUAL_PATIENTS
        ):  # scans of one patient do not count twice
            return None
        repeats = groups.duplicated().any()
        how: dict[str, Any] = (
            {"cov_type": "cluster", "cov_kwds": {"groups": pd.factorize(groups)[0]}}
            if repeats
            else {"cov_type": "HC3"}
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a leverage of one gives NaN, which is said as such
            return sm.OLS(y, x).fit(**how, use_t=True)

    def contrast(self, fit: Any, contrast: Contrast) -> dict[str, Any]:
        """Estimate, interval and p of a contrast, or the reason why there is none."""
        if fit is None:
            return {"cases": len(self.x), "reason": "too few cases for so many covariates"}
        name = contrast.end if self.attribute.kind == "category" else self.attribute.column
        found: dict[str, Any] = {"cases": int(fit.nobs)}
        if name not in self.terms:
            rare = contrast.start if self.attribute.kind == "category" and not self.terms else name
            return found | {"reason": f"fewer than {MIN_LEVEL_CASES} cases have {rare}"}
        own = [list(fit.model.exog_names).index(term) for term in self.terms]
        factor = variance_inflation(fit.model.exog, own)
        found["vif"] = round(factor, 2) if np.isfinite(factor) else None
        if not factor < 1 / MIN_UNIQUE_VARIANCE:
            return found | {"reason": INSEPARABLE}
        scale = 1.0 if contrast.kind != "quantiles" else float(contrast.end) - float(contrast.start)
        low, high = sorted(scale * v for v in fit.conf_int().loc[name])
        found |= {
            "real_hu": scale * fit.params[name],
            "se_hu": abs(scale) * fit.bse[name],
            "low_hu": low,
            "high_hu": high,
            "p": fit.pvalues[name],
        }
        return (
            found
            if np.isfinite(found["se_hu"]) and found["se_hu"] > 0
            else {"cases": found["cases"], "reason": "the spread cannot be estimated"}
        )


def _levels(values: pd.Series) -> list[str]:
    counts = values[values != ""].value_counts()
    return [str(v) for v in counts.index[counts >= MIN_LEVEL_CASES]]


def _own_terms(values: pd.Series, attribute: AtlasAttribute) -> pd.DataFrame:
    """The attribute as numbers, or a column for each value but the reference."""
    if attribute.kind == "number":
        return values.astype(float).to_frame(attribute.column)
    if attribute.reference not in set(values):
        return pd.DataFrame(index=values.index)
    return pd.get_dummies(values).drop(columns=attribute.reference)


def covariate_columns(values: pd.Series) -> pd.DataFrame:
    """A covariate as terms: what is not known is a level of its own; rare levels are taken
    together.
    """
    if values.empty:
        return pd.DataFrame(index=values.index)
    numbers = pd.to_numeric(values, errors="coerce")
    known = values != ""
    if numbers[known].notna().all() and numbers.nunique() > 6:
        centred = (numbers - numbers.mean()).fillna(0).to_frame(values.name)
        if (~known).sum() >= MIN_LEVEL_CASES:
            centred[f"{values.name} {UNKNOWN}"] = ~known
        return centred
    said = values.where(known, UNKNOWN)
    said = said.where(said.map(said.value_counts()) >= MIN_LEVEL_CASES, OTHER)
    counts = said.value_counts()
    if counts.get(OTHER, MIN_LEVEL_CASES) < MIN_LEVEL_CASES:
        said = said.replace(OTHER, counts.index[0])
    return pd.get_dummies(said, prefix=str(values.name)).drop(
        columns=f"{values.name}_{said.value_counts().index[0]}"
    )


def variance_inflation(x: np.ndarray, own: Sequence[int]) -> float:
    """Variance inflation of an attribute's terms, taken together, by all other columns of a design;
    1 without others.

    The generalised factor of Fox and Monette (1992), to the power of one over the terms: for a
    number it is the common variance inflation factor, and rare levels of the attribute itself do
    not count.

    Args:
        x: `(cases, columns)`, with the constant.
        own: Places of the attribute's terms.
    """
    if len(own) == x.shape[1]:
        return 1.0
    centred = x - x.mean(0)
    terms, others = centred[:, own], np.delete(centred, own, axis=1)
    left = terms - others @ np.linalg.lstsq(others, terms, rcond=None)[0]
    share = np.linalg.det(left.T @ left) / np.linalg.det(terms.T @ terms)
    return float(share ** (-1 / len(own))) if share > ROUNDING_TOLERANCE else float("inf")
