"""Cohorts that cannot teach what text does: a warning says so before the training, which works."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import command, refused, train

Row = dict[str, str]
SAME_TEXT = "have the same text, so the run cannot learn what text does"
ONE_PATIENT = "of one patient"


def edit_rows(cohort: Path, change: Callable[[Row], Row]) -> None:
    path = cohort / "clinical.csv"
    with path.open(newline="") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture()
def constant(cohort_copy: Path) -> Path:
    """A cohort whose rows differ in the names of the cases only."""
    first: Row = {}

    def copy_first(row: Row) -> Row:
        first.update({**row, **first})
        return {**first, "File Name": row["File Name"], "Mapping ID": row["Mapping ID"]}

    edit_rows(cohort_copy, copy_first)
    return cohort_copy


def test_text_that_never_varies(constant: Path, tmp_path: Path) -> None:
    for words in (("--dry_run",), ()):
        done = train(constant, tmp_path, *words)
        assert done.code == 0 and f"All training cases (9) {SAME_TEXT}" in done.text, done.text
        assert "--fusion none" in done.text and ONE_PATIENT not in done.text
    options = json.loads((tmp_path / "new" / "options.json").read_text())
    assert not options["generator"]["text_texture"]  # nothing varies that it could show
    done = train(constant, tmp_path, "--dry_run", "--fusion", "none", name="plain")
    assert done.code == 0 and SAME_TEXT not in done.text, done.text
    results = command(
        "test.py",
        *("--dataroot", constant, "--name", "new", "--checkpoints_dir", tmp_path),
        *("--results_dir", tmp_path / "results", "--no-page", "--vary", "SEX=Male,Female"),
    )
    assert "SEX=Female; the model has never seen it" in results.text, results.text


def test_a_cohort_of_one_patient(cohort_copy: Path, tmp_path: Path) -> None:
    training = json.loads((cohort_copy / "splits.json").read_text())["train"]

    def name_patient(row: Row) -> Row:
        return {**row, "Patient": "A" if row["File Name"] in training else row["File Name"]}

    edit_rows(cohort_copy, name_patient)
    words = ("--dry_run", "--patient_column", "Patient")
    done = train(cohort_copy, tmp_path, *words)
    assert done.code == 0 and ONE_PATIENT in done.text and SAME_TEXT not in done.text, done.text
    assert ONE_PATIENT not in train(cohort_copy, tmp_path, "--dry_run").text


def test_a_single_training_case(cohort_copy: Path, tmp_path: Path) -> None:
    path = cohort_copy / "splits.json"
    splits = json.loads(path.read_text())
    path.write_text(json.dumps({**splits, "train": splits["train"][:1]}))
    done = train(cohort_copy, tmp_path, "--no-text_D")
    assert done.code == 0 and SAME_TEXT in done.text and ONE_PATIENT in done.text, done.text


def test_draws_that_cannot_differ(cohort_dir: Path, tmp_path: Path) -> None:
    refused(train(cohort_dir, tmp_path, "--noise_channels", "0"), "--lambda_patch", "Set both to 0")
    words = ("--noise_channels", "0", "--lambda_patch", "0", "--lambda_quantile", "0")
    assert train(cohort_dir, tmp_path, *words).code == 0
