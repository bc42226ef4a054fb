"""What training cases can show: patients by value, and real differences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.load_cohort import load_cohort
from data.lung_density import lung_means
from data.text.counterfactuals import Intervention
from data.text.prompts import load_template
from options.base_options import DataOptions
from pipelines.evidence import _detectable, real_difference, training_evidence
from pipelines.power import detectable_difference
from tests.commands import TrainedRun


def test_evidence_of_a_cohort(cohort_dir: Path) -> None:
    options = DataOptions(dataroot=str(cohort_dir), template="aiib23")
    cohort = load_cohort(options, seed=0)
    template = load_template("aiib23", cohort.columns)
    sexes = Intervention("SEX", ("Female", "Male"))
    evidence = training_evidence(cohort, template, options, [sexes], None)
    train = cohort.split("train")
    assert evidence["patients"] == len(train)
    rows = [case.row["SEX"] for case in train if case.row["SEX"]]
    assert sum(evidence["values"]["SEX"].values()) == len(rows)
    means = [m["lungs"] for m in lung_means(train, options)]
    groups = {
        sex: [m for case, m in zip(train, means, strict=True) if case.row["SEX"] == sex]
        for sex in ("Female", "Male")
    }
    difference, low, high = evidence["effects"]["SEX=Female,Male"]
    averages = {sex: sum(group) / len(group) for sex, group in groups.items()}
    assert difference == pytest.approx(averages["Male"] - averages["Female"])
    assert low < difference < high
    json.dumps(evidence)  # it goes into the checkpoint


def test_real_difference_of_numbers_is_a_slope(cohort_dir: Path) -> None:
    options = DataOptions(dataroot=str(cohort_dir), template="aiib23")
    cohort = load_cohort(options, seed=0)
    template = load_template("aiib23", cohort.columns)
    cases = [
        replace(case, row={**case.row, "AGE": str(40 + i)}) for i, case in enumerate(cohort.cases)
    ]
    measured = [(case, -800 + 2.0 * i) for i, case in enumerate(cases)]
    found = real_difference(template, Intervention("AGE", ("50", "60")), measured)
    assert found is not None and found[0] == pytest.approx(20)
    assert real_difference(template, Intervention("AGE", ("50", "60")), measured[:3]) is None
    assert real_difference(template, Intervention("SEX", ("Male", "X")), measured) is None


def test_detectable_differences() -> None:
    patients = {"A": 30, "B": 10, "C": 1}
    found = _detectable(patients, ("A", "B", "C"), 20.0)
    assert found == {("A", "B"): detectable_difference(20.0, 40, 0.25)}
    ages = _detectable({str(age): 1 for age in range(40, 80)}, ("50", "70"), 20.0)
    expected = 2.8 * 20 / (40**0.5 * 11.54) * 20
    assert ages["50", "70"] == pytest.approx(expected, rel=0.01)
    assert _detectable(patients, ("A", "B"), None) == {}


def test_the_page_gives_reasons_from_the_checkpoint(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    flags = ("--page", "--how_many", "1", "--vary", "SEX=Male,Female")
    done = trained_run.test(tmp_path / "res", *flags)
    assert done.code == 0, done.text
    (page,) = (tmp_path / "res").rglob("index.html")
    state = json.loads((trained_run.folder / "latest" / "state.json").read_text())
    counts = state["evidence"]["values"]["SEX"]
    text = ", ".join(f"{value} {count}" for value, count in counts.items())
    assert f"Training patients by value: {text}." in page.read_text()
    assert "small cohort" in page.read_text()  # nine scans
