"""Edited training scans: whose they are, what was changed, and how they are declared."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data.cache import load_mask
from data.cohort import Case, Cohort
from data.load_cohort import load_cohort
from data.provenance import declared_edits
from data.table import ClinicalTable
from data.volumes import load_volume
from options.base_options import DataOptions
from options.expand_options import ExpandCommand
from options.parser import parse
from pipelines.evaluation.memorisation import CopyCheck
from pipelines.synthesis import run as synthesis
from pipelines.synthesis.case_edits import CaseEditor, editable_cases
from pipelines.synthesis.planning.balance import plan_balanced
from pipelines.synthesis.planning.table import plan_table
from tests.commands import TrainedRun, command, refused, train
from tests.pages import page_warnings, shows_picture_first
from tests.planned_cohorts import texts
from util.cli import UserError


def options(run: TrainedRun, out: Path, *words: str, cohort: Path | None = None) -> ExpandCommand:
    root = str(cohort or run.cohort)
    return parse(ExpandCommand, "", ["--dataroot", root, *run.flags(), "--out", str(out), *words])


@pytest.fixture(scope="module")
def edited(trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("edits") / "edited"
    words = ("--how", "residual", "--balance", "DIAGNOSIS", "--n", "4")
    return synthesis.synthesise_cohort(options(trained_run, out, *words))


# --- sources


def test_only_training_scans_are_edited_and_said_so(edited: Path, trained_run: TrainedRun) -> None:
    real = load_cohort(DataOptions(dataroot=str(trained_run.cohort)))
    table = pd.read_csv(edited / "clinical.csv", dtype=str, keep_default_na=False)
    edits = pd.read_csv(edited / "edits.csv", dtype=str, keep_default_na=False)
    assert set(table["SYNTHETIC SOURCE"]) <= set(real.splits["train"])
    assert set(table["SYNTHETIC"]) == {"edited"} and set(table["SYNTHETIC HOW"]) == {"residual"}
    assert declared_edits(edited / "img") == dict(
        zip(table["File Name"], table["SYNTHETIC SOURCE"], strict=True)
    )
    for row in table.to_dict("records"):
        case, source = row["File Name"], real[row["SYNTHETIC SOURCE"]]
        before = source.row["DIAGNOSIS"]
        assert before not in ("", row["DIAGNOSIS"])
        assert f"DIAGNOSIS: {before} to {row['DIAGNOSIS']}" in row["SYNTHETIC CHANGE"]
        listed = edits[(edits["case"] == case) & (edits["column"] == "DIAGNOSIS")].iloc[0]
        assert (listed["from"], listed["to"]) == (before, row["DIAGNOSIS"])
        image = nib.load(edited / "img" / f"{case}.nii.gz")
        assert (
            image.header["descrip"].item()
            == b"Mask2CT: residual edit of a real scan, see edits.csv"
        )
        mask = load_volume(edited / "gtlung" / f"{case}.nii.gz").array
        assert np.array_equal(mask, load_mask(source).array)
        change = image.get_fdata() - nib.load(source.image).get_fdata()
        record = json.loads((edited / "records" / f"{case}.json").read_text())
        lungs = np.isin(mask, (1, 2))
        assert change[lungs].mean() == pytest.approx(record["mean_change_hu"], abs=0.51)
        assert np.abs(change).max() < 400  # the patient's own scan, not a generated one
    readme = (edited / "README.md").read_text()
    assert "**real scans of patients**" in readme and "Nobody's" not in readme
    assert not (edited / "copies.csv").exists()


def cohort(splits: dict[str, tuple[str, ...]], patients: dict[str, str]) -> Cohort:
    cases = tuple(
        Case(name, Path(f"{name}.nii.gz"), Path(f"{name}.nii.gz"), {"P": patient})
        for name, patient in patients.items()
    )
    return Cohort(Path("root"), cases, splits, (0, 1), ("P",))


def test_no_scan_of_a_person_who_is_held_out_is_a_source() -> None:
    splits: dict[str, tuple[str, ...]] = {"train": ("a", "b", "c"), "val": (), "test": ("d",)}
    shared = cohort(splits, {"a": "1", "b": "2", "c": "3", "d": "2", "e": "4"})
    assert [case.id for case in editable_cases(shared, "P")] == ["a", "c"]
    everywhere = cohort({name: ("a",) for name in splits}, {"a": "1"})
    with pytest.raises(UserError, match="also held out"):
        editable_cases(everywhere, "P")
    bare = replace(shared, cases=tuple(replace(case, image=None) for case in shared.cases))
    with pytest.raises(UserError, match=r"no training case of root has one in img/"):
        editable_cases(bare, "P")


def test_test_patients_in_the_training_split_of_another_folder_are_no_sources(
    trained_run: TrainedRun, cohort_copy: Path, tmp_path: Path
) -> None:
    """The run's test cases, called training cases in a cohort without any of its training cases."""
    splits = json.loads((cohort_copy / "splits.json").read_text())
    for case in splits["train"]:
        for folder in ("img", "gtlung"):
            (cohort_copy / folder / f"{case}.nii.gz").unlink()
    (cohort_copy / "splits.json").write_text(json.dumps({"train": splits["test"]}))
    words = ("--how", "residual", "--balance", "SEX", "--n", "2")
    with pytest.raises(UserError, match="also held out"):
        synthesis.synthesise_cohort(
            options(trained_run, tmp_path / "out", *words, cohort=cohort_copy)
        )
    assert not (tmp_path / "out").exists()


