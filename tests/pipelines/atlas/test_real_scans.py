"""Regressions of real scans on synthetic data with a known truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipelines.atlas.statistics import cautions
from pipelines.atlas.statistics.adjustment import Adjustment, Roles
from pipelines.atlas.statistics.contrasts import AtlasAttribute, contrasts_of
from pipelines.atlas.statistics.outcomes import MEAN
from pipelines.atlas.statistics.regression import (
    RealScans,
    estimate_contrasts,
)
from tests.atlas_scans import (
    AGE,
    CONTRASTS,
    EVERY,
    KERNEL,
    LEVELS,
    NEVER_CURRENT,
    ROLES,
    SLOPE,
    SMOKING,
    primary,
    scans,
)


def test_regression_finds_what_was_put_in() -> None:
    real = estimate_contrasts(scans(), CONTRASTS, ROLES)
    for contrast, truth in (
        (NEVER_CURRENT, 40),
        ("SMOKING=Never_to_Ex", 20),
        (SLOPE, -1),
        ("AGE=40_to_80", -40),
    ):
        row = primary(real, contrast)
        assert row["low"] < truth < row["high"] and abs(row["real"] - truth) < 0.15 * abs(truth)
        assert row["p"] < 1e-6
    assert primary(real, NEVER_CURRENT)["adjustment"] == "direct"


def test_exposures_are_never_adjusted_for_outcomes_or_what_hangs_on_others() -> None:
    roles = Roles(
        {**EVERY, "PACKS": replace(AGE, column="PACKS", role="exposure")},
        frozenset(["PACKS"]),
        "DIAGNOSIS",
    )
    sets = roles.adjustments("SMOKING")
    base = ("AGE", "KERNEL")
    assert sets == [
        Adjustment("total", base),
        Adjustment("direct: volume", base, True),
        Adjustment("direct: diagnosis, volume", (*base, "DIAGNOSIS"), True),
        Adjustment("direct: other columns", ("AGE", "DIAGNOSIS", "KERNEL")),
        Adjustment("direct", ("AGE", "DIAGNOSIS", "KERNEL"), True),
    ]
    assert not any("diagnosis" in one.name for one in roles.adjustments("DIAGNOSIS"))
    adjusted = set(estimate_contrasts(scans(), CONTRASTS, roles)["adjusted_for"])
    assert any("log lung volume" in s for s in adjusted) and any("log" not in s for s in adjusted)
    assert not any("DEAD" in s or "PACKS" in s for s in adjusted)


def test_an_association_widens_the_interval_of_the_real_scans() -> None:
    loose, tight = (
        primary(estimate_contrasts(scans(association=a), CONTRASTS, ROLES), NEVER_CURRENT)
        for a in (0.0, 0.9)
    )
    assert (
        tight["high"] - tight["low"] > 1.3 * (loose["high"] - loose["low"])
        and tight["vif"] > loose["vif"]
    )


def test_too_few_cases_give_no_estimate_but_a_reason() -> None:
    real = estimate_contrasts(scans(6), CONTRASTS, ROLES)
    assert real["real"].isna().all() and real["reason"].str.contains("few").all()
    one = scans(60)
    one.table["SMOKING"] = "Never"
    real = estimate_contrasts(one, contrasts_of(SMOKING), ROLES)
    assert (
        real["real"].isna().all() and real["reason"].str.contains("fewer than 3 cases have").all()
    )


def test_inseparable_attributes_have_a_reason() -> None:
    same = scans(80)
    same.table["KERNEL"] = np.where(same.table["SMOKING"] == "Current", "sharp", "soft")
    same.table["SMOKING"] = np.where(same.table["SMOKING"] == "Current", "Current", "Never")
    row = primary(estimate_contrasts(same, contrasts_of(SMOKING), ROLES), NEVER_CURRENT)
    assert pd.isna(row["real"]) and "told apart" in row["reason"]


def test_a_thinner_adjustment_does_not_save_an_inseparable_attribute() -> None:
    """The exposures together determine the attribute, though none of them does alone."""
    rng, data = np.random.default_rng(2), scans(120)
    parts = {f"R{k}": rng.integers(0, 2, 120) for k in range(3)}
    data.table["SUM"] = sum(parts.values()).astype(str)  # type: ignore[union-attr]
    for name, values in parts.items():
        data.table[name] = np.where(values, "Yes", "No")
    attribute = AtlasAttribute("SUM", "exposure", "number", ("0", "1", "2", "3"), {"1": 120})
    risks = {
        n: AtlasAttribute(n, "exposure", "category", ("No", "Yes"), {"No": 60, "Yes": 60})
        for n in parts
    }
    roles = Roles({"AGE": AGE, "SUM": attribute, **risks}, frozenset(), "DIAGNOSIS")
    real = estimate_contrasts(data, contrasts_of(attribute), roles)
    row = primary(real, "SUM=0_to_3")
    assert row["adjustment"] == "direct" and pd.isna(row["real"]) and "told apart" in row["reason"]
    warned = cautions.collinear_cautions(real, {c.id: c.column for c in contrasts_of(attribute)})
    assert [c.column for c in warned] == ["SUM"] and warned[0].forbids


def test_rare_levels_of_the_attribute_do_not_inflate_it() -> None:
    data = scans(200)
    rng = np.random.default_rng(5)
    data.table["SMOKING"] = rng.choice(LEVELS, 200, p=(0.05, 0.5, 0.45))
    assert primary(estimate_contrasts(data, CONTRASTS, ROLES), NEVER_CURRENT)["vif"] < 2


def test_scans_of_few_patients_are_too_few_however_many() -> None:
    data = scans(120)
    data.patient[:] = np.resize([f"p{k}" for k in range(6)], 120)
    real = estimate_contrasts(data, CONTRASTS, ROLES)
    assert real["real"].isna().all() and real["reason"].str.contains("too few").all()


def test_refits_of_other_steps_forbid_a_claim() -> None:
    refits = [{"kind": kind, "steps": 50} for kind in ("resampled", "permuted") for _ in range(19)]
    assert not cautions.refit_cautions(refits, 50)
    warned = cautions.refit_cautions(refits, 2000)
    assert [c.kind for c in warned] == ["other steps"] and warned[0].forbids


def test_controls_that_pass_by_themselves_are_named() -> None:
    assert len(
        cautions.built_in_cautions("labels", "phrases")
    ) == 2 and not cautions.built_in_cautions("everywhere", "sentence")


def test_columns_of_low_relevance_are_named() -> None:
    relevance = {"AGE": 0.9, "SEX": 0.1, "BLOOD": 0.0}
    warned = cautions.low_relevance_cautions(relevance, ["AGE", "SEX", "HEIGHT"])
    assert [(c.kind, c.column, c.value) for c in warned] == [("silent", "SEX", 0.1)]


def test_scans_of_one_patient_are_clustered() -> None:
    """An interval that takes repeated scans for new patients is narrower by a factor of 1.4."""
    once = scans(60)
    once.table.loc[once.table["AGE"] == "", "AGE"] = "65"  # imputed values would differ by scan
    index = pd.Index([f"{c}{k}" for k in "ab" for c in once.outcomes.index], dtype=object)

    order = [*range(60), *range(60)]
    doubled = RealScans(
        once.outcomes.iloc[order].set_axis(index),
        once.table.iloc[order].set_axis(index),
        once.volume.iloc[order].set_axis(index),
        once.patient.iloc[order].set_axis(index),
    )
    a, b = (
        primary(estimate_contrasts(s, CONTRASTS, ROLES), NEVER_CURRENT) for s in (once, doubled)
    )
    assert b["real"] == pytest.approx(a["real"]) and b["se"] > 0.8 * a["se"]


def test_a_patient_alone_on_a_scanner_hides_no_effect() -> None:
    """Three scans of one patient are a level of the scanner; without them it has no term."""
    data = scans(60)
    data.table.loc[data.table["AGE"] == "", "AGE"] = "65"
    data.patient[:] = [f"p{k // 2}" for k in range(60)]
    alone = data.table.index[:3]
    data.patient[alone] = "alone"
    data.table.loc[alone, ["KERNEL", "SMOKING"]] = ["rare", "Ex"]
    roles = Roles({a.column: a for a in (SMOKING, KERNEL)}, frozenset(), "")
    contrasts = [*CONTRASTS[:2], *contrasts_of(replace(KERNEL, values=("soft", "rare")))]
    real = estimate_contrasts(data, contrasts, roles).query("adjustment == 'total'")
    rows = real[real["region"] == "lungs"].set_index("contrast")
    rest = data.of_cases(~data.table.index.isin(alone))
    left = estimate_contrasts(rest, CONTRASTS[:2], roles).query("adjustment == 'total'")
    left = left[left["region"] == "lungs"].set_index("contrast")
    for contrast in CONTRASTS[:2]:  # the term of the scanner takes up these scans
        row = rows.loc[contrast.id]
        assert row["real"] == pytest.approx(left.loc[contrast.id, "real"])
        assert row["se"] == pytest.approx(left.loc[contrast.id, "se"], rel=0.01)
    assert rows.loc["KERNEL=soft_to_rare", "reason"] == "the spread cannot be estimated"


def test_clustered_errors_are_those_of_leaving_one_patient_out() -> None:
    rng = np.random.default_rng(4)
    data = scans(45)
    data.patient[:] = rng.choice([f"p{k}" for k in range(22)], 45)
    age = contrasts_of(AGE)[1]
    roles = Roles({"AGE": AGE}, frozenset(), "")
    row = estimate_contrasts(data, [age], roles).query("region == 'lungs'").iloc[0]
    known = data.table["AGE"] != ""
    x = data.table.loc[known, "AGE"].astype(float)
    y, patient = data.outcomes.loc[known, (MEAN, "lungs")], data.patient[known]
    slope = np.polyfit(x, y, 1)[0]
    left = [np.polyfit(x[patient != p], y[patient != p], 1)[0] for p in patient.unique()]
    variance = (len(left) - 1) / len(left) * np.square(np.array(left) - slope).sum()
    assert row["real"] == pytest.approx(slope) and row["se"] == pytest.approx(variance**0.5)
    half = stats.t.ppf(0.975, len(left) - 1) * variance**0.5
    assert row["high"] - row["real"] == pytest.approx(half)
