"""Curves and interactions in the real scans, on simulated cohorts with a known truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import real_scans as benchmark
from pipelines.atlas.statistics.additivity import (
    additivity_sentences,
    additivity_tests,
    alike_sentence,
)
from pipelines.atlas.statistics.cautions import additivity_cautions
from pipelines.atlas.statistics.interactions import add_generated, effects_at
from pipelines.atlas.statistics.outcomes import MEAN
from pipelines.atlas.statistics.regression import RealScans

CONTRASTS = [c for c in benchmark.CONTRASTS if c.column in ("SMOKING", "AGE")]
LABELS = {contrast.id: contrast.label for contrast in CONTRASTS}


def scans(by_sex: float = 0.0, curved: float = 0.0, seed: int = 1) -> RealScans:
    """Return 250 simulated patients; smoking does more in men, and age bends, by these HU."""
    made = benchmark.Cohort.draw(250, 10.0, seed).scans()
    male = (made.table["SEX"] == "Male") & (made.table["SMOKING"] == "Current")
    age = made.table["AGE"].astype(float)
    change = by_sex * male + curved * ((age - 65) / 10) ** 2
    return replace(made, outcomes=made.outcomes.add(change, axis=0))


def rows_of(made: RealScans) -> dict[tuple[str, str, str], dict[Any, Any]]:
    frame = additivity_tests(made, CONTRASTS, benchmark.ROLES)[0]
    return {(row["column"], row["test"], row["other"]): row for row in frame.to_dict("records")}


def test_an_effect_that_differs_by_sex_is_told() -> None:
    made = scans(by_sex=40.0)
    row = rows_of(made)["SMOKING", "interaction", "SEX"]
    assert row["q"] < 0.01 and row["contrast"] == "SMOKING=Never_to_Current"
    effects = {row["at_first"]: row["effect_first"], row["at_second"]: row["effect_second"]}
    assert effects["Male"] - effects["Female"] == pytest.approx(40, abs=12)
    tests = additivity_tests(made, CONTRASTS, benchmark.ROLES)[0]
    sentences = additivity_sentences(tests, LABELS)["SMOKING"]
    assert sentences[0].startswith("An additive model does not fit SMOKING: its effect differs by")
    assert "HU at Female" in sentences[0] and "HU at Male" in sentences[0]
    warned = additivity_cautions({"SMOKING": sentences})
    assert warned[0].kind == "not additive" and not warned[0].forbids


def test_a_curved_number_is_told_and_its_spline_follows_it() -> None:
    made = scans(curved=10.0)
    tests, curves = additivity_tests(made, CONTRASTS, benchmark.ROLES)
    row = tests[tests["test"] == "curve"].iloc[0]
    assert row["column"] == "AGE" and row["q"] < 0.01
    sentence = additivity_sentences(tests, LABELS)["AGE"][0]
    assert "does not act along a straight line" in sentence
    for one in curves.to_dict("records"):
        z = (float(one["value"]) - 65) / 10
        truth = -10 * (z + 1.5) + 10 * (z**2 - 1.5**2)
        assert one["low"] - 6 < truth < one["high"] + 6 and abs(one["real"] - truth) < 12


def test_codes_with_a_rare_one_are_no_number() -> None:
    """The column of two codes is an indicator of the rarer one, whatever its code."""
    made = scans(by_sex=40.0)
    common, rarer = made.table["SEX"].value_counts().index
    codes = made.table["SEX"].map({common: "1", rarer: "0"})
    codes.iloc[0] = "2"  # joins the commonest one
    row = rows_of(replace(made, table=made.table.assign(SEX=codes)))[
        "SMOKING", "interaction", "SEX"
    ]
    effects = {row["at_first"]: row["effect_first"], row["at_second"]: row["effect_second"]}
    male, female = ("1", "0") if common == "Male" else ("0", "1")
    assert effects[male] - effects[female] == pytest.approx(40, abs=12)


def test_an_effect_is_told_at_ages_whichever_are_known() -> None:
    """Ages are unknown in the old alone, so that those that are known have another mean."""
    made = benchmark.Cohort.draw(400, 5.0, 3).scans()
    age, current = made.table["AGE"].astype(float), made.table["SMOKING"] == "Current"
    made = replace(made, outcomes=made.outcomes.add(2.0 * (age - 65) * current, axis=0))
    hidden = (age > 70) & (np.arange(len(age)) % 3 > 0)
    row = rows_of(replace(made, table=made.table.assign(AGE=made.table["AGE"].mask(hidden, ""))))[
        "SMOKING", "interaction", "AGE"
    ]
    whole = rows_of(made)["SMOKING", "interaction", "AGE"]
    for end in ("first", "second"):
        at, effect = float(row[f"at_{end}"]), row[f"effect_{end}"]
        truth = whole["effect_first"] + 2.0 * (at - float(whole["at_first"]))
        assert effect == pytest.approx(truth, abs=6)


def test_a_spline_reaches_values_that_no_scan_has() -> None:
    """Values come from the training cases, and scans to compare with may lack the outer ones."""
    made = scans(curved=10.0)
    inner = made.table["AGE"].astype(float).between(53, 77)
    curves = additivity_tests(made.of_cases(inner), CONTRASTS, benchmark.ROLES)[1]
    values = [float(value) for value in benchmark.ATTRIBUTES["AGE"].values]
    assert values[0] < 53 and values[-1] > 77 and len(curves) == len(values) - 1
    first = curves.iloc[0]
    truth = (
        -float(first["value"])
        + values[0]
        + 10 * (((float(first["value"]) - 65) / 10) ** 2 - ((values[0] - 65) / 10) ** 2)
    )
    assert first["low"] < truth < first["high"]


def test_a_value_that_is_not_studied_has_no_interaction() -> None:
    """It may be frequent in the scans and rare in the training."""
    made = scans(by_sex=40.0)
    table = made.table.replace({"SMOKING": {"Current": "Pipe", "Ex": "Pipe"}})
    row = rows_of(replace(made, table=table))["SMOKING", "interaction", "SEX"]
    assert pd.isna(row["p"]) and "no value that is studied" in row["reason"]


def test_an_additive_cohort_is_seldom_called_another() -> None:
    told = 0
    for seed in range(10):
        told += any(row["q"] <= 0.05 for row in rows_of(scans(seed=10 + seed)).values())
    assert told <= 2


def test_what_a_cohort_cannot_tell_has_a_reason() -> None:
    made = scans()
    never = made.table["SMOKING"] == "Never"
    table = made.table.assign(SEX=np.where(never, "Male", made.table["SEX"]))
    row = rows_of(replace(made, table=table))["SMOKING", "interaction", "SEX"]
    assert pd.isna(row["p"]) and "fewer than 5 cases have both" in row["reason"]
    table = made.table.assign(AGE=np.where(made.table["AGE"].astype(int) > 65, "70", "60"))
    row = rows_of(replace(made, table=table))["AGE", "curve", ""]
    assert row["reason"] == "fewer than 8 different values"
    few = made.table.index[:14]
    assert all(pd.isna(row["p"]) for row in rows_of(made.of_cases(few)).values())


def test_unknown_cells_do_not_break_the_tests() -> None:
    made = scans(by_sex=40.0)
    rng = np.random.default_rng(3)
    table = made.table.mask(rng.random(made.table.shape) < 0.1, "")
    row = rows_of(replace(made, table=table))["SMOKING", "interaction", "SEX"]
    assert row["p"] < 0.01 and row["cases"] < 250


def test_a_model_that_changes_all_patients_alike_is_told() -> None:
    effect = {"outcome": MEAN, "patients": 6, "generated": 40.0, "patients_sd": 0.4}
    assert "all patients alike (SD over 6 patients 0.4 HU)" in alike_sentence(effect)
    assert alike_sentence({**effect, "patients_sd": 8.0}) == ""
    assert alike_sentence({**effect, "patients": 2}) == ""


# --- the generator's own interactions


def generated(by_sex: float, cases: pd.DataFrame, refit: str = "") -> list[dict[str, Any]]:
    """Rows of a generator whose effect of smoking is 40 HU, and so much more in men."""
    rows = []
    for case, sex in cases["SEX"].items():
        effect = 40.0 + by_sex * (sex == "Male")
        place = {"outcome": MEAN, "region": "lungs", "contrast": "SMOKING=Never_to_Current"}
        kind = refit.partition("_")[0]
        rows.append({**place, "case": case, "effect": effect, "refit": refit, "kind": kind})
        rows.append({**rows[-1], "region": "upper", "effect": 999.0})
    return rows


@pytest.mark.parametrize(
    ("by_sex", "said"),
    [(35.0, "shows it, too: "), (0.0, "does not show it: "), (-35.0, "shows the opposite: ")],
)
def test_the_generators_interaction_stands_beside_that_of_the_scans(
    by_sex: float, said: str
) -> None:
    made = scans(by_sex=40.0)
    cases = made.table.iloc[:40]
    refits = []
    for k, change in enumerate((-4.0, 0.0, 4.0)):
        refits += generated(by_sex + change, cases, f"resampled_{k}")
        refits += generated(change, cases, f"permuted_{k}")
    tests = additivity_tests(made, CONTRASTS, benchmark.ROLES)[0]
    shown = add_generated(tests, generated(by_sex, cases), refits, cases, CONTRASTS)
    is_smoking = (shown["column"] == "SMOKING") & (shown["other"] == "SEX")
    row = shown[is_smoking].iloc[0]
    sign = 1 if row["at_second"] == "Male" else -1
    assert row["generated_difference"] == pytest.approx(sign * by_sex)
    at = {row["at_first"]: row["generated_first"], row["at_second"]: row["generated_second"]}
    assert at["Female"] == pytest.approx(40) and at["Male"] == pytest.approx(40 + by_sex)
    assert row["generated_cases"] == 40
    assert row["generated_low"] == pytest.approx(sign * by_sex - 4 * 4.3027, abs=0.01)
    assert row["generated_permuted_p"] == (1.0 if by_sex == 0 else 0.25)
    assert said in additivity_sentences(shown, LABELS)["SMOKING"][0]
    # A curve is no interaction, and smoking by age has a line through the patients.
    assert shown.loc[shown["test"] == "curve", "generated_first"].isna().all()


def test_few_patients_show_no_interaction_of_the_generator() -> None:
    effects = pd.Series({"a": 1.0, "b": 2.0, "c": 3.0, "d": 9.0})
    sexes = pd.Series({"a": "Male", "b": "Male", "c": "Male", "d": "Female"})
    assert effects_at(effects, sexes, ("Female", "Male")) is None
    ages = pd.Series({"a": "40", "b": "50", "c": "60", "d": ""})
    assert effects_at(effects, ages, ("45", "70")) == pytest.approx((1.5, 4.0))
    empty = additivity_tests(scans(), [], benchmark.ROLES)[0]
    assert add_generated(empty, [], [], pd.DataFrame(), []).empty
