"""Negative controls in the atlas: what changes them is not claimed, and the page says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import acquisition
from options.benchmarks.statistics import AcquisitionBenchmarkOptions
from pipelines.atlas.report import write_pages
from pipelines.atlas.run import AtlasSummary
from pipelines.atlas.statistics.adjustment import Roles
from pipelines.atlas.statistics.cautions import Caution
from pipelines.atlas.statistics.contrasts import AtlasAttribute, contrasts_of
from pipelines.atlas.statistics.findings import judge_effects
from pipelines.atlas.statistics.negative_controls import control_cautions, judge_controls
from pipelines.atlas.statistics.outcomes import MEAN, OUTCOMES
from pipelines.atlas.statistics.regression import RealScans, estimate_contrasts
from tests import atlas_folder

DIAGNOSIS = AtlasAttribute(
    "DIAGNOSIS", "exposure", "category", ("HP", "IPF"), {"HP": 40, "IPF": 40}
)
CONTRASTS = contrasts_of(DIAGNOSIS)
LABELS = {contrast.id: contrast.label for contrast in CONTRASTS}
ROLES = {"DIAGNOSIS": "exposure"}


def controls(noise: float = 0.0, mean: float = 0.0) -> pd.DataFrame:
    """negative_controls.csv of a cohort in which IPF changes noise and mean of air, HU."""
    rng = np.random.default_rng(3)
    index = [f"c{k}" for k in range(80)]
    ipf = np.arange(80) % 2
    outcomes = {
        (MEAN, "lungs"): -850 + 30 * ipf + rng.normal(0, 20, 80),
        (MEAN, "air"): -990 + mean * ipf + rng.normal(0, 2, 80),
        ("detail_sd", "air"): 12 + noise * ipf + rng.normal(0, 2, 80),
        ("detail_sd", "trachea"): np.full(80, np.nan),
    }
    scans = RealScans(
        pd.DataFrame(outcomes, index=index),
        pd.DataFrame({"DIAGNOSIS": np.where(ipf, "IPF", "HP")}, index=index, dtype=object),
        pd.Series(5000.0, index),
        pd.Series(index, index),
    )
    real = estimate_contrasts(scans, CONTRASTS, Roles({"DIAGNOSIS": DIAGNOSIS}, frozenset(), ""))
    return judge_controls(real, CONTRASTS)


def test_noise_forbids_everything_but_means() -> None:
    table = controls(noise=6)
    assert set(table["region"]) == {"air", "trachea"}  # not the lungs
    assert dict(zip(table["region"] + table["outcome"], table["moved"], strict=True)) == {
        "airmean": "no",
        "airdetail_sd": "yes",
        "tracheadetail_sd": "no",
    }
    (caution,) = control_cautions(table, LABELS, ROLES)
    assert "noise (SD) of air outside the body +6" in caution.text
    assert "only its means can be claimed" in caution.text
    claimed = {name for name in OUTCOMES if not caution.forbids_claim("DIAGNOSIS", name)}
    assert claimed == {MEAN} and not caution.forbids_claim("AGE", "detail_sd")


def test_a_shift_of_the_mean_forbids_everything_and_a_small_one_nothing() -> None:
    (caution,) = control_cautions(controls(mean=8), LABELS, ROLES)
    assert all(caution.forbids_claim("DIAGNOSIS", name) for name in OUTCOMES)
    (caution,) = control_cautions(controls(mean=3), LABELS, ROLES)
    assert not caution.forbids and "a few HU" in caution.text


def test_nothing_is_said_of_controls_that_hold_and_of_acquisition_itself() -> None:
    assert control_cautions(controls(), LABELS, ROLES) == []
    assert control_cautions(controls(noise=6), LABELS, {"DIAGNOSIS": "acquisition"}) == []


@pytest.mark.parametrize("outcome", ["detail_sd", MEAN])
def test_verdicts_rest_on_the_outcomes_that_are_forbidden(outcome: str) -> None:
    contrast = CONTRASTS[0]
    effects = pd.DataFrame(
        {
            "contrast": contrast.id, "column": "DIAGNOSIS", "kind": "category", "from": "HP",
            "to": "IPF", "outcome": outcome, "region": "lungs", "generated": 30.0,
            "refit_low": 25.0, "refit_high": 35.0, "permuted": 19, "permuted_max": 2.0,
            "permuted_p": 0.05,
        },
        index=[0],
    )  # fmt: skip
    real = pd.DataFrame(
        {
            "contrast": contrast.id, "outcome": outcome, "region": "lungs", "adjustment": "base",
            "primary": "yes", "cases": 80, "real": 31.0, "low": 28.0, "high": 34.0, "p": 1e-6,
        },
        index=[0],
    )  # fmt: skip
    cautions = control_cautions(controls(noise=6), LABELS, ROLES)
    before = judge_effects(effects, real, ROLES, [])
    after = judge_effects(effects, real, ROLES, cautions)
    assert before["verdict"].tolist() == ["finding"]
    assert after["verdict"].tolist() == ["finding" if outcome == MEAN else "not judged"]


def test_the_page_says_it_before_any_finding(tmp_path: Path) -> None:
    study = atlas_folder.make_atlas(tmp_path / "a", refits=True)
    path = tmp_path / "a" / "atlas.json"
    record = json.loads(path.read_text())
    table = controls(noise=6).assign(contrast=atlas_folder.CONTRASTS[0].id)
    (caution,) = control_cautions(controls(noise=6), LABELS, ROLES)
    rows = json.loads(table.to_json(orient="records"))
    warned = [*record["cautions"], caution.to_row()]
    path.write_text(json.dumps(record | {"negative_controls": rows, "cautions": warned}))
    text = write_pages(tmp_path / "a", study).read_text()  # type: ignore[arg-type]
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads.index("Negative controls: what no disease can change") < heads.index("Findings")
    assert text.count("changes what no disease of the lungs can change") == 1  # not repeated
    assert "no estimate" in text and "trachea" in text


def test_the_page_names_columns_of_acquisition_that_change_controls(tmp_path: Path) -> None:
    study = atlas_folder.make_atlas(tmp_path / "a", refits=True)
    path = tmp_path / "a" / "atlas.json"
    record = json.loads(path.read_text())
    for noise, said in ((6, "Only columns of acquisition change them"), (0, "No attribute")):
        table = controls(noise=noise).assign(contrast=atlas_folder.CONTRASTS[0].id)
        rows = json.loads(table.to_json(orient="records"))
        path.write_text(json.dumps(record | {"negative_controls": rows}))
        text = write_pages(tmp_path / "a", study).read_text()  # type: ignore[arg-type]
        assert said in text
        assert ("No attribute changes them" in text) == (noise == 0)


def test_the_summary_names_what_acquisition_confounds() -> None:
    row = Caution("negative control", "It changes.", "DIAGNOSIS", forbids=True).to_row()
    tests = pd.DataFrame({"contrast": ["a"], "tested": ["yes"], "outcome": ["mean_hu"]})
    frames = {
        "cautions": pd.DataFrame([row]),
        "findings": pd.DataFrame({"contrast": ["a"]}),
        "not_found": pd.DataFrame({"contrast": []}),
        "tests": tests,
    }
    assert "scanned differently: DIAGNOSIS." in AtlasSummary.from_frames(frames).text
    frames["cautions"] = frames["cautions"].assign(forbids="no")
    assert "scanned differently" not in AtlasSummary.from_frames(frames).text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no permuted refits", "too few permuted refits"),
        ("seen", "trained on scans that it is compared with"),
        ("other steps", "trained for other steps than the run"),
    ],
)
def test_the_summary_says_why_nothing_can_be_a_finding(kind: str, said: str) -> None:
    frames = {
        "cautions": pd.DataFrame([Caution(kind, "It is so.", forbids=True).to_row()]),
        "findings": pd.DataFrame({"contrast": []}),
        "not_found": pd.DataFrame({"contrast": []}),
        "tests": pd.DataFrame({"contrast": ["a"], "tested": ["yes"], "outcome": [MEAN]}),
    }
    summary = AtlasSummary.from_frames(frames)
    assert said in summary.text and not summary.conclusive


def test_a_kernel_tied_to_the_diagnosis_is_caught() -> None:
    options = AcquisitionBenchmarkOptions(OUT="", cases=30, size=(28, 24, 20))
    tied, at_random = acquisition.compare_cohorts(options, 1)
    assert tied["kernels"] == "tied" and tied["caught"] and tied["detail_forbidden"]
    assert not at_random["caught"]
    counts = acquisition.summarise([tied, at_random])
    assert counts["tied"]["caught"] == 1 and counts["random"]["caught"] == 0
