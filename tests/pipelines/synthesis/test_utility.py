"""The classifier that measures the utility of a cohort, and its metrics."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from options.parser import check_inputs, parse
from options.utility_options import ClassifierOptions, UtilityCommand
from pipelines.synthesis import utility
from pipelines.synthesis.classifier import (
    LabelledVolumes,
    class_weights,
    predict,
    random_shift,
    train_classifier,
)
from pipelines.synthesis.lung_grid import lung_grid
from util.cli import UserError

FAST = ClassifierOptions(steps=40, batch=8, width=4)
CPU = torch.device("cpu")


def separable(count: int, seed: int) -> LabelledVolumes:
    """Volumes whose class determines their density."""
    noise = torch.randn(count, 2, 8, 8, 8, generator=torch.Generator().manual_seed(seed))
    targets = torch.arange(count) % 2
    return LabelledVolumes(noise * 0.3 + targets.view(-1, 1, 1, 1, 1).float(), targets)


def test_it_learns_what_can_be_seen_and_repeats_itself() -> None:
    train, test = separable(24, 0), separable(20, 1)
    networks = [train_classifier(train, 2, FAST, seed, CPU, "t") for seed in (5, 5, 6)]
    one, again, second_seed = (predict(n, test.volumes, CPU) for n in networks)
    assert (one.argmax(1) == test.targets).float().mean() > 0.9
    assert torch.equal(one, again) and not torch.equal(one, second_seed)
    assert torch.allclose(one.sum(1), torch.ones(20))


def test_classes_count_alike() -> None:
    weights = class_weights(torch.tensor([0, 0, 0, 1, 2, 2]), 4)
    assert torch.allclose(weights, torch.tensor([0.5, 1.5, 0.75, 0.0]))


def test_shifts_move_and_never_flip() -> None:
    volume = torch.arange(5 * 6 * 7).float().view(1, 1, 5, 6, 7)
    near = range(-2, 3)
    rolled = [torch.roll(volume, steps, (2, 3, 4)) for steps in itertools.product(near, near, near)]
    seen = [random_shift(volume, torch.Generator().manual_seed(k)) for k in range(10)]
    assert all(any(torch.equal(s, r) for r in rolled) for s in seen)
    assert len({tuple(s.flatten().tolist()) for s in seen}) > 3


def test_cells_hold_the_mean_density_of_the_lung_alone() -> None:
    labels = np.zeros((12, 10, 8), np.uint8)
    labels[2:10, 1:9, 2:6] = 1
    hu = np.where(labels == 1, -800.0, 300.0)
    hu[2:6, 1:9, 2:6] = -900
    cells = lung_grid(hu, labels, (1, 2), (2, 2, 2), (-1000.0, -600.0), "m")
    assert cells.shape == (2, 2, 2, 2)
    assert torch.allclose(cells[0, 0], torch.tensor(-0.5)) and torch.allclose(
        cells[0, 1], torch.tensor(0.0), atol=1e-6
    )
    assert torch.allclose(cells[1], torch.tensor(1.0))
    with pytest.raises(UserError, match=r"m\.nii holds no lung"):
        lung_grid(hu, np.zeros_like(labels), (1, 2), (2, 2, 2), (-1000.0, -600.0), "m.nii")


def test_scores_and_intervals() -> None:
    targets = np.array([0] * 8 + [1] * 4)
    right = np.array([1.0] * 6 + [0.0] * 2 + [1.0] * 4)
    assert utility.mean_over_classes(right, targets) == pytest.approx((0.75 + 1) / 2)
    low, high = utility.class_mean_interval(right, targets)
    assert low < 0.875 <= high <= 1 and low >= 0.6
    assert all(np.isnan(utility.class_mean_interval(right, np.array([0] * 11 + [1]))))
    sure = np.stack([1 - targets, targets], 1).astype(float)
    assert utility.classifier_scores(sure, targets) == {
        "balanced_accuracy": 1.0,
        "low": 1.0,
        "high": 1.0,
        "auc": 1.0,
    }


def test_summary_counts_seeds_and_keeps_the_sign() -> None:
    targets = np.array([0, 0, 1, 1])
    good, bad = np.eye(2)[targets], np.eye(2)[[0, 0, 0, 0]]
    predicted = {("real", 1): bad, ("both", 1): good, ("real", 2): good, ("both", 2): bad}
    rows = [
        {"arm": a, "seed": s, **utility.classifier_scores(p, targets)}
        for (a, s), p in predicted.items()
    ]
    summary = utility.summarise_arms(rows, predicted, targets)
    assert (
        summary["both"]["minus_real"] == 0
        and summary["both"]["seeds_at_least_as_good_as_real"] == "1 of 2"
    )
    assert summary["real"]["mean"] == summary["both"]["mean"] == 0.75


# --- the command


@pytest.fixture(scope="module")
def synthetic(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training cases under other names stand in for a synthetic cohort."""
    out = tmp_path_factory.mktemp("synthetic")
    table = pd.read_csv(cohort_dir / "clinical.csv", dtype=str, keep_default_na=False)
    train = json.loads((cohort_dir / "splits.json").read_text())["train"]
    table = table[table["File Name"].isin(train)].assign(
        **{"SYNTHETIC SOURCE": lambda t: t["File Name"]}
    )
    for folder in ("img", "gtlung"):
        (out / folder).mkdir()
        for case in table["File Name"]:
            shutil.copyfile(
                cohort_dir / folder / f"{case}.nii.gz", out / folder / f"s_{case}.nii.gz"
            )
    table.assign(**{"File Name": "s_" + table["File Name"]}).to_csv(
        out / "clinical.csv", index=False
    )
    return out


