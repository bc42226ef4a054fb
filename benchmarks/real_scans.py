"""Measure the atlas's regressions of real scans on simulated cohorts with a known truth.

No network is trained: a cohort is a table and regional means, drawn from a structural model.
Studies (`--studies`): missing (bias with a quarter of the cells empty, by method), coverage (95 %
intervals of total and direct effects), permuted (permuted columns that become findings).
OUT/figures.json holds the results.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.statistics import RealScansBenchmarkOptions
from options.parser import answer_early, parse

answer_early(__name__, RealScansBenchmarkOptions, __doc__ or "")  # the imports below are slow

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.atlas.statistics.adjustment import DIRECT, TOTAL, Roles
from pipelines.atlas.statistics.contrasts import AtlasAttribute, Contrast, contrasts_of
from pipelines.atlas.statistics.findings import FDR, judge_effects
from pipelines.atlas.statistics.intervals import MIN_PERMUTED, add_refits
from pipelines.atlas.statistics.outcomes import MEAN
from pipelines.atlas.statistics.regional import LUNG_REGIONS
from pipelines.atlas.statistics.regression import RealScans, estimate_contrasts
from util.cli import run_command
from util.files import write_json
from util.markdown import markdown_table

log = logging.getLogger(__name__)

Row = dict[str, Any]
Array = NDArray[np.float64]
Contrasts = Sequence[Contrast]

SMOKING, DIAGNOSIS = ("Never", "Ex", "Current"), ("HP", "IPF", "CTD-ILD")
YES_NO = ("No", "Yes")
# HU of ex and current smokers, IPF, CTD-ILD and ten years of age, by region.
EFFECTS = {
    "lungs": (20.0, 40.0, 25.0, 10.0, -10.0),
    "upper": (35.0, 75.0, 5.0, 5.0, -8.0),
    "lower": (8.0, 12.0, 55.0, 20.0, -12.0),
}
FVC_HU = -0.4  # HU per point of FVC
VOLUME_HU = -20.0  # HU per unit of the logarithm of the lung volume
KERNEL_HU = 8.0
REGION_SD = 5.0  # HU
MISSING = 0.25  # share of empty cells
TRUTH_CASES = 200_000  # cases of which the true total effects are the mean
NULL_COLUMN = "OCCUPATION"
NULL_SD = 6.0  # HU; of the effects that networks generate by chance


def _attribute(column: str, role: str, values: Sequence[str], number: bool) -> AtlasAttribute:
    kind = "number" if number else "category"
    return AtlasAttribute(column, role, kind, tuple(values), dict.fromkeys(values, 50))  # type: ignore[arg-type]


ATTRIBUTES = {
    one.column: one
    for one in (
        _attribute("SEX", "demographic", ("Female", "Male"), False),
        _attribute("AGE", "demographic", ("50", "58", "65", "72", "80"), True),
        _attribute("KERNEL", "acquisition", ("soft", "sharp"), False),
        _attribute("SMOKING", "exposure", SMOKING, False),
        _attribute("DIAGNOSIS", "exposure", DIAGNOSIS, False),
        _attribute(NULL_COLUMN, "exposure", YES_NO, False),
        _attribute("FVC", "mediator", ("60", "70", "80", "90", "100"), True),
    )
}
ROLES = Roles(ATTRIBUTES, frozenset(), "DIAGNOSIS")


@dataclass(frozen=True)
class Cohort:
    """A simulated cohort.

    Attributes:
        table: Columns of the clinical table.
        outcomes: Regional means, HU.
        volume: Lung volume, ml.
    """

    table: pd.DataFrame
    outcomes: pd.DataFrame
    volume: pd.Series

    @classmethod
    def draw(cls, cases: int, patient_sd: float, seed: int, **fixed: str) -> Cohort:
        """Draw a cohort from the structural model, with some columns set to a value for all.

        The same seed gives the same patients, whatever is set.
        """
        rng = np.random.default_rng(seed)
        u = {name: rng.random(cases) for name in ("SEX", "KERNEL", "SMOKING", "DIAGNOSIS", "OCC")}
        z = {name: rng.normal(size=cases) for name in ("AGE", "FVC", "VOLUME", "PATIENT")}
        noise = rng.normal(size=(len(EFFECTS), cases))

        def value(column: str, drawn: Array) -> Array:
            return np.full(cases, fixed[column], object) if column in fixed else drawn

        male = value("SEX", np.where(u["SEX"] < 0.6, "Male", "Female")) == "Male"
        age = value("AGE", np.rint(65 + 10 * z["AGE"])).astype(float)
        sharp = value("KERNEL", np.where(u["KERNEL"] < 0.4, "sharp", "soft")) == "sharp"
        odds = np.exp(np.stack([0 * age, 0.3 + 0.03 * (age - 65), -0.2 + 0.6 * male + 0.3 * sharp]))
        smoking = value("SMOKING", _choose(odds, u["SMOKING"], SMOKING))
        current, ex = smoking == "Current", smoking == "Ex"
        odds = np.exp(np.stack([0 * age, -0.8 + 2.0 * current + 1.0 * ex, -0.5 + 0 * age]))
        diagnosis = value("DIAGNOSIS", _choose(odds, u["DIAGNOSIS"], DIAGNOSIS))
        ipf, ctd = diagnosis == "IPF", diagnosis == "CTD-ILD"
        fvc = 80 - 6 * ipf - 5 * current - 0.2 * (age - 65) + 10 * z["FVC"]
        logged = 8.4 + 0.2 * male + 0.004 * (fvc - 80) - 0.1 * ipf + 0.15 * z["VOLUME"]
        density: dict[tuple[str, str], Array] = {}
        for number, (region, (a, b, c, d, e)) in enumerate(EFFECTS.items()):
            hu = a * ex + b * current + c * ipf + d * ctd + e * (age - 65) / 10 + 5 * male
            hu = hu + FVC_HU * (fvc - 80) + VOLUME_HU * (logged - 8.4) + KERNEL_HU * sharp
            density[MEAN, region] = (
                -850 + hu + patient_sd * z["PATIENT"] + REGION_SD * noise[number]
            )
        table = {
            "SEX": np.where(male, "Male", "Female"),
            "AGE": age.astype(int).astype(str),
            "KERNEL": np.where(sharp, "sharp", "soft"),
            "SMOKING": smoking,
            "DIAGNOSIS": diagnosis,
            NULL_COLUMN: np.where(u["OCC"] < 0.4, "Yes", "No"),
            "FVC": np.rint(fvc).astype(int).astype(str),
        }
        index = pd.Index([f"c{k}" for k in range(cases)], dtype=object)
        return cls(
            pd.DataFrame(table, index, dtype=object),
            pd.DataFrame(density, index),
            pd.Series(np.exp(logged), index),
        )

    def scans(self, table: pd.DataFrame | None = None) -> RealScans:
        """Return the cohort as measured scans, one per patient."""
        table = self.table if table is None else table
        patient = pd.Series(self.volume.index, self.volume.index)
        return RealScans(self.outcomes, table, self.volume, patient)


def _choose(odds: Array, u: Array, levels: Sequence[str]) -> Array:
    """Return a level per case; odds `(levels, cases)`."""
    cumulated = np.cumsum(odds / odds.sum(0), axis=0)
    return np.array(levels, object)[(cumulated < u).sum(0).clip(max=len(levels) - 1)]


CONTRASTS = [
    contrast
    for column in ("SMOKING", "DIAGNOSIS", "AGE")
    for contrast in contrasts_of(ATTRIBUTES[column])
    if contrast.kind != "slope"
]


@cache
def true_effect(contrast: Contrast | str, effect: str, region: str) -> float:
    """Return the true effect of a contrast (by id) in a region, HU.

    Total effects are means over a large cohort with the attribute set to either value; direct
    effects are coefficients of the model.
    """
    one = next(c for c in CONTRASTS if c.id == contrast)
    ex, current, ipf, ctd, age = EFFECTS[region]
    if effect == DIRECT:
        if one.column == "AGE":
            return age * (float(one.end) - float(one.start)) / 10
        sizes = dict(zip((*SMOKING[1:], *DIAGNOSIS[1:]), (ex, current, ipf, ctd), strict=True))
        return sizes[one.end]
    means = []
    for value in (one.start, one.end):
        cohort = Cohort.draw(TRUTH_CASES, 0.0, 0, **{one.column: value})
        means.append(float(cohort.outcomes[MEAN, region].mean()))
    return means[1] - means[0]


def empty_cells(cohort: Cohort, mechanism: str, rng: np.random.Generator) -> pd.DataFrame:
    """Return the table with a quarter of its cells empty.

    Args:
        mechanism: "completely at random", or "at random": sex is known, and other cells are empty
            more often in men and in the elderly, whose age is known, too.
        rng: Source of chance.
    """
    table = cohort.table.copy()
    for column in table:
        chance = np.full(len(table), MISSING)
        if mechanism == "at random":
            if column in ("SEX", "AGE"):
                continue
            old = table["AGE"].astype(float) > 65
            chance = 0.1 + 0.15 * (table["SEX"] == "Male") + 0.12 * old
        table.loc[rng.random(len(table)) < chance, column] = ""
    return table


def with_indicators(table: pd.DataFrame) -> tuple[pd.DataFrame, Roles]:
    """Return the table as missing indicators read it, which versions before 0.3 used."""
    filled, attributes = table.copy(), dict(ATTRIBUTES)
    for column, attribute in ATTRIBUTES.items():
        is_unknown = table[column] == ""
        if attribute.kind == "number":
            mean = pd.to_numeric(table.loc[~is_unknown, column]).mean()
            name = f"{column} known"
            filled[name] = np.where(is_unknown, "No", "Yes")
            filled.loc[is_unknown, column] = f"{mean:.3f}"
            attributes[name] = replace(ATTRIBUTES[NULL_COLUMN], column=name, role=attribute.role)
        else:
            filled.loc[is_unknown, column] = "(not known)"
    return filled, Roles(attributes, frozenset(), "DIAGNOSIS")


def imputed_estimates(cohort: Cohort, table: pd.DataFrame, contrasts: Contrasts) -> pd.DataFrame:
    """Return real.csv as the atlas estimates it."""
    return estimate_contrasts(cohort.scans(table), contrasts, ROLES)


def known_estimates(cohort: Cohort, table: pd.DataFrame, contrasts: Contrasts) -> pd.DataFrame:
    """Return real.csv with every cell known."""
    return estimate_contrasts(cohort.scans(), contrasts, ROLES)


def indicator_estimates(cohort: Cohort, table: pd.DataFrame, contrasts: Contrasts) -> pd.DataFrame:
    """Return real.csv with a level of its own for every unknown covariate."""
    parts = []
    for column in dict.fromkeys(contrast.column for contrast in contrasts):
        filled, roles = with_indicators(table)
        known = table[column] != ""
        scans = cohort.scans(filled.assign(**{column: table[column]}))
        of_column = [contrast for contrast in contrasts if contrast.column == column]
        parts.append(estimate_contrasts(scans.of_cases(known), of_column, roles))
    return pd.concat(parts)


def complete_estimates(cohort: Cohort, table: pd.DataFrame, contrasts: Contrasts) -> pd.DataFrame:
    """Return real.csv of the cases without an empty cell."""
    scans = cohort.scans(table)
    full = (table != "").all(axis=1)
    return estimate_contrasts(scans.of_cases(full), contrasts, ROLES)


METHODS = {
    "imputed": imputed_estimates,
    "complete cases": complete_estimates,
    "indicators": indicator_estimates,
    "every cell known": known_estimates,
}


def missing_study(o: RealScansBenchmarkOptions) -> list[Row]:
    """Return bias and coverage in both lungs by mechanism, method, effect and contrast."""
    rows: list[Row] = []
    for mechanism in ("completely at random", "at random"):
        for seed in range(1, o.cohorts + 1):
            cohort = Cohort.draw(o.cases, o.patient_sd, seed)
            table = empty_cells(cohort, mechanism, np.random.default_rng([seed, 1]))
            for method, estimate in METHODS.items():
                for row in compare_with_truth(estimate(cohort, table, CONTRASTS), ("lungs",)):
                    rows.append({"mechanism": mechanism, "method": method, "cohort": seed, **row})
            log.info("missing, %s: cohort %d of %d", mechanism, seed, o.cohorts)
    frame = pd.DataFrame(rows)
    return _summary(frame, ["mechanism", "method", "effect", "contrast"])


def coverage_study(o: RealScansBenchmarkOptions) -> list[Row]:
    """Return bias and coverage by effect, region and contrast, with a tenth of the cells empty."""
    rows: list[Row] = []
    for seed in range(1, o.cohorts + 1):
        cohort = Cohort.draw(o.cases, o.patient_sd, 1000 + seed)
        rng = np.random.default_rng([seed, 2])
        table = cohort.table.mask(rng.random(cohort.table.shape) < 0.1, "")
        real = estimate_contrasts(cohort.scans(table), CONTRASTS, ROLES)
        rows += [{"cohort": seed, **row} for row in compare_with_truth(real, tuple(EFFECTS))]
        log.info("coverage: cohort %d of %d", seed, o.cohorts)
    return _summary(pd.DataFrame(rows), ["effect", "region", "contrast"])


def compare_with_truth(real: pd.DataFrame, regions: Sequence[str]) -> list[Row]:
    """Return total and direct estimates beside the truth; the total effect of age has none.

    Age acts on smoking on another scale than it is adjusted for.
    """
    rows = []
    chosen = real[real["adjustment"].isin([TOTAL, DIRECT]) & real["region"].isin(regions)]
    for row in chosen.dropna(subset=["real"]).to_dict("records"):
        if row["contrast"].startswith("AGE") and row["effect"] == TOTAL:
            continue
        true = true_effect(row["contrast"], row["effect"], row["region"])
        rows.append(
            {
                "effect": row["effect"],
                "region": row["region"],
                "contrast": row["contrast"],
                "true_hu": true,
                "real_hu": row["real"],
                "width_hu": row["high"] - row["low"],
                "holds": row["low"] <= true <= row["high"],
            }
        )
    return rows


def _summary(frame: pd.DataFrame, keys: list[str]) -> list[Row]:
    """Return truth, mean, bias (with its Monte-Carlo error) and coverage by keys."""
    rows: list[Row] = []
    for values, part in frame.groupby(keys, sort=False):
        true = float(part["true_hu"].iloc[0])
        error = float(part["real_hu"].std() / np.sqrt(len(part)))
        rows.append(
            {
                **dict(zip(keys, values, strict=True)),
                "cohorts": len(part),
                "true_hu": round(true, 1),
                "mean_hu": round(float(part["real_hu"].mean()), 1),
                "bias_percent": round(100 * (float(part["real_hu"].mean()) - true) / true, 1),
                "bias_error_percent": round(100 * error / abs(true), 1),
                "width_hu": round(float(part["width_hu"].mean()), 1),
                "coverage": round(float(part["holds"].mean()), 3),
            }
        )
    return rows


def permuted_study(o: RealScansBenchmarkOptions) -> list[Row]:
    """Return one row per cohort: whether a permuted column becomes a finding.

    Smoking is permuted, so that it has no effect. The effects that a network would generate from it
    are drawn from the same normal distribution as those of its permuted refits.
    """
    regions = [region for region in EFFECTS if region in LUNG_REGIONS]
    rows: list[Row] = []
    for seed in range(1, o.cohorts + 1):
        cohort = Cohort.draw(o.cases, o.patient_sd, 2000 + seed)
        rng = np.random.default_rng([seed, 3])
        table = cohort.table.mask(rng.random(cohort.table.shape) < 0.1, "")
        table["SMOKING"] = rng.permutation(table["SMOKING"].to_numpy())
        effects, refits = [], []
        for contrast in CONTRASTS:
            place = {"contrast": contrast.id, "outcome": MEAN}
            ends = {"column": contrast.column, "kind": contrast.kind}
            ends |= {"from": contrast.start, "to": contrast.end}
            for region in regions:
                effect = true_effect(contrast.id, DIRECT, region)
                if contrast.column == "SMOKING":
                    effect = float(rng.normal(0, NULL_SD))
                effects.append({**place, **ends, "region": region, "generated": effect})
                for refit, null in enumerate(rng.normal(0, NULL_SD, MIN_PERMUTED)):
                    one = {"refit": f"p{refit}", "kind": "permuted", "effect": float(null)}
                    refits.append({**place, "region": region, **one})
        judged = judge_effects(
            add_refits(pd.DataFrame(effects), pd.DataFrame(refits)),
            estimate_contrasts(cohort.scans(table), CONTRASTS, ROLES),
            {column: attribute.role for column, attribute in ATTRIBUTES.items()},
            [],
        )
        is_finding = judged["verdict"] == "finding"
        permuted = is_finding & (judged["column"] == "SMOKING")
        shown = judged["real_q"].le(FDR) & (judged["column"] == "SMOKING")
        rows.append(
            {
                "cohort": seed,
                "declared": bool(permuted.any()),
                "shown_by_real_scans": bool(shown.any()),
                "true_findings": int((is_finding & ~permuted).sum()),
            }
        )
        log.info("permuted: cohort %d of %d", seed, o.cohorts)
    return rows


STUDIES = {"missing": missing_study, "coverage": coverage_study, "permuted": permuted_study}


def summary_sentences(figures: Mapping[str, list[Row]]) -> list[str]:
    """Return a sentence per study."""
    sentences = []
    if "missing" in figures:
        frame = pd.DataFrame(figures["missing"])
        for (mechanism, method), part in frame.groupby(["mechanism", "method"], sort=False):
            sentences.append(
                f"Missing {mechanism}, {method}: mean bias {part['bias_percent'].abs().mean():.1f} "
                f"%, largest {part['bias_percent'].abs().max():.1f} %; coverage "
                f"{part['coverage'].mean():.1%}."
            )
    if "coverage" in figures:
        frame = pd.DataFrame(figures["coverage"])
        held = round((frame["coverage"] * frame["cohorts"]).sum())
        sentences.append(f"Intervals hold the truth in {held} of {frame['cohorts'].sum()}.")
    if "permuted" in figures:
        frame = pd.DataFrame(figures["permuted"])
        sentences.append(
            f"{frame['declared'].sum()} of {len(frame)} permuted columns become a finding (by the "
            f"real scans alone: {frame['shown_by_real_scans'].sum()})."
        )
    return sentences


def main() -> None:
    """Run the studies and write the figures."""
    o = parse(RealScansBenchmarkOptions, __doc__ or "")
    Path(o.OUT).mkdir(parents=True, exist_ok=True)
    figures: dict[str, list[Row]] = {}
    for name in o.studies or tuple(STUDIES):
        figures[name] = STUDIES[name](o)
        write_json(Path(o.OUT) / f"{name}.json", figures[name])
        log.info("%s", markdown_table(pd.DataFrame(figures[name])))
    for sentence in summary_sentences(figures):
        log.info("%s", sentence)


if __name__ == "__main__":
    run_command(main)