# --- the plan

A = {"SEX": "Male", "DIAGNOSIS": "HP", "AGE": "60", "TYPE CTD": "", "SYNTHETIC": ""}
B, C = A | {"SEX": "Female"}, A | {"DIAGNOSIS": "IPF"}
D = B | {"DIAGNOSIS": "IPF"}


def test_two_columns_are_balanced_together_and_one_of_them_is_changed() -> None:
    real = texts(A, A, A, A, B, C, D)
    planned = plan_balanced(real, ["SEX", "DIAGNOSIS"], 12, together=False, sources="other", seed=0)
    assert Counter((p.row["SEX"], p.row["DIAGNOSIS"]) for p in planned) == {
        (sex, diagnosis): 3 for sex in ("Male", "Female") for diagnosis in ("HP", "IPF")
    }
    assert all(len(p.changes) == 1 for p in planned)
    assert all(p.id.startswith("edited_") for p in planned)
    filled = plan_balanced(real, ["SEX", "DIAGNOSIS"], 3, together=True, sources="own", seed=0)
    assert {(p.row["SEX"], p.row["DIAGNOSIS"]) for p in filled} == {
        ("Female", "HP"),
        ("Male", "IPF"),
        ("Female", "IPF"),
    }
    assert not any(p.changes for p in filled)


def test_a_combination_that_no_case_has_is_not_made(caplog: pytest.LogCaptureFixture) -> None:
    planned = plan_balanced(
        texts(A, B, C), ["SEX", "DIAGNOSIS"], 6, together=False, sources="changed", seed=0
    )
    assert ("Female", "IPF") not in {(p.row["SEX"], p.row["DIAGNOSIS"]) for p in planned}
    assert "no case has Female and IPF" in caplog.text
    for columns in (["SEX", "DIAGNOSIS", "AGE"], ["SEX", "SEX"]):
        with pytest.raises(UserError, match="takes one column, or 2 different ones"):
            plan_balanced(texts(A, B), columns, 6, together=False, sources="own", seed=0)


def test_a_table_names_the_scan_and_the_cells_that_change() -> None:
    columns = ("DIAGNOSIS", "AGE", "SYNTHETIC SOURCE")
    row = {"DIAGNOSIS": "IPF", "AGE": "", "SYNTHETIC SOURCE": "case1"}
    planned = plan_table(ClinicalTable(columns, {"new": row}), texts(A, B), 0, 0, edits=True)[0]
    assert planned.changes == {"DIAGNOSIS": ("HP", "IPF")} and planned.row["AGE"] == "60"
    row["SYNTHETIC SOURCE"] = ""
    with pytest.raises(UserError, match="SYNTHETIC SOURCE is empty"):
        plan_table(ClinicalTable(columns, {"new": row}), texts(A, B), 0, 0, edits=True)


# --- the evaluation


def test_a_declared_edit_is_no_leaked_copy_but_a_copy_of_another_scan_is() -> None:
    rng = np.random.default_rng(0)
    train_scans = rng.normal(size=(8, 60)).astype(np.float32)
    check = CopyCheck.from_scans([f"t{k}" for k in range(8)], train_scans)
    near = train_scans[:3] + 0.01 * rng.normal(size=(3, 60)).astype(np.float32)
    undeclared = check(near)
    assert all(verdict.copy for verdict in undeclared)
    declared = check(near, edit_sources=["t0", "t5", ""])
    assert [verdict.copy for verdict in declared] == [False, True, True]
    assert [verdict.edit_of for verdict in declared] == ["t0", "t5", ""]
    assert declared[0].image.case != "t0"


