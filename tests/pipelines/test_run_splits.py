"""Splits of a run's cohort that were edited after the training: no test case was trained on."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data.splits import read_run_splits, split_changes
from options.parser import from_dict
from options.train_options import TrainOptions
from pipelines.run_cohort import load_run_cohort
from tests.commands import Outcome, TrainedRun, command, kept, refused
from util.cli import UserError
from util.training import runs


@pytest.fixture()
def run(trained_run: TrainedRun, cohort_copy: Path, tmp_path: Path) -> TrainedRun:
    """A copy of the trained run, beside a copy of its cohort."""
    copy = Path(shutil.copytree(trained_run.checkpoints, tmp_path / "checkpoints"))
    return TrainedRun(copy, trained_run.name, cohort_copy)


def swap_train_and_test(path: Path) -> tuple[str, str]:
    """Move a training case to the test split and back; return both cases."""
    splits = json.loads(path.read_text())
    trained, tested = splits["train"][0], splits["test"][0]
    splits["train"][0], splits["test"][0] = tested, trained
    path.write_text(json.dumps(splits))
    return trained, tested


def go_on(run: TrainedRun, *words: str) -> Outcome:
    flags = ("--dataroot", str(run.cohort), *run.flags(), "--continue_train", "--max_steps", "6")
    return command("train.py", *flags, *words)


def generated_cases(results: Path) -> set[str]:
    tables = list(results.rglob("volumes.csv"))
    assert len(tables) == 1
    return {row["case"] for row in csv.DictReader(tables[0].read_text().splitlines())}


def test_edited_splits_stop_a_continued_run(run: TrainedRun) -> None:
    before = kept(run.folder)
    trained, tested = swap_train_and_test(run.cohort / "splits.json")
    refused(
        go_on(run),
        f"{trained} (train, now test)",
        f"{tested} (test, now train)",
        str(run.folder / "splits.json"),
        "--accept_changes",
    )
    assert kept(run.folder) == before
    own = json.loads((run.folder / "splits.json").read_text())
    done = go_on(run, "--accept_changes")
    assert done.code == 0 and "the run's own splits are used" in done.text, done.text
    assert json.loads((run.folder / "splits.json").read_text()) == own


def test_no_test_case_was_trained_on(run: TrainedRun, tmp_path: Path) -> None:
    """Even where the cohort was copied elsewhere and its splits were edited there."""
    trained, tested = swap_train_and_test(run.cohort / "splits.json")
    refused(run.test(tmp_path / "res"), f"{trained} (train, now test)", "--accept_changes")
    assert not (tmp_path / "res").exists()
    done = run.test(tmp_path / "res", "--accept_changes")
    assert done.code == 0, done.text
    cases = generated_cases(tmp_path / "res")
    assert tested in cases and trained not in cases


def test_splits_of_an_old_run_are_warned_of_by_name(run: TrainedRun, tmp_path: Path) -> None:
    """Its checkpoint has no digests that show that a copy holds the same scans."""
    path = run.folder / "latest" / "state.json"
    state = json.loads(path.read_text())
    for name in ("data", "digest"):
        state.pop(name, None)
    path.write_text(json.dumps(state))
    trained, _ = swap_train_and_test(run.cohort / "splits.json")
    done = run.test(tmp_path / "res", "--how_many", "1")
    assert done.code == 0 and f"names of training cases of the run: {trained}" in done.text


def test_the_file_of_splits_is_of_the_own_cohort_alone(run: TrainedRun, tmp_path: Path) -> None:
    """Another cohort keeps its splits and rows, also where its cases have the same names."""
    saved = from_dict(TrainOptions, runs.read_options(run.folder), "options.json").data
    file = tmp_path / "own.json"
    file.write_text((run.cohort / "splits.json").read_text())
    data = replace(saved, dataroot=str(run.cohort), splits=str(file), permute=("SEX",))
    other = Path(shutil.copytree(run.cohort, tmp_path / "other"))
    for folder in ("img", "gtlung"):  # the scan of each name is another patient's
        names = sorted(path.name for path in (other / folder).iterdir())
        for name, source in zip(names, names[1:] + names[:1], strict=True):
            shutil.copyfile(run.cohort / folder / source, other / folder / name)
    swap_train_and_test(other / "splits.json")
    splits = json.loads((other / "splits.json").read_text())
    found = load_run_cohort(run.folder, data, str(other), 0, need_images=False)
    assert {name: list(cases) for name, cases in found.splits.items()} == splits
    table = csv.DictReader((other / "clinical.csv").read_text().splitlines())
    sexes = {row["File Name"]: row["SEX"] for row in table}
    assert {case.id: case.row["SEX"] for case in found.cases} == sexes


def test_changes_of_splits() -> None:
    before = {"train": ("a", "a", "b"), "val": ("c",), "test": ("d",)}
    assert split_changes(before, before) == []
    now = {"train": ("a", "b", "new", "d"), "val": (), "test": ("d", "e")}
    assert split_changes(before, now) == [
        "c (val, now in no split)",
        "d (test, now train and test)",
        "e (in no split, now test)",
    ]


def test_damaged_splits_of_a_run_are_named(tmp_path: Path) -> None:
    assert read_run_splits(tmp_path / "splits.json") is None
    (tmp_path / "splits.json").write_text('{"train": "case1"}')
    with pytest.raises(UserError, match=r"splits\.json is damaged"):
        read_run_splits(tmp_path / "splits.json")
