"""The benchmark of synthetic and edited scans: a tiny run of it, and its figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks import expand as benchmark
from options.benchmarks.synthesis import ExpandBenchmarkCommand, ExpandBenchmarkOptions
from options.parser import parse
from options.utility_options import ClassifierOptions
from pipelines.synthesis import classifier
from tests.commands import train
from tests.networks import i3resnet_state
from util.cli import UserError

TINY = (
    "--size 24,24,16 --cases 10 --rare 3 --tests 4 --n 2 --seeds 5 --classifiers 1 --steps 2 "
    "--batch 4 --grid 8,8,8 --width 2 --max_steps 1 --text_encoder table --no-check_copies"
)
TRAIN_FLAGS = (
    "--patch_size 16,16,8 --ngf 4 --ndf 4 --n_blocks_global 1 --n_layers_D 2 --num_D 1 "
    "--text_hidden 8"
)


def test_a_tiny_benchmark_compares_all_arms_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(tmp_path / "out"), *TINY.split(), "--train_flags", TRAIN_FLAGS]
    words += ["--diffusion_run", str(tmp_path / "runs" / "edits")]
    words += ["--extractor_3d", f"astra:{tmp_path / 'network.pt'}"]
    with pytest.raises(UserError, match=r"--extractor_3d astra:.*network\.pt is not there"):
        benchmark.main(words)
    torch.save(i3resnet_state(), tmp_path / "network.pt")
    b = parse(ExpandBenchmarkCommand, "", words).benchmark
    cohort = benchmark.rare_cohort(replace(b, OUT=str(tmp_path / "other")), 5)
    flags = ("--model", "diffusion", "--sampling_steps", "2", "--template", "auto")
    done = train(cohort, tmp_path / "runs", *flags, "--val_cases", "0", name="edits")
    assert done.code == 0, done.text
    AcceleratorState._reset_state(reset_partial_state=True)  # the benchmark's generator is bf16
    benchmark.main(words)
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["seeds"] == [5]
    assert [row["arm"] for row in figures["arms"]] == [
        "real",
        "weighted",
        "oversampled",
        "+ generated",
        "+ residual",
        "+ edited",
        "+ generated + residual",
        "probe: real",
        "probe: weighted",
        "probe: + generated",
        "probe: + residual",
        "probe: + edited",
        "probe: + generated + residual",
    ]
    assert all(0 <= row["auc"] <= 1 for row in figures["arms"])
    assert all(row["best_baseline"].startswith("probe: ") for row in figures["arms"][7:])
    assert not any(row["best_baseline"].startswith("probe: ") for row in figures["arms"][:7])
    table = pd.read_csv(next((tmp_path / "out" / "cohorts").iterdir()) / "clinical.csv")
    assert (table["NODULES"][:10] == "Yes").sum() == 3 and (table["NODULES"][10:] == "Yes").any()
    edits = pd.read_csv(tmp_path / "out" / "synthetic" / "NODULES_3_seed5_residual" / "edits.csv")
    assert set(edits["source"]) <= set(table["File Name"][:10])
    monkeypatch.setattr(benchmark, "train_classifier", lambda *_, **__: pytest.fail("again"))
    benchmark.main(words)


def test_paired_differences_keep_the_sign_and_find_the_best_baseline() -> None:
    truth = {1: np.array([0, 0, 0, 1, 1, 1]), 2: np.array([0, 0, 0, 1, 1, 1])}
    blind = {s: np.full((1, 6), 0.1) for s in truth}
    partly = {s: np.array([[0.1, 0.1, 0.1, 0.9, 0.1, 0.1]]) for s in truth}
    sure = {s: np.array([[0.1, 0.1, 0.1, 0.9, 0.9, 0.9]]) for s in truth}
    found = {"real": blind, "weighted": partly, "oversampled": blind, "+ residual": sure}
    rows = {row["arm"]: row for row in benchmark.summarise(found, truth)}
    assert {row["best_baseline"] for row in rows.values()} == {"weighted"}
    assert rows["+ residual"]["rare_change"] == pytest.approx(-2 / 3)
    assert rows["+ residual"]["balanced_change"] == pytest.approx(-1 / 3)
    assert rows["real"]["rare_change"] == pytest.approx(1 / 3)
    low, high = rows["+ residual"]["rare_interval"]
    assert low <= -2 / 3 <= high <= 0
    assert rows["weighted"]["rare_interval"] == [0.0, 0.0]
    assert "best arm without synthetic scans is weighted" in benchmark.figures_table(
        list(rows.values()), 2
    )


def test_probes_are_fitted_to_real_and_synthetic_features() -> None:
    o = ExpandBenchmarkCommand(
        ExpandBenchmarkOptions(OUT="o", extractor_3d="random"), ClassifierOptions()
    )
    rng = np.random.default_rng(0)

    def features(common: int, rare: int, effect: float = 4.0) -> classifier.LabelledVolumes:
        values = rng.normal(size=(common + rare, 20)).astype(np.float32)
        values[common:, 3] += effect
        targets = torch.tensor([0] * common + [1] * rare)
        return classifier.LabelledVolumes(torch.from_numpy(values), targets)

    volumes = {"train": features(60, 2), "test": features(50, 50), "generate": features(0, 40)}
    truth = volumes["test"].targets.numpy()
    errors = {
        arm: benchmark.class_errors(benchmark.predict_arm(o, arm, volumes, 0)[None], truth)
        for arm in ("probe: real", "probe: weighted", "probe: + generated")
    }
    rare = {arm: wrong[truth == 1].mean() for arm, wrong in errors.items()}
    assert rare["probe: real"] > rare["probe: weighted"] > rare["probe: + generated"]
    assert errors["probe: + generated"].mean() < 0.1


def test_bad_columns_and_counts_are_refused() -> None:
    for changes, message in (
        ({"column": "FEVER"}, "the group sparse has: FIBROSIS"),
        ({"cases": 8, "rare": 8}, "--rare is 8"),
    ):
        with pytest.raises(UserError, match=message):
            benchmark.check_options(ExpandBenchmarkOptions(OUT="o", **changes))


def test_classes_are_drawn_equally_often_and_volumes_are_augmented() -> None:
    targets = torch.tensor([0] * 95 + [1] * 5)
    options = ClassifierOptions(batch=400, oversample=True)
    chosen = classifier.choose_batch(targets, options, torch.Generator().manual_seed(0))
    assert 0.4 < targets[chosen].float().mean() < 0.6
    volume = torch.rand(2, 8, 8, 6)
    one, again, other = (
        torch.as_tensor(classifier.usual_augmentation(seed)(volume)) for seed in (1, 1, 2)
    )
    assert one.shape == volume.shape and torch.equal(one, again) and not torch.equal(one, other)
    assert (one - volume).abs().mean() < 0.4