def test_an_evaluation_says_which_volumes_are_edits(
    edited: Path, trained_run: TrainedRun, tmp_path: Path
) -> None:
    def evaluate(*words: str) -> dict[str, Any]:
        few = ("--draws", "10", "--slices", "4", "--no-resegment", *words)
        done = command(
            "scripts/evaluate.py",
            "--real",
            trained_run.cohort,
            "--train",
            trained_run.cohort,
            "--synthetic",
            edited,
            "--out",
            tmp_path / "out",
            *few,
        )
        assert done.code == 0, done.text
        record: dict[str, Any] = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        return record

    record = evaluate()
    assert record["memorisation"]["copies"] == []
    assert record["memorisation"]["declared_edits"] == declared_edits(edited)
    assert (
        "No undeclared copy" in record["verdict"]
        and "Declared edits of training scans: 4." in record["verdict"]
    )
    warnings = page_warnings(tmp_path / "out" / "report.html")
    assert "not generated volumes: 4 of 4 volumes" in warnings
    table = pd.read_csv(tmp_path / "out" / "memorisation.csv")
    assert set(table["declared edit of"]) == set(declared_edits(edited).values())
    moved = (edited / "edits.csv").rename(tmp_path / "edits.csv")
    try:
        assert evaluate()["memorisation"]["copies"]  # what an undeclared one is called
    finally:
        moved.rename(edited / "edits.csv")


# --- page and command


def test_the_page_shows_scan_edit_and_difference(edited: Path, visit: Any) -> None:
    page = shows_picture_first(visit, edited / "index.html")
    assert page.inner_text(".headline").startswith("4 edited scans of ")
    first = page.locator(".case").first
    source = declared_edits(edited)[first.locator("h2 a").inner_text()]
    assert first.locator(".title").all_inner_texts() == [
        f"real scan {source}",
        f"edit of {source}",
        "edit minus real scan",
        "mask",
    ]
    assert f"Edit of the real scan {source}: DIAGNOSIS: " in first.inner_text()
    assert page.get_by_text("What was changed").count() == 1


def test_a_diffusion_run_edits_by_inversion(
    cohort_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrainedRun(tmp_path / "runs", "new", cohort_dir)
    done = train(cohort_dir, run.checkpoints, "--model", "diffusion", "--max_steps", "1")
    assert done.code == 0, done.text
    words = ("--how", "edit", "--balance", "SEX", "--n", "2", "--sampling_steps", "2")
    out = synthesis.synthesise_cohort(options(run, tmp_path / "out", *words))
    records = [json.loads(path.read_text()) for path in sorted((out / "records").iterdir())]
    assert [record["how"] for record in records] == ["edit", "edit"]
    assert all(record["mean_absolute_change_hu"] > 0 for record in records)
    monkeypatch.setattr(CaseEditor, "__call__", lambda *_: pytest.fail("made again"))
    synthesis.synthesise_cohort(options(run, out, *words))  # resumes, with nothing to do
    for flags, message in (
        (("--n", "40"), "would repeat another one exactly"),
        (("--sampler", "ddpm"), "ddpm"),
    ):
        with pytest.raises(UserError, match=message):
            synthesis.synthesise_cohort(options(run, tmp_path / "bad", *words, *flags))
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--how", "edit", "--balance", "SEX"), "not a diffusion model.*--how residual"),
        (("--how", "residual", "--balance", "SEX", "--split", "test"), "held out would get into"),
        (("--how", "residual", "--balance", "SEX", "--rows", "own"), "--rows own"),
        (("--how", "residual", "--balance", "HEIGHT"), "no column 'HEIGHT'"),
        (("--balance", "SEX", "--sampling_steps", "4"), "not a diffusion model"),
    ],
)
def test_bad_flags_write_nothing(
    trained_run: TrainedRun, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        synthesis.synthesise_cohort(options(trained_run, tmp_path / "o", *words, "--n", "2"))
    assert not (tmp_path / "o").exists()


def test_a_column_without_another_value_or_unknown_to_the_run(
    trained_run: TrainedRun, cohort_copy: Path, tmp_path: Path
) -> None:
    path = cohort_copy / "clinical.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.assign(SEX="Male", GROUP=["a", "b"] * (len(table) // 2)).to_csv(path, index=False)
    root: tuple[str | Path, ...] = (
        "--dataroot",
        cohort_copy,
        *trained_run.flags(),
        "--out",
        tmp_path / "o",
        "--n",
        "2",
    )
    done = command("scripts/expand.py", *root, "--how", "residual", "--balance", "SEX")
    refused(done, "--balance SEX", "1 known value (Male)")
    done = command("scripts/expand.py", *root, "--how", "residual", "--balance", "GROUP")
    refused(done, "was trained without the column 'GROUP'")
