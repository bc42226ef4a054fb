"""The benchmark of kinds: baselines, deformed chests, and a small version end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import kinds as benchmark
from benchmarks.real_chests import deformed_chests, find_chests, split_chests
from benchmarks.report import kinds_measure
from benchmarks.report.kinds_baselines import baselines, transfer
from benchmarks.report.kinds_measure import measure_effects, measure_texture
from benchmarks.report.kinds_tables import summary
from data.phantom.kinds.cohort import KindsCohort, make_kinds_cohort, phantom_chests
from data.phantom.kinds.columns import GROUPS, NULL
from options.benchmarks import common
from util.cli import UserError

TINY = (
    "--patch_size 16,16,16 --ngf 4 --ndf 4 --n_blocks_global 1 --batch_size 2 --gpu_ids -1 "
    "--precision fp32"
)
WORDS = ("--cases", "12", "--test_cases", "2", "--size", "24,24,16", "--max_steps", "2")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> KindsCohort:
    cases = tuple(f"c{i}" for i in range(34))
    splits = {"train": cases[:-2], "test": cases[-2:]}
    root = tmp_path_factory.mktemp("kinds") / "cohort"
    chests = phantom_chests(cases, 1, (24, 24, 16))
    return KindsCohort.from_folder(make_kinds_cohort(root, "interaction", splits, chests, 1))


def test_the_truth_measured_as_a_model_is_the_truth(cohort: KindsCohort) -> None:
    def render(case: str, row: dict[str, str], draw: int) -> np.ndarray:
        cells = {name: value for name, value in row.items() if name != "File Name"}
        return cohort.render(case, cells).hu

    effects = measure_effects(cohort, render, draws=2)
    right = effects["ASPIRATION"]["right_lung"]["mean_hu"]
    assert right["true"] == pytest.approx(29, abs=1) and right["error"] == 0
    for regions in effects.values():
        for statistics in regions.values():
            for values in statistics.values():
                assert values["generated"] == pytest.approx(values["true"], abs=1e-6)
    texture = measure_texture(cohort, render)
    assert texture["detail ratio"] == pytest.approx(1) and texture["seed correlation"] == 1


def test_a_ratio_to_scans_that_have_none_is_not_infinite(
    cohort: KindsCohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds_measure, "vessel_share", lambda hu, lungs: float(hu.max() > 5000))

    def bright(case: str, row: dict[str, str], draw: int) -> np.ndarray:
        return cohort.render(case).hu + np.float32(10_000)

    assert np.isnan(measure_texture(cohort, bright)["vessel ratio"])


def test_least_squares_finds_what_adds_up_and_not_the_rest(cohort: KindsCohort) -> None:
    effects = measure_effects(cohort, baselines(cohort, 1)["least squares"], draws=1)
    aspiration = effects["ASPIRATION"]
    right, left = (aspiration[side]["mean_hu"] for side in ("right_lung", "left_lung"))
    assert right["generated"] - left["generated"] == pytest.approx(29, abs=4)
    assert right["error"] is None
    u_shape = effects["AGE 62 to 85"]["lungs"]["mean_hu"]
    assert u_shape["true"] > 40 and abs(u_shape["generated"]) < 20  # a slope cannot show it


def test_residuals_of_other_patients_bring_texture(cohort: KindsCohort) -> None:
    models = baselines(cohort, 1)
    texture = {name: measure_texture(cohort, model) for name, model in models.items()}
    assert texture["least squares"]["seed correlation"] == 1
    assert texture["mean + residual"]["seed correlation"] < 0.7
    assert texture["mean + residual"]["detail ratio"] > texture["least squares"]["detail ratio"]


def test_values_move_to_the_same_place_of_another_chest(cohort: KindsCohort) -> None:
    source, target = cohort.chest("c0"), cohort.chest("c1")
    labels = source.anatomy.labels.astype(np.float32)
    np.testing.assert_array_equal(transfer(labels, source, target), target.anatomy.labels)
    height = transfer(np.ascontiguousarray(source.anatomy.height), source, target)
    gap = np.abs(height - target.anatomy.height)[target.lungs]
    assert gap.mean() < 0.1


def test_deformed_chests_differ_and_are_split_by_chest(chest_folder: Path) -> None:
    chests = split_chests(find_chests([str(chest_folder)]), seed=1)
    assert {len(part) for part in chests.values()} == {1}
    assert chests["train"] != chests["test"]
    splits = {"train": ("a", "b"), "test": ("c",)}
    made = {chest.case: chest for chest in deformed_chests(splits, chests, 8.0, seed=1)}
    assert made.keys() == {"a", "b", "c"}
    for chest in made.values():
        lungs = np.isin(chest.mask.array, (1, 2))
        assert chest.hu.shape == chest.mask.shape
        assert chest.hu.array[lungs].mean() == pytest.approx(-740, abs=60)
        np.testing.assert_allclose(np.diag(chest.hu.affine)[:3], 8)
    assert (made["a"].mask.array != made["b"].mask.array).mean() > 0.005


def test_small_version_end_to_end(tmp_path: Path) -> None:
    words = [str(tmp_path), *WORDS, "--groups", "rare", "--text_encoder", "table", "--seeds", "1"]
    words += ["--draws", "2", f"--train_flags={TINY}", "--tag", "_tiny"]
    benchmark.main([*words, "--models", "pix2pixhd"])
    cells = {path.stem: path for path in (tmp_path / "cells").glob("*.json")}
    assert len(cells) == 3
    cell = json.loads(cells["rare_phantom_seed1_pix2pixhd_tiny"].read_text())
    assert cell["effects"][NULL.name]["lungs"]["mean_hu"]["true"] == 0
    assert cell["effects"]["DRUG TOXICITY"]["lower"]["mean_hu"]["true"] > 60
    text = (tmp_path / "tables.md").read_text()
    assert "| phantom | rare | DRUG TOXICITY | lower | mean_hu |" in text
    assert "pix2pixhd_tiny" in text and "seed correlation" in text
    before = {path: path.stat().st_mtime_ns for path in cells.values()}
    benchmark.main([*words, "--models", "pix2pixhd"])  # finished cells are kept
    assert before == {path: path.stat().st_mtime_ns for path in cells.values()}


def test_small_version_in_scanned_chests(tmp_path: Path, chest_folder: Path) -> None:
    words = [str(tmp_path), "--chests", str(chest_folder), "--spacing", "12", "--cases", "12"]
    words += ["--test_cases", "2", "--max_steps", "2", "--text_encoder", "table", "--seeds", "1"]
    words += ["--models", "diffusion", "--draws", "1", "--test_flags", "--sampling_steps 2"]
    benchmark.main([*words, "--groups", "fat", f"--train_flags={TINY}"])
    cells = [json.loads(path.read_text()) for path in (tmp_path / "cells").glob("*.json")]
    assert {cell["model"] for cell in cells} == {"diffusion", "least squares", "mean + residual"}
    assert all(cell["anatomy"] == "real" for cell in cells)
    assert "body" in summary(cells)


def test_the_flag_names_every_group() -> None:
    assert tuple(GROUPS) == common.GROUPS


def test_bad_input(tmp_path: Path) -> None:
    out = str(tmp_path)
    for words, message in (
        (["--groups", "nothing"], "--groups is 'nothing'.*texture"),
        (["--models", "nothing"], "--models is 'nothing'.*diffusion"),
        (["--seeds", "1,101"], "kept for the final measurement"),
        (["--cases", "12", "--test_cases", "12"], "none is left"),
        (["--chests", out], "hold 0 chests"),
    ):
        with pytest.raises(UserError, match=message):
            benchmark.main([out, *words])
