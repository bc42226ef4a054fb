"""Cases that were rejected in the preparation report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.cohort import Cohort
from data.load_cohort import load_cohort
from data.review import REVIEW_FILE
from options.base_options import DataOptions
from pipelines.run_cohort import run_splits
from tests.commands import TINY, command, refused
from util.cli import UserError


def load(root: Path) -> Cohort:
    return load_cohort(DataOptions(dataroot=str(root), template="aiib23"), check=False)


def reject(root: Path, *cases: str) -> None:
    lines = ["case,mark,note", *(f'{case},reject,"mask, leaks"' for case in cases)]
    (root / REVIEW_FILE).write_text("\r\n".join(lines) + "\r\n")


def test_rejected_cases_are_left_out_of_every_split(cohort_copy: Path) -> None:
    before = load(cohort_copy)
    case = before.splits["train"][0]
    reject(cohort_copy, f"{case}.nii.gz")
    (cohort_copy / "img").joinpath(f"{case}.nii.gz").unlink()  # nobody misses its scan
    after = load(cohort_copy)
    assert after.rejected == (case,) and case not in [c.id for c in after.cases]
    assert after.splits["train"] == before.splits["train"][1:]
    assert after.splits["test"] == before.splits["test"]
    assert any(case in text and "mask, leaks" in text for text in after.warnings)
    table = (cohort_copy / "clinical.csv").read_text().splitlines(keepends=True)
    rows = [line for line in table if not line.startswith(case)]
    (cohort_copy / "clinical.csv").write_text("".join(rows))
    strict = DataOptions(dataroot=str(cohort_copy), template="aiib23", strict=True)
    assert len(load_cohort(strict, check=False).cases) == len(rows) - 1  # nor its row
    accepted = (cohort_copy / REVIEW_FILE).read_text().replace("reject", "accept")
    (cohort_copy / REVIEW_FILE).write_text(accepted)
    with pytest.raises(UserError, match="without a scan of the same name"):
        load(cohort_copy)


def test_a_run_from_before_the_review_is_tested_without_them(
    cohort_copy: Path, tmp_path: Path
) -> None:
    options = DataOptions(dataroot=str(cohort_copy), template="aiib23")
    before = load(cohort_copy)
    stored = {name: list(cases) for name, cases in before.splits.items()}
    (tmp_path / "splits.json").write_text(json.dumps(stored))
    reject(cohort_copy, before.splits["test"][0])
    splits = run_splits(tmp_path, load(cohort_copy), options, accept_changes=False)
    assert splits == {**before.splits, "test": before.splits["test"][1:]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("case,mark\na,reject\n", "lacks the columns"),
        ("case,mark,note\n{case},maybe,\n", "a mark is accept or reject"),
        ("case,mark,note\n{case},reject\n", "2 cells"),
        ("case,mark,note\n{case},reject,\n{case},accept,\n", "twice"),
        ("case,mark,note\nnobody,reject,\n", "no files: nobody"),
    ],
)
def test_a_damaged_review_is_an_error(cohort_copy: Path, text: str, words: str) -> None:
    case = load(cohort_copy).cases[0].id
    (cohort_copy / REVIEW_FILE).write_text(text.format(case=case))
    with pytest.raises(UserError, match=words):
        load(cohort_copy)


def test_all_cases_rejected(cohort_copy: Path) -> None:
    reject(cohort_copy, *(case.id for case in load(cohort_copy).cases))
    with pytest.raises(UserError, match=r"rejects every case \(12\)"):
        load(cohort_copy)


def test_training_obeys(cohort_copy: Path, tmp_path: Path) -> None:
    words = ("--dataroot", cohort_copy, "--checkpoints_dir", tmp_path, "--name", "r", *TINY)
    (cohort_copy / REVIEW_FILE).write_bytes(b"\xff\xfe\x00")
    refused(command("train.py", *words), REVIEW_FILE)
    assert not list(tmp_path.glob("r/*.json"))
    case = load_splits(cohort_copy)[0]
    reject(cohort_copy, case)
    done = command("train.py", *words, "--dry_run")
    assert done.code == 0 and f"left out: {case} (mask, leaks)" in done.text, done.text


def load_splits(root: Path) -> list[str]:
    return list(json.loads((root / "splits.json").read_text())["train"])
