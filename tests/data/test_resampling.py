"""Resampled, folded and shuffled training cases, and the smallest detectable effect."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.cohort import Cohort
from data.load_cohort import load_cohort
from data.resampling import bootstrap_patients, fold_cases
from options.base_options import DataOptions
from pipelines.power import describe_smallest_effect, detectable_difference
from tests.commands import TINY, TrainedRun, command, refused, train
from util.cli import UserError


def load(root: Path, seed: int = 0, **changes: Any) -> Cohort:
    options = replace(DataOptions(dataroot=str(root), template="aiib23"), **changes)
    return load_cohort(options, seed=seed, check=False)


def column(cohort: Cohort, name: str, split: str) -> list[str]:
    return [case.row[name] for case in cohort.split(split)]


def test_permuting_moves_columns_together_over_the_training_cases_alone(cohort_dir: Path) -> None:
    plain = load(cohort_dir)
    moved = load(cohort_dir, seed=3, permute=("AGE", "SEX"))

    def pairs(c: Cohort) -> list[tuple[str, str]]:
        return list(zip(column(c, "AGE", "train"), column(c, "SEX", "train"), strict=True))

    assert pairs(plain) != pairs(moved) and Counter(pairs(plain)) == Counter(pairs(moved))
    assert column(plain, "DIAGNOSIS", "train") == column(moved, "DIAGNOSIS", "train")
    for split in ("val", "test"):
        assert [c.row for c in plain.split(split)] == [c.row for c in moved.split(split)]
    assert pairs(load(cohort_dir, seed=3, permute=("AGE", "SEX"))) == pairs(moved)
    assert pairs(load(cohort_dir, seed=4, permute=("AGE", "SEX"))) != pairs(moved)


def test_permuting_needs_a_column_and_rows_that_count(cohort_copy: Path) -> None:
    with pytest.raises(UserError, match=r"--permute: the table has no column 'HEIGHT'.*AGE"):
        load(cohort_copy, permute=("HEIGHT",))
    (cohort_copy / "prompts.csv").write_text("File Name,Prompt\nphantom_001,Some text\n")
    with pytest.raises(UserError, match=r"texts of .*prompts\.csv do not follow"):
        load(cohort_copy, permute=("AGE",))


def test_resampling_draws_patients_with_all_their_cases() -> None:
    patients = {"a1": "A", "a2": "A", "b": "B", "c": "C", "d": "D"}
    drawn = bootstrap_patients(list(patients), patients, 1)
    counts = Counter(drawn)
    assert counts["a1"] == counts["a2"] and sum(counts[c] for c in ("a1", "b", "c", "d")) == 4
    assert drawn == bootstrap_patients(list(patients), patients, 1)
    assert len({tuple(bootstrap_patients(list(patients), patients, s)) for s in range(8)}) > 3


def test_a_resampled_cohort_holds_cases_as_often_as_they_were_drawn(cohort_dir: Path) -> None:
    cohort = load(cohort_dir, seed=1, resample=True)
    train = [case.id for case in cohort.split("train")]
    assert len(train) == 9 and len(set(train)) < 9
    assert Counter(train) == Counter(cohort.splits["train"])
    assert set(train) <= set(load(cohort_dir).splits["train"])


def test_folds_part_the_patients_whatever_the_seed(cohort_dir: Path) -> None:
    everyone = set(load(cohort_dir).splits["train"])
    folds = []
    for k in (1, 2, 3):
        train = load(cohort_dir, seed=k, fold=f"{k}/3").splits["train"]
        folds.append(everyone - set(train))
    assert all(folds) and set.union(*folds) == everyone and sum(map(len, folds)) == len(everyone)
    patients = {"a1": "A", "a2": "A", "b": "B", "c": "C"}
    parts = [fold_cases(list(patients), patients, f"{k}/3") for k in (1, 2, 3)]
    assert sorted(c for part in parts for c in part) == list(patients) and ["a1", "a2"] in parts


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        ("3", "k/K"),
        ("0/3", "k/K"),
        ("4/3", "k/K"),
        ("1/1", "k/K"),
        ("1/40", "9 training patients cannot"),
    ],
)
def test_malformed_folds(cohort_dir: Path, fold: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(cohort_dir, fold=fold)


def test_splits_of_another_file_are_obeyed(cohort_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": ["phantom_001", "phantom_002"], "test": ["phantom_003"]}))
    assert load(cohort_dir, splits=str(path)).splits["train"] == ("phantom_001", "phantom_002")


def test_a_permuted_and_resampled_run_trains_resumes_and_is_tested(
    cohort_dir: Path, tmp_path: Path
) -> None:
    words = ("--permute", "AGE", "--resample", "--seed", "1", "--val_cases", "0")
    done = train(cohort_dir, tmp_path / "ck", *words)
    assert done.code == 0, done.text
    run = TrainedRun(tmp_path / "ck", "new", cohort_dir)
    options = json.loads((run.folder / "options.json").read_text())
    assert options["data"]["permute"] == ["AGE"] and options["data"]["resample"] is True
    splits = (run.folder / "splits.json").read_text()
    assert len(json.loads(splits)["train"]) == 9 > len(set(json.loads(splits)["train"]))
    done = command("train.py", *run.flags(), "--continue_train", "--max_steps", "5")
    assert done.code == 0 and (run.folder / "splits.json").read_text() == splits, done.text
    done = run.test(tmp_path / "results", "--split", "train", "--vary", "SEX=Male,Female")
    assert done.code == 0, done.text
    lines = (tmp_path / "results" / "new" / "train_latest" / "volumes.csv").read_text().splitlines()
    assert sum(",own," in line for line in lines) == 9  # each case once, with its table row


def test_power_is_that_of_a_t_test() -> None:
    of_96 = detectable_difference(20, 96, 0.1)  # 120 cases, of which 96 train
    assert of_96 == pytest.approx(19.3, abs=0.1)
    assert detectable_difference(40, 96, 0.1) == pytest.approx(2 * of_96)
    assert detectable_difference(20, 120, 0.5) == pytest.approx(10.3, abs=0.1)


def test_dry_run_prints_what_can_be_detected(cohort_dir: Path, tmp_path: Path) -> None:
    done = train(cohort_dir, tmp_path / "ck", "--dry_run")
    assert done.code == 0, done.text
    assert "Smallest effect on mean lung density that 9 training cases can detect" in done.text
    text = describe_smallest_effect(load(cohort_dir).split("train")[:2], DataOptions())
    assert "2 training scans with lungs: too few" in text


def test_flags_that_are_wrong(cohort_dir: Path, tmp_path: Path) -> None:
    words = ("--dataroot", cohort_dir, "--name", "r", "--checkpoints_dir", tmp_path / "ck", *TINY)
    refused(command("train.py", *words, "--permute", "HEIGHT"), "--permute", "HEIGHT", "AGE")
    refused(command("train.py", *words, "--fold", "7"), "--fold is '7'", "k/K")
    refused(command("train.py", *words, "--splits", "no_such.json"), "no_such.json")
    assert not (tmp_path / "ck").exists()