def options(cohort: Path, synthetic: Path, out: Path, *words: str) -> UtilityCommand:
    return parse(
        UtilityCommand,
        "",
        [
            "--dataroot",
            str(cohort),
            "--synthetic",
            str(synthetic),
            "--out",
            str(out),
            "--template",
            "aiib23",
            "--steps",
            "3",
            "--batch",
            "4",
            "--grid",
            "8,8,8",
            "--width",
            "2",
            "--seeds",
            "1,2",
            *words,
        ],
    )


def test_the_command_writes_every_arm(cohort_copy: Path, synthetic: Path, tmp_path: Path) -> None:
    splits = json.loads((cohort_copy / "splits.json").read_text())
    table = pd.read_csv(cohort_copy / "clinical.csv", dtype=str, keep_default_na=False).set_index(
        "File Name"
    )
    table.loc[splits["test"], "SEX"] = ["Male", "Female"]
    table.to_csv(cohort_copy / "clinical.csv")
    out = tmp_path / "out"
    results = utility.measure_utility(options(cohort_copy, synthetic, out, "--column", "SEX"))
    assert {(r["arm"], r["seed"]) for r in results["rows"]} == {
        (a, s) for a in ("real", "synthetic", "both") for s in (1, 2)
    }
    volumes = {r["arm"]: r["volumes"] for r in results["rows"]}
    assert volumes["both"] == volumes["real"] + volumes["synthetic"] and results["test_scans"] == 2
    report = (out / "utility.md").read_text()
    assert "chance is 0.500" in report and len(pd.read_csv(out / "utility.csv")) == 6
    assert "no interval: a class has fewer than two test scans" in report and "nan" not in report
    assert "NaN" not in (out / "utility.json").read_text()
    again = (out / "real_1.json").stat().st_mtime_ns
    utility.measure_utility(options(cohort_copy, synthetic, out, "--column", "SEX"))
    assert (out / "real_1.json").stat().st_mtime_ns == again
    scan = cohort_copy / "img" / f"{splits['train'][0]}.nii.gz"
    before = scan.stat()
    content = bytearray(scan.read_bytes())
    content[4] ^= 1  # the time in the header of gzip: the same voxels, another file
    scan.write_bytes(content)
    os.utime(scan, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match="scans"):
        utility.measure_utility(options(cohort_copy, synthetic, out, "--column", "SEX"))
    assert (out / "real_1.json").stat().st_mtime_ns == again


def test_bad_input(cohort_copy: Path, synthetic: Path, tmp_path: Path) -> None:
    splits = json.loads((cohort_copy / "splits.json").read_text())
    path = cohort_copy / "clinical.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("File Name")

    def refused(
        message: str, *words: str, cohort: Path = cohort_copy, synthetic_cohort: Path = synthetic
    ) -> None:
        with pytest.raises(UserError, match=message):
            utility.measure_utility(options(cohort, synthetic_cohort, tmp_path / "out", *words))
        assert not (tmp_path / "out").exists()

    with pytest.raises(UserError, match="--column is not given"):
        check_inputs(options(cohort_copy, synthetic, tmp_path / "out"))
    refused("no column 'HEIGHT'", "--column", "HEIGHT")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("--synthetic .* has no folder gtlung/", "--column", "SEX", synthetic_cohort=empty)
    table.assign(SEX="Male").to_csv(path)
    refused(r"--column SEX: 9 cases with 1 known value \(Male\)", "--column", "SEX")
    table.loc[splits["train"], "SEX"] = ["Male", "Female"] * 4 + ["Male"]
    table.loc[splits["test"], "SEX"] = "Male"
    table.to_csv(path)
    refused("no test scan has the value Female", "--column", "SEX")
    own = shutil.copyfile(cohort_copy / "splits.json", tmp_path / "own.json")  # of the real cohort
    refused("no test scan has the value Female", "--column", "SEX", "--splits", str(own))
    leaking = Path(shutil.copytree(synthetic, tmp_path / "leaking"))
    rows = pd.read_csv(leaking / "clinical.csv", dtype=str, keep_default_na=False)
    rows.assign(**{"SYNTHETIC SOURCE": splits["test"][0]}).to_csv(
        leaking / "clinical.csv", index=False
    )
    refused("made from masks or scans of test cases", "--column", "SEX", synthetic_cohort=leaking)
    rows.drop(columns="SYNTHETIC SOURCE").to_csv(leaking / "clinical.csv", index=False)
    tested = splits["test"][0]  # under another name, of a program that names no source
    mask = next((leaking / "gtlung").iterdir())
    shutil.copyfile(cohort_copy / "gtlung" / f"{tested}.nii.gz", mask)
    refused("holds scans or masks of test cases", "--column", "SEX", synthetic_cohort=leaking)


@pytest.mark.parametrize(("finish", "lowest", "highest"), [(0.8, 0.9, 1.0), (0.0, 0.0, 0.5)])
def test_the_last_steps_see_real_scans_alone(finish: float, lowest: float, highest: float) -> None:
    train, test = separable(24, 0), separable(20, 1)
    opposite = LabelledVolumes(train.volumes, 1 - train.targets)  # synthetic volumes that mislead
    mixed = train + opposite + opposite + opposite + opposite
    network = train_classifier(mixed, 2, replace(FAST, finish=finish), 5, CPU, "t", real=24)
    correct = predict(network, test.volumes, CPU).argmax(1) == test.targets
    assert lowest <= correct.float().mean() <= highest
