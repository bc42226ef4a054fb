"""The benchmark of the atlas: arithmetic on invented tables, and a small version of every study."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import atlas as benchmark
from benchmarks.common import flag_words
from data.phantom.cohort import PhantomCohort
from data.phantom.write import make_phantom_cohort
from options.benchmarks.statistics import AtlasBenchmarkOptions
from options.phantom_options import PhantomOptions
from pipelines.atlas import run
from pipelines.atlas.statistics import intervals, sensitivity
from tests.atlas_run import in_this_process

TINY = (
    "--patch_size 16,16,16 --ngf 4 --ndf 4 --n_blocks_global 1 --batch_size 2 --gpu_ids -1 "
    "--precision fp32"
)
SMALL = [
    *flag_words(
        cases=24,
        test_cases=1,
        size=(24, 24, 16),
        max_steps=2,
        cohorts=1,
        refits=3,
        permutations=5,
        planted_cohorts=2,
        text_encoder="table",
    ),
    f"--train_flags={TINY}",
]


def test_lung_rows_say_whether_the_interval_holds_the_truth(tmp_path: Path) -> None:
    root = make_phantom_cohort(
        PhantomOptions(OUT=str(tmp_path), cases=4, size=(24, 24, 16), test_cases=2, val_cases=0)
    )
    rows = []
    for (column, start, end), low, high in zip(
        benchmark.CONTRASTS, (35.0, -5.0, -90.0), (45.0, 5.0, -10.0), strict=True
    ):
        ends = (start, end) if start else ("45", "80")
        rows.append(
            {
                "column": column,
                "kind": "category",
                "from": ends[0],
                "to": ends[1],
                "outcome": "mean",
                "region": "lungs",
                "generated": (low + high) / 2,
                "refit_low": low,
                "refit_high": high,
                "tied_low": -1.0,
                "tied_high": 2.0,
            }
        )
    lungs = benchmark.lung_rows(pd.DataFrame(rows), PhantomCohort.from_folder(root))
    assert [row["holds"] for row in lungs] == [True, False, True]  # truth: +41, +27 and -33 HU
    assert lungs[0]["true_hu"] == pytest.approx(41, abs=2)


def test_ties_compares_mean_widths_of_the_same_cohorts() -> None:
    # Half widths of an interval in HU.
    half = {"coverage_1": 10.0, "coverage_2": 20.0, "tied_1": 15.0, "tied_2": 25.0}

    def keep(name: str, make_it: object) -> dict[str, object]:
        claims = ["AGE", "DIAGNOSIS"] if name == "tied_2" else []
        row = {
            "low_hu": -half[name],
            "high_hu": half[name],
            "true_hu": 13.0,
            "tied_low_hu": -1.0,
            "tied_high_hu": 3.0,
        }
        return {
            "rows": [{"column": "DIAGNOSIS", **row}],
            "findings": claims,
            "cramers_v": half[name] / 50,
            "warnings": ["They go together."] if name == "tied_1" else [],
        }

    figures = benchmark.associations_study(AtlasBenchmarkOptions(OUT="", cohorts=2), keep)
    width = {"free": 30.0, "refits_alone": 36.0, "tied": 40.0}
    assert figures["widths_hu"] == {name: {"DIAGNOSIS": hu} for name, hu in width.items()}
    assert figures["held"] == {
        "refits_alone_hold": {"DIAGNOSIS": 1},
        "hold": {"DIAGNOSIS": 2},
    }  # the first: 13 > 15 - 3
    assert figures["cramers_v"] == pytest.approx(0.4) and figures["claimed"] == [
        "DIAGNOSIS (cohort 2)"
    ]
    sentence = benchmark.summary_sentence("ties", figures)
    assert "1 of 2 cohorts warned of" in sentence and "DIAGNOSIS: 30.0 to 40.0 HU" in sentence


@pytest.mark.slow
def test_every_study_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "train_refits", in_this_process)
    monkeypatch.setattr(intervals, "MIN_PERMUTED", 2)  # of the 19 trainings that a claim takes
    monkeypatch.setattr(sensitivity, "TABLES", 1)  # of three for each assumption
    monkeypatch.setattr(run, "needs_folds", lambda *_: False)  # five more trainings for each run
    monkeypatch.setattr(sys, "argv", ["benchmark_atlas.py", str(tmp_path), *SMALL])
    benchmark.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["coverage"]["pairs"] == 3
    assert all(
        row["low_hu"] <= row["generated_hu"] <= row["high_hu"]
        for row in figures["coverage"]["rows"]
    )
    assert figures["permuted"]["fits"] == 5
    assert figures["ties"]["cramers_v"] > 0.4 and set(figures["ties"]["widths_hu"]) == {
        "free",
        "refits_alone",
        "tied",
    }
    lower = {row["region"]: row["planted_hu"] for row in figures["spike"]["rows"]}
    assert lower["lower"] == pytest.approx(20) and abs(lower["upper"]) < 1
    draws = [row for row in figures["spike"]["draws"] if row["region"] == "lower"]
    assert [row["draw"] for row in draws] == [1, 2] and all(
        row["low_hu"] < row["real_hu"] < row["high_hu"] for row in draws
    )
    assert draws[0]["real_hu"] != draws[1]["real_hu"]
    pieces = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "pieces").iterdir()}
    assert set(pieces) == {
        "coverage_1.json",
        "permuted.json",
        "tied_1.json",
        "spike_1.json",
        "spike_2.json",
    }
    benchmark.main()  # what is finished is kept
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "pieces").iterdir()} == pieces
