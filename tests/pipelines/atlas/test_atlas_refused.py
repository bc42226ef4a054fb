"""Refusals of the atlas: columns, flags, cohorts and disks that do not serve."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data.phantom.write import make_phantom_cohort
from options.atlas_options import AtlasCases
from options.base_options import DataOptions
from options.phantom_options import PhantomOptions
from pipelines.atlas.study import check_control_labels
from tests.atlas_run import discover, record
from tests.commands import TrainedRun, command, refused
from util.cli import UserError


def changed(cohort: Path, target: Path, column: str, values: list[str]) -> Path:
    """Copy a cohort, with these values in turn in one column of its table."""
    shutil.copytree(cohort, target, copy_function=os.link)
    frame = pd.read_csv(cohort / "clinical.csv", dtype=str, keep_default_na=False)
    frame[column] = [values[i % len(values)] for i in range(len(frame))]
    frame["DIAGNOSIS"] = "CTD-ILD"  # rules no other column out
    (target / "clinical.csv").unlink()
    frame.to_csv(target / "clinical.csv", index=False)
    return target


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["Other"], "all training cases that have a value have 'Other'"),
        ([""], "no training case has a value"),
        ([f"Remark {k}" for k in range(40)], "free text"),
        (["63 years", *map(str, range(30, 60))], "numbers and texts (63 years)"),
    ],
)
def test_columns_that_cannot_be_studied(
    trained_run: TrainedRun, tmp_path: Path, values: list[str], message: str
) -> None:
    cohort = changed(trained_run.cohort, tmp_path / "cohort", "TYPE CTD OTHER", values)
    refused(
        discover(trained_run, tmp_path / "out", "--columns", "TYPE CTD OTHER", cohort=cohort),
        "TYPE CTD OTHER",
        message,
    )
    assert not list(tmp_path.glob("*out*"))


def test_numbers_that_are_words_in_a_column_of_numbers(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    cohort = changed(trained_run.cohort, tmp_path / "cohort", "AGE", ["61", "sixty"])
    refused(
        discover(trained_run, tmp_path / "out", "--columns", "SEX", cohort=cohort),
        "AGE",
        "'sixty'",
        "number",
    )


def test_words_among_the_numbers_of_cases_to_compare_with(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    """The training cases hold plain numbers, one of the test cases does not."""
    numbers = [str(40 + k) for k in range(12)]
    cohort = changed(trained_run.cohort, tmp_path / "cohort", "TYPE CTD OTHER", numbers)
    splits = json.loads((cohort / "splits.json").read_text())
    frame = pd.read_csv(cohort / "clinical.csv", dtype=str, keep_default_na=False)
    frame.loc[frame["File Name"] == splits["test"][0], "TYPE CTD OTHER"] = "many"
    frame.to_csv(cohort / "clinical.csv", index=False)
    words = ("--columns", "TYPE CTD OTHER")
    done = discover(trained_run, tmp_path / "out", *words, cohort=cohort)
    refused(done, "TYPE CTD OTHER", "numbers and texts (many)")


def test_flags_that_are_wrong(trained_run: TrainedRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(
        discover(trained_run, out, "--columns", "HEIGHT"),
        "--columns",
        "'HEIGHT'",
        "SMOKING HISTORY",
    )
    refused(
        discover(trained_run, out, "--columns", "SEX", "--reference", "SEX=Other"),
        "reference 'Other'",
        "Male",
    )
    refused(
        discover(trained_run, out, "--columns", "SEX", "--reference", "SEX"), "--reference is 'SEX'"
    )
    refused(
        discover(trained_run, out, "--columns", "SEX", "--null_column", "AGE"),
        "--null_column 'AGE'",
    )
    refused(
        discover(trained_run, out, "--columns", "SEX", "--control_labels", "3"),
        "--control_labels has 3",
        "other than background, lungs, lesions and airways",
    )
    refused(discover(trained_run, out, "--columns", "SEX", "--fold", "5"), "--fold is '5'", "k/K")
    refused(
        discover(trained_run, out, "--columns", "SEX", "--fold", "1/99"),
        "9 training patients cannot be divided",
    )
    refused(
        command("scripts/build_atlas.py", "--dataroot", trained_run.cohort, *trained_run.flags()),
        "--out is not given",
    )
    refused(
        discover(TrainedRun(trained_run.checkpoints, "other", trained_run.cohort), out), "no run"
    )
    assert not list(tmp_path.iterdir())


def test_control_labels_are_of_what_disease_cannot_change() -> None:
    run = SimpleNamespace(labels=(0, 1, 2, 3, 4, 5))
    wanted = AtlasCases(control_labels=(5,))
    chest = SimpleNamespace(data=DataOptions(), run=run)
    assert check_control_labels(wanted, chest) == (5,)  # type: ignore[arg-type]
    lesions = SimpleNamespace(data=DataOptions(lesion_labels=(5,)), run=run)
    with pytest.raises(UserError, match=r"--control_labels has 5.*lesions.*here: 4"):
        check_control_labels(wanted, lesions)  # type: ignore[arg-type]
    mr = SimpleNamespace(data=DataOptions(modality="mr", lung_labels=(1,)), run=run)
    with pytest.raises(UserError, match="mr, and --control_labels works on chest CT"):
        check_control_labels(wanted, mr)  # type: ignore[arg-type]


def test_a_column_that_the_run_does_not_know(trained_run: TrainedRun, tmp_path: Path) -> None:
    shutil.copytree(trained_run.cohort, tmp_path / "cohort")
    frame = pd.read_csv(tmp_path / "cohort" / "clinical.csv", dtype=str, keep_default_na=False)
    frame["WEIGHT"] = [str(60 + k) for k in range(len(frame))]
    frame.to_csv(tmp_path / "cohort" / "clinical.csv", index=False)
    done = discover(
        trained_run, tmp_path / "out", "--columns", "WEIGHT", cohort=tmp_path / "cohort"
    )
    refused(done, "WEIGHT", "trained without this column")


def test_a_split_without_cases(trained_run: TrainedRun, tmp_path: Path) -> None:
    options = PhantomOptions(OUT=str(tmp_path / "cohort"), cases=11, size=(24, 24, 16), seed=9)
    cohort = make_phantom_cohort(options)
    splits = json.loads((cohort / "splits.json").read_text())
    (cohort / "splits.json").write_text(json.dumps({**splits, "test": []}))
    done = discover(trained_run, tmp_path / "out", "--columns", "SEX", cohort=cohort)
    refused(done, "no test cases", "--fold all/5", "--split train", "nothing is a finding")
    assert not list(tmp_path.glob("*out*"))


def test_other_labels(trained_run: TrainedRun, tmp_path: Path) -> None:
    cohort = Path(shutil.copytree(trained_run.cohort, tmp_path / "cohort"))
    path = next((cohort / "gtlung").iterdir())
    image = nib.load(path)
    array = np.asarray(image.dataobj).copy()
    array[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(array, image.affine), path)
    done = discover(trained_run, tmp_path / "out", "--columns", "SEX", cohort=cohort)
    refused(done, "label 7", "the run has only 0, 1, 2, 3")
    assert not list(tmp_path.glob("*out*"))


def test_masks_alone_give_generated_figures_and_no_claim(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(trained_run.cohort, cohort, ignore=shutil.ignore_patterns("img"))
    done = discover(
        trained_run, tmp_path / "out", "--columns", "SEX", "--how_many", "1", cohort=cohort
    )
    assert done.code == 0, done.text
    atlas_record = record(tmp_path / "out")
    assert (
        "too small to conclude anything" in atlas_record["summary"]
        and not atlas_record["conclusive"]
        and not atlas_record["findings"]
    )
    assert (
        atlas_record["tests"][0]["real"] is None
        and atlas_record["tests"][0]["generated"] is not None
    )


@pytest.mark.parametrize(
    "writes",
    [
        "pipelines.atlas.files.write_table",
        "pipelines.atlas.files.write_maps",
        "pipelines.atlas.run.write_pages",
        "pipelines.generation.case_writer.CaseWriter._write",
    ],
)
def test_a_full_disk_leaves_no_half_report(
    writes: str,
    trained_run: TrainedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "tests.csv")

    monkeypatch.setattr(writes, full)
    done = discover(
        trained_run, tmp_path / "out", "--columns", "SEX", "--how_many", "1", "--volumes", "1"
    )
    refused(done, "tests.csv", "No space left", "make room")
    # Finished cases are kept for another try; without any, nothing is.
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([] if writes.endswith("_write") else [".out.progress"])
