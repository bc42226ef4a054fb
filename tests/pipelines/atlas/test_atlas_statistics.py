"""Statistics of the atlas on synthetic data with a known truth: refits, cautions, verdicts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.atlas import files
from pipelines.atlas.pages.charts import agreement_plot
from pipelines.atlas.statistics import cautions, findings, intervals, planted, sentences
from pipelines.atlas.statistics.cautions import Caution
from pipelines.atlas.statistics.contrasts import Contrast, contrasts_of
from pipelines.atlas.statistics.findings import (
    classify_agreement,
    false_discovery,
    judge_effects,
    rank_findings,
)
from pipelines.atlas.statistics.outcomes import MEAN, MEAN_WITHOUT_VESSELS, OUTCOMES
from pipelines.atlas.statistics.regional import LUNG_REGIONS
from pipelines.atlas.statistics.regression import estimate_contrasts
from tests.atlas_scans import (
    AGE,
    CONTRASTS,
    DIAGNOSIS,
    EVERY,
    NEVER_CURRENT,
    OUTCOME,
    ROLES,
    SLOPE,
    SMOKING,
    scans,
)
from util.modality import MODALITIES

# --- cautions


def test_effects_through_the_mask_outcomes_and_few_cases_are_warned_of() -> None:
    data = scans()
    data.volume[data.table["SMOKING"] == "Current"] *= 0.7
    through = cautions.mask_cautions(data, [SMOKING, AGE], ROLES)
    assert [c.column for c in through] == ["SMOKING"] and "Current against Never: -3" in through[
        0
    ].text
    assert [c.kind for c in cautions.role_cautions([OUTCOME, SMOKING])] == ["outcome"]
    values = pd.Series(
        ["Never"] * 48 + ["never"] * 12 + ["Ex"] * 30 + ["Current"] * 10 + [""] * 50, name="SMOKING"
    )
    counted = replace(SMOKING, counts=dict(values[values != ""].value_counts()))
    people = pd.Series(range(150)).where(
        values != "Current", 149
    )  # the ten scans of current smokers are of one patient
    counts = cautions.count_cautions([counted], values.to_frame(), people)
    assert Counter(c.kind for c in counts) == {"few cases": 1, "missing": 1, "spelling": 1}
    assert (
        "training patients with Current: only 1." in counts[0].text
        and "'Never' and 'never'" in counts[1].text
    )
    commands = cautions.NextCommands("refit.py --refits 20", "build_atlas.py --fold all/5")
    small, seen = cautions.size_cautions(2, 2, 2, commands)
    assert seen.forbids and seen.text.endswith(commands.cross_fit)
    assert small.forbids and "too small to conclude anything" in small.text
    assert not cautions.size_cautions(96, 96, 0)


# --- refits and verdicts


def test_refit_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        drawn = 10 + 3 * rng.normal(size=7)
        interval = intervals.refit_interval(drawn[0], drawn[1:].tolist())
        held.append(interval["refit_low"] < 10 < interval["refit_high"])
    assert 0.9 < np.mean(held) < 0.99
    assert intervals.refit_interval(1.0, [1.0, 2.0]) == {"refits": 2}


def test_scans_of_one_patient_are_one_in_the_spread_over_patients() -> None:
    common = {"contrast": "A", "column": "A", "kind": "category", "from": "no", "to": "yes"}
    rows = [
        {**common, "case": case, "outcome": MEAN, "region": "lungs", "effect": effect}
        for case, effect in (("a1", 0.0), ("a2", 20.0), ("b", 4.0), ("c", 10.0))
    ]
    frame = pd.DataFrame(rows).assign(mean_abs_hu=1.0, noise_change=np.nan)
    patients = {"a1": "a", "a2": "a", "b": "b", "c": "c"}
    (row,) = intervals.effects_over_patients(frame, patients).to_dict("records")
    assert row["patients"] == 3 and row["generated"] == pytest.approx(8.5)
    assert (row["patients_low"], row["patients_high"]) == (4, 10)
    assert row["patients_sd"] == pytest.approx(np.std([10, 4, 10], ddof=1))
    (row,) = intervals.effects_over_patients(frame).to_dict("records")
    assert row["patients"] == 4 and row["patients_high"] == 20


def test_permuted_refits_give_a_p_value() -> None:
    null = intervals.permuted_null(5.0, [1.0, -2.0, 6.0, 0.0])
    assert null["permuted_max"] == 6 and null["permuted_p"] == pytest.approx(2 / 5)
    assert intervals.permuted_null(-9.0, [1.0] * 4)["permuted_p"] == pytest.approx(1 / 5)
    assert intervals.permuted_null(5.0, []) == {"permuted": 0}


@pytest.mark.parametrize(
    ("generated", "low", "high", "agreement"),
    [
        (41, 21, 55, "agrees"),
        (60, 21, 55, "same sign"),
        (-0.4, 21, 55, "not generated"),
        (0.4, -55, -21, "not generated"),
        (-5, 21, 55, "opposite sign"),
        (0.5, -6, 5, "no effect in either"),
        (-7.6, -58, 22, "cannot tell"),
        (1, -22, 25, "cannot tell"),  # too wide to say none
        (4.9, -6, 5, "cannot tell"),
        (30, -6, 5, "cannot tell"),
        (30, np.nan, np.nan, "cannot tell"),
    ],
)
def test_agreement(generated: float, low: float, high: float, agreement: str) -> None:
    assert classify_agreement(generated, low, high, negligible=10) == agreement


def test_no_effect_depends_on_what_is_negligible_in_an_outcome() -> None:
    assert classify_agreement(0.5, -6, 5, OUTCOMES["share_below_950"].negligible) == "cannot tell"


def test_a_permuted_refit_counts_with_its_largest_region() -> None:
    """Of 8 regions one exceeds 19 refits by chance in two of five atlases, but not all of them."""
    rng = np.random.default_rng(0)
    regions = LUNG_REGIONS
    smallest: list[float] = []
    by_region: list[float] = []
    for _ in range(200):
        drawn = rng.normal(size=(20, len(regions)))
        rows = []
        for refit, values in enumerate(drawn[1:]):
            for region, value in zip((*regions, "outside"), (*values, 99.0), strict=True):
                place = {"contrast": "A", "outcome": MEAN, "region": region, "effect": value}
                rows.append({"refit": f"p{refit}", "kind": "permuted", **place})
        largest = intervals.largest_effects(pd.DataFrame(rows))["A", MEAN]
        assert largest == pytest.approx(np.abs(drawn[1:]).max(1))
        pairs = list(zip(drawn[0], drawn[1:].T, strict=True))
        nulls = [intervals.permuted_null(e, null.tolist(), largest) for e, null in pairs]
        smallest.append(min(null["permuted_p"] for null in nulls))
        alone = [intervals.permuted_null(e, null.tolist()) for e, null in pairs]
        by_region.append(min(null["permuted_p"] for null in alone))
    assert np.mean(np.array(smallest) <= 0.05) < 0.09
    assert np.mean(np.array(by_region) <= 0.05) > 0.2


def test_fewer_refits_than_needed_say_how_to_train_them() -> None:
    commands = cautions.NextCommands(refit="python scripts/refit.py --name r --permutations 19")
    warned = cautions.refit_cautions([{"kind": "permuted", "steps": 5}] * 18, 5, commands)
    assert [c.kind for c in warned] == ["no refits", "no permuted refits"]
    assert all(c.text.endswith(commands.refit) for c in warned)
    enough = [{"kind": kind, "steps": 5} for kind in ("resampled", "permuted") for _ in range(19)]
    assert not cautions.refit_cautions(enough, 5, commands)


def test_one_scanner_per_diagnosis_tells_nothing_of_either() -> None:
    data = scans(120)
    data.table["KERNEL"] = np.where(data.table["DIAGNOSIS"] == "IPF", "sharp", "soft")
    contrasts = contrasts_of(DIAGNOSIS)
    real = estimate_contrasts(data, contrasts, ROLES)
    assert set(real["reason"]) == {"cannot be told apart from the columns adjusted for"}
    warned = cautions.collinear_cautions(real, {contrasts[0].id: "DIAGNOSIS"})
    assert warned[0].forbids and "not claimed" in warned[0].text


def test_regions_without_voxels_have_a_reason() -> None:
    data = scans(60)
    data.outcomes[MEAN, "upper"] = np.nan
    real = estimate_contrasts(data, CONTRASTS, ROLES)
    upper = real[real["region"] == "upper"]
    assert upper["real"].isna().all() and upper["reason"].notna().all()
    assert real.loc[real["region"] == "lungs", "real"].notna().any()


def test_planted_effects_show_bias_and_coverage() -> None:
    truth = pd.Series({"lungs": 7.0, "lower": 20.0, "elsewhere": 0.0})
    bounds = pd.DataFrame({"low": [-9.0, -15.0], "high": [-5.0, -12.0]}, ["lungs", "lower"])
    frame = planted.interval_columns("generated", truth, bounds, -1.0)
    assert frame["generated_holds"].tolist() == ["yes", "no", ""]
    assert frame.loc["lungs", ["generated_low_hu", "generated_high_hu"]].tolist() == [5, 9]
    table = frame.rename_axis("region").reset_index().assign(leaked_hu=[-1.0, -5.0, 0.5])
    sentence = planted.planted_sentence(table.assign(real_holds=""))
    assert "mean absolute bias is 3.0 HU" in sentence and "in 1 of 2." in sentence


def test_false_discoveries_are_controlled() -> None:
    q = false_discovery(pd.Series([0.001, 0.04, np.nan, 0.5]))
    assert q[0] == pytest.approx(0.003) and q[1] == pytest.approx(0.06) and np.isnan(q[2])


def effects(permuted: int = 19, largest: float = 6.0, **generated: float) -> pd.DataFrame:
    rows = []
    for contrast in CONTRASTS:
        for region, hu in {
            "lungs": generated.get(contrast.end, 40.0),
            "upper": 52.0,
            "outside": 0.1,
        }.items():
            rows.append(
                {
                    "contrast": contrast.id,
                    "column": contrast.column,
                    "kind": contrast.kind,
                    "from": contrast.start,
                    "to": contrast.end,
                    "outcome": MEAN,
                    "region": region,
                    "generated": hu,
                    "refit_low": hu - 5,
                    "refit_high": hu + 5,
                    "permuted": permuted,
                    "permuted_max": largest if permuted else np.nan,
                    "permuted_p": 0.05 if abs(hu) > largest else 0.1,
                }
            )
    return pd.DataFrame(rows)


REAL = estimate_contrasts(scans(), CONTRASTS, ROLES)
ROLE_OF = {a.column: a.role for a in EVERY.values()}


def verdicts(tests: pd.DataFrame, contrast: str = NEVER_CURRENT) -> dict[str, str]:
    part = tests[tests["contrast"] == contrast]
    return dict(zip(part["region"], part["verdict"], strict=True))


def test_a_finding_exceeds_permuted_refits_and_holds_in_the_real_scans() -> None:
    assert verdicts(judge_effects(effects(), REAL, ROLE_OF, [])) == {
        "lungs": "finding",
        "upper": "finding",
        "outside": "not judged",
    }
    assert verdicts(judge_effects(effects(largest=45), REAL, ROLE_OF, []))["lungs"] == "not found"
    assert verdicts(judge_effects(effects(permuted=0), REAL, ROLE_OF, []))["lungs"] == "not judged"
    assert verdicts(judge_effects(effects(Current=-40), REAL, ROLE_OF, []))["lungs"] == "not found"
    nothing = scans(seed=3)
    nothing.outcomes[MEAN, "lungs"] = np.random.default_rng(1).normal(-850, 20, 150)
    assert (
        verdicts(
            judge_effects(effects(), estimate_contrasts(nothing, CONTRASTS, ROLES), ROLE_OF, [])
        )["lungs"]
        == "not found"
    )
    assert (
        verdicts(judge_effects(effects(), REAL, ROLE_OF, []), SLOPE)["lungs"] == "not judged"
    )  # its quantiles are


def test_a_caution_that_forbids_decides_first() -> None:
    tied = Caution("tied", "A and B go together.", "AGE", "SMOKING", 0.7, forbids=True)
    tests = judge_effects(effects(), REAL, ROLE_OF, [tied])
    assert set(tests[tests["tested"] == "yes"]["verdict"]) == {"not judged"}
    small = Caution(
        "cohort too small", "The cohort is too small to conclude anything.", forbids=True
    )
    tests = judge_effects(effects(), REAL, ROLE_OF, [small])
    assert not (tests["verdict"] == "finding").any()
    assert tests.loc[tests["tested"] == "yes", "why"].str.contains("too small to conclude").all()


def test_findings_are_ranked_and_have_sentences_with_their_numbers() -> None:
    controls = pd.DataFrame({"control": ["re-worded"], "region": ["lungs"], "mean_abs_hu": [0.44]})
    labels = {c.id: c.label for c in CONTRASTS}
    ranked = rank_findings(judge_effects(effects(), REAL, ROLE_OF, []), labels, controls)
    first = next(row for row in ranked.found if row["contrast"] == NEVER_CURRENT)
    assert first["sentence"].startswith(
        "SMOKING Current against Never: +40 HU [35, 45] in both lungs, strongest in the upper "
        "thirds (+52); the real scans agree (total effect +"
    )
    assert ", direct effect +" in first["sentence"]
    assert first["sentence"].endswith("]). Rewording the prompt changes 0.4 HU.")
    assert [row["rank"] for row in ranked.found] == list(range(1, len(ranked.found) + 1))
    assert all(row["contrast"] != SLOPE for row in ranked.found + ranked.not_found)
    looked_for = rank_findings(
        judge_effects(effects(permuted=0), REAL, ROLE_OF, []), labels, controls
    )
    assert (
        not looked_for.found
        and "Not judged: 0 permuted refits are too few" in looked_for.not_found[0]["sentence"]
    )
    text, reason = sentences.split_reason(looked_for.not_found[0]["sentence"])
    assert text.endswith(").") and reason.startswith("Not judged: 0 permuted refits")
    assert sentences.split_reason(first["sentence"]) == (first["sentence"], "")


def test_findings_of_other_outcomes_name_them() -> None:
    """Emphysema: more of the lung below -950 HU, while the mean hardly changes."""
    data = scans()
    rng = np.random.default_rng(7)
    for place, hu in (("lungs", 0.0), ("upper", 2.0)):
        smokers = (data.table["SMOKING"] == "Current").astype(float)
        shares = 3 + (6 + hu) * smokers + rng.normal(size=len(smokers))
        data.outcomes["share_below_950", place] = shares
    generated = pd.concat(
        [effects(), effects(largest=1.0).assign(outcome="share_below_950", generated=6.1)],
        ignore_index=True,
    ).assign(refit_low=4.0, refit_high=8.0)
    generated.loc[generated["contrast"] == "SMOKING=Never_to_Ex", ["generated", "permuted_p"]] = (
        -0.02,
        1,
    )
    tests = judge_effects(generated, estimate_contrasts(data, CONTRASTS, ROLES), ROLE_OF, [])
    labels = {c.id: c.label for c in CONTRASTS}
    controls = pd.DataFrame({"control": ["re-worded"], "region": ["lungs"], "mean_abs_hu": [0.44]})
    ranked = rank_findings(tests, labels, controls)
    row = next(
        row
        for row in ranked.found
        if (row["contrast"], row["outcome"]) == (NEVER_CURRENT, "share_below_950")
    )
    assert row["sentence"].startswith(
        "SMOKING Current against Never: more of the lung lies below \N{MINUS SIGN}950 HU: "
        "+6.1 points [4.0, 8.0] in both lungs; the real scans agree ("
    )
    assert "Rewording" not in row["sentence"]  # is measured in the mean
    ex = next(
        row
        for row in ranked.not_found
        if (row["contrast"], row["outcome"]) == ("SMOKING=Never_to_Ex", "share_below_950")
    )
    assert "share below −950 HU: 0 points" in ex["sentence"]
    assert {row["outcome"] for row in ranked.found + ranked.not_found} == {MEAN, "share_below_950"}


def test_the_false_discovery_rate_is_that_of_all_outcomes_together() -> None:
    data = scans()
    alone = judge_effects(effects(), estimate_contrasts(data, CONTRASTS, ROLES), ROLE_OF, [])
    noise = np.random.default_rng(5).normal(size=(len(data.table), 2))
    for column, place in enumerate(("lungs", "upper")):
        data.outcomes["detail_sd", place] = noise[:, column]
    both = pd.concat([effects(), effects().assign(outcome="detail_sd")], ignore_index=True)
    tests = judge_effects(both, estimate_contrasts(data, CONTRASTS, ROLES), ROLE_OF, [])
    q = tests[tests["outcome"] == MEAN]["real_q"].dropna().to_numpy()
    assert (q > alone["real_q"].dropna().to_numpy()).all()
    assert not (tests[tests["outcome"] == "detail_sd"]["verdict"] == "finding").any()


def test_means_that_depend_on_vessels_are_warned_of_and_decide_nothing() -> None:
    data = scans()
    current = (data.table["SMOKING"] == "Current").astype(float)
    for place in ("lungs", "upper"):
        shift = 12.0 if place == "upper" else 2.0
        data.outcomes[MEAN_WITHOUT_VESSELS, place] = data.outcomes[MEAN, place] - shift * current
    real = estimate_contrasts(data, CONTRASTS, ROLES)
    (caution,) = cautions.vessel_cautions(real, CONTRASTS)
    assert (
        caution.column == "SMOKING" and caution.value == pytest.approx(12) and not caution.forbids
    )
    assert "HU in the upper thirds with them" in caution.text
    assert not cautions.vessel_cautions(estimate_contrasts(scans(), CONTRASTS, ROLES), CONTRASTS)
    both = pd.concat([effects(), effects().assign(outcome=MEAN_WITHOUT_VESSELS)])
    tests = judge_effects(both.reset_index(drop=True), real, ROLE_OF, [])
    variant = tests[tests["outcome"] == MEAN_WITHOUT_VESSELS]
    assert set(variant["tested"]) == {"no"} and variant["real"].notna().any()
    assert "a variant of the mean" in set(variant["why"])
    ranked = rank_findings(
        tests,
        {c.id: c.label for c in CONTRASTS},
        pd.DataFrame(columns=["control", "region", "mean_abs_hu"]),
    )
    assert {row["outcome"] for row in ranked.found + ranked.not_found} == {MEAN}


def test_scans_of_training_are_not_called_real_scans_without_a_word() -> None:
    """Agreement with scans that the run was trained on shows how well it fits them."""
    labels = {c.id: c.label for c in CONTRASTS}
    controls = pd.DataFrame(columns=["control", "region", "mean_abs_hu"])
    tests = judge_effects(effects(), REAL, ROLE_OF, [])
    names = {
        (0, 40): "; the real scans agree (",
        (30, 40): "; the real scans (30 of 40 used in training) agree (",
        (40, 40): "; the scans that the run was trained on agree (",
    }
    for (seen, total), text in names.items():
        name = sentences.real_scans_name(seen, total)
        ranked = rank_findings(tests, labels, controls, name)
        first = next(row for row in ranked.found if row["contrast"] == NEVER_CURRENT)
        assert text in first["sentence"]


def test_a_total_effect_through_the_diagnosis_stands_before_the_direct_one() -> None:
    """IPF, which current smokers have more often, adds 25 HU to their 40."""
    data = scans(400, association=0.8)
    real = estimate_contrasts(data, CONTRASTS, ROLES)
    tests = judge_effects(effects(), real, ROLE_OF, [])
    row = tests[(tests["contrast"] == NEVER_CURRENT) & (tests["region"] == "lungs")].iloc[0]
    assert row["real_low"] < 40 < row["real_high"]
    assert row["total_low"] > row["real_high"] and 55 < row["total"] < 65
    labels = {c.id: c.label for c in CONTRASTS}
    controls = pd.DataFrame(columns=["control", "region", "mean_abs_hu"])
    ranked = rank_findings(tests, labels, controls)
    said = {row["contrast"]: row["sentence"] for row in [*ranked.found, *ranked.not_found]}
    assert "(total effect +6" in said[NEVER_CURRENT]
    assert said[NEVER_CURRENT].count("direct effect +") == 1


def test_numbers_in_sentences() -> None:
    assert [sentences.format_change(v) for v in (41.2, -3.14, 0.02, -12.6)] == [
        "+41",
        "-3.1",
        "0",
        "-13",
    ]
    assert (
        sentences.format_interval(21.2, 55) == "[21, 55]"
        and sentences.format_interval(-6, 5.4) == "[-6.0, +5.4]"
    )
    row = {"outcome": "percentile_5", "region": "lungs", "refit_low": None, "generated": 0.02}
    assert sentences.generated_part("X", row) == "X: 5th percentile: 0 HU in both lungs"
    assert "least dense tissue) is denser: +2.0" in sentences.generated_part(
        "X", {**row, "generated": 2.0}
    )


# --- files


def test_json_holds_no_nan(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, np.nan], "b": ["x", None]})
    files.write_record(tmp_path, {"rows": frame, "n": np.int64(3), "f": np.float32(0.1)})
    text = (tmp_path / files.ATLAS_RECORD).read_text()
    assert "NaN" not in text and '"n": 3' in text and '"f": 0.1' in text


def test_agreement_plot(tmp_path: Path) -> None:
    tests = judge_effects(effects(), REAL, ROLE_OF, [])
    points = tests[(tests["region"] == "lungs") & (tests["kind"] != "slope")]
    agreement_plot(points, {c.id: c.label for c in CONTRASTS}, tmp_path / "agreement")
    assert "SMOKING Current against Never" in (tmp_path / "agreement.svg").read_text()
    assert (tmp_path / "agreement.png").stat().st_size > 5000
    agreement_plot(points.iloc[:0], {}, tmp_path / "empty")
    assert (tmp_path / "empty.svg").is_file()
    agreement_plot(points, {c.id: c.label for c in CONTRASTS}, tmp_path / "mr", MODALITIES["mr"])
    text = (tmp_path / "mr.svg").read_text()
    assert "Generated difference (a.u.)" in text and "HU" not in text


def test_slopes_and_quantiles_are_one_attribute() -> None:
    contrasts = [c for c in CONTRASTS if c.column == "AGE"]
    assert [c.kind for c in contrasts] == ["quantiles", "slope"] and isinstance(
        contrasts[0], Contrast
    )
    assert findings.FDR == 0.05
