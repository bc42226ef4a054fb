"""The benchmark of effects: its figures on invented tables, and a small version end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import effects as benchmark
from benchmarks.report.effects_tables import incomplete_frame
from benchmarks.report.planted_truth import effect_metrics, regress_on_table
from util.cli import UserError

TINY = (
    "--patch_size 16,16,16 --ngf 4 --ndf 4 --n_blocks_global 1 --batch_size 2 --gpu_ids -1 "
    "--precision fp32"
)


def pairs(made: list[float], true: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "case": [f"c{i}" for i in range(len(made))],
            "column": "X",
            "region": "lungs",
            "from": "A",
            "to": "B",
            "mean_diff_hu": made,
            "true_hu": true,
        }
    )


def test_slope_signs_and_small_errors() -> None:
    lungs = effect_metrics(pairs([20.0, -10.0, 4.0], [40.0, -20.0, 1.0]))["X"]["lungs"]
    assert lungs["slope"] == pytest.approx(0.5)
    assert lungs["signs_right"] == 1.0
    assert lungs["small_error"] == pytest.approx(3.0)


def test_a_wrong_sign_is_seen() -> None:
    lungs = effect_metrics(pairs([20.0, 20.0], [40.0, -40.0]))["X"]["lungs"]
    assert lungs["signs_right"] == 0.5
    assert lungs["slope"] == pytest.approx(0.0)


def test_the_regression_finds_what_was_put_in_though_cells_are_empty() -> None:
    rng = np.random.default_rng(0)
    n, levels = (
        400,
        {
            "DIAGNOSIS": ["IPF", "CTD-ILD", "HP"],
            "SMOKING HISTORY": ["Never smoker", "Current smoker"],
            "label": ["0", "1"],
            "RISK OCCUPATIONAL": ["No", "Yes"],
        },
    )
    table = pd.DataFrame(
        {c: rng.choice(v, n) for c, v in levels.items()}
        | {"AGE": rng.integers(40, 90, n).astype(str)}
    )
    smokes, has_hp = table["SMOKING HISTORY"] == "Current smoker", table["DIAGNOSIS"] == "HP"
    hu = 40.0 * smokes - 20 * has_hp - table["AGE"].astype(float)
    means = pd.DataFrame({"lungs": hu, "upper": 2 * hu})
    full = regress_on_table(table, means)
    wanted = {
        "SMOKING HISTORY: Never smoker to Current smoker": 40,
        "DIAGNOSIS: IPF to HP": -20,
        "AGE: 45 to 80": -35,
        "RISK OCCUPATIONAL: No to Yes": 0,
    }
    for pair, truth in wanted.items():
        assert full.at[pair, "lungs"] == pytest.approx(truth, abs=1e-6)
        assert full.at[pair, "upper"] == pytest.approx(2 * truth, abs=1e-6)
    holes = table.mask(rng.random(table.shape) < 0.1, "")
    assert regress_on_table(holes, means).at["AGE: 45 to 80", "lungs"] == pytest.approx(-35, abs=5)


def test_a_tied_cohort_has_a_regression_of_its_own() -> None:
    cells = [
        {
            "cases": 96,
            "patient_sd": 0.0,
            "seed": 1,
            "confounding": tie,
            "incomplete": {"AGE": {"lungs": slope}},
        }
        for tie, slope in ((0.0, 0.9), (0.7, 1.3))
    ]
    frame = incomplete_frame(cells, ["AGE"])
    assert frame["confounding"].tolist() == ["0", "0.7"] and frame["lungs"].tolist() == [0.9, 1.3]


def test_small_version_end_to_end(tmp_path: Path) -> None:
    words = [
        "--configurations",
        "default",
        "--cases",
        "10",
        "--test_cases",
        "2",
        "--size",
        "24,24,16",
        "--max_steps",
        "3",
        "--clip_steps",
        "3",
    ]
    benchmark.main([str(tmp_path), *words, f"--train_flags={TINY}"])
    cell = json.loads(next((tmp_path / "cells").glob("*.json")).read_text())
    assert cell["effects"]["RISK OCCUPATIONAL"]["lungs"]["true"] == 0.0
    assert cell["effects"]["SMOKING HISTORY"]["lungs"]["true"] == pytest.approx(41, abs=2)
    assert cell["oracle"]["SMOKING HISTORY: Never smoker to Current smoker"] > 0
    assert (
        cell["incomplete"]["AGE"]["lungs"] != 0
        and cell["incomplete_small"]["RISK OCCUPATIONAL"] > 0
    )
    assert cell["known"].keys() == cell["oracle"].keys() and cell["known"] != cell["oracle"]
    assert cell["sd_hu"] > 0 and cell["w1_floor_hu"] > 0
    assert "| default | 10 |" in (tmp_path / "tables.md").read_text()
    before = next((tmp_path / "cells").glob("*.json")).stat().st_mtime_ns
    benchmark.main([str(tmp_path), *words, f"--train_flags={TINY}"])  # finished cells are kept
    assert next((tmp_path / "cells").glob("*.json")).stat().st_mtime_ns == before


def test_unknown_cell(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--configurations is 'nothing'.*default"):
        benchmark.main([str(tmp_path), "--configurations", "nothing"])
