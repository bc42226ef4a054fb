"""When patients are cross-fitted by default, and with which folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.cohort import Case, Cohort
from options.atlas_options import AtlasCases, AtlasCommand, RefitOptions
from pipelines.atlas.run import choose_fold
from pipelines.refits.cross_fitting import finished_folds, needs_folds
from pipelines.refits.plan import Refit
from tests.commands import TrainedRun, command


def cohort_of(train: int, test: int) -> Cohort:
    """A cohort of that many training and test cases, each of another patient."""
    ids = [f"p{i}" for i in range(train + test)]
    cases = tuple(Case(i, Path(f"{i}.nii.gz"), Path("mask.nii.gz"), {}) for i in ids)
    splits = {"train": tuple(ids[:train]), "test": tuple(ids[train:])}
    return Cohort(Path("cohort"), cases, splits, (0, 1, 2), ())


def fold_records(*folds: str) -> list[dict[str, Any]]:
    return [{"kind": "fold", "fold": fold, "steps": 9, "run_step": 9} for fold in folds]


@pytest.mark.parametrize(
    ("train", "test", "needed"),
    [(30, 4, True), (20, 19, True), (30, 20, False), (19, 0, False), (0, 40, False)],
)
def test_folds_are_needed_where_too_few_patients_are_unseen(
    train: int, test: int, needed: bool
) -> None:
    cohort = cohort_of(train, test)
    assert needs_folds(cohort, {case.id: case.id for case in cohort.cases}) is needed


def test_several_scans_of_a_patient_are_one_unseen_patient() -> None:
    cohort = cohort_of(30, 25)
    patients = {case.id: case.id for case in cohort.cases}
    assert not needs_folds(cohort, patients)
    one_patient = {c: "same" if c in cohort.splits["test"] else p for c, p in patients.items()}
    assert needs_folds(cohort, one_patient)
    # A patient with scans in both splits is a patient of training.
    in_both = {c: "p0" if c in cohort.splits["test"] else p for c, p in patients.items()}
    assert needs_folds(cohort, in_both)


def test_only_complete_folds_count() -> None:
    complete = fold_records("1/2", "2/2")
    assert finished_folds(complete) == 2
    assert finished_folds([*complete, *fold_records("1/5", "2/5")]) == 2
    assert finished_folds(fold_records("1/5", "3/5")) == 0
    assert finished_folds([{"kind": "resampled", "fold": ""}, *fold_records("x")]) == 0


@pytest.mark.parametrize(
    ("cases", "asked", "done", "fold"),
    [
        (AtlasCases(), RefitOptions(), (), ""),  # a look: five trainings would claim nothing
        (AtlasCases(), RefitOptions(refits=20), (), "all/5"),
        (AtlasCases(), RefitOptions(permutations=19), (), "all/5"),
        (AtlasCases(), RefitOptions(), ("1/2", "2/2"), "all/2"),
        (AtlasCases(), RefitOptions(refit_steps=4), ("1/2", "2/2"), ""),  # are of other steps
        (AtlasCases(fold="none"), RefitOptions(refits=20), ("1/2", "2/2"), ""),
        (AtlasCases(fold="1/3"), RefitOptions(), (), "1/3"),
        (AtlasCases(split="test"), RefitOptions(refits=20), (), ""),
        (AtlasCases(how_many=3), RefitOptions(refits=20), (), ""),
        (AtlasCases(real_split="all"), RefitOptions(refits=20), (), ""),
    ],
)
def test_the_default_of_an_atlas(
    cases: AtlasCases,
    asked: RefitOptions,
    done: Sequence[str],
    fold: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.atlas.run.finished_refits", lambda folder: fold_records(*done))
    cohort = cohort_of(30, 4)
    options = replace(AtlasCommand(), cases=cases, refit=asked)
    run: Any = SimpleNamespace(folder=Path("run"))
    generation: Any = SimpleNamespace(cohort=cohort, data=SimpleNamespace(patient_column=""))
    assert choose_fold(options, run, generation, cohort) == fold
    if not cases.fold:  # other patients are all unseen
        assert choose_fold(options, run, generation, cohort_of(30, 4)) == ""


def test_refit_trains_the_folds_that_findings_need(
    trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[str] = []

    def plan_only(origin: Any, options: Any, wanted: Sequence[Refit]) -> None:
        planned[:] = [refit.name for refit in wanted]

    monkeypatch.setattr("pipelines.refits.run.train_refits", plan_only)
    words = ("scripts/refit.py", *trained_run.flags(), "--refits", "1")
    assert command(*words).code == 0
    assert planned == ["resampled_001"]  # nine training patients are too few to be divided
    monkeypatch.setattr("pipelines.refits.plan.needs_folds", lambda *_: True)
    done = command(*words)
    assert done.code == 0 and "5 more refits" in done.text, done.text
    assert planned == ["resampled_001", *(f"fold_{k}_of_5" for k in range(1, 6))]
    assert command(*words, "--folds", "0").code == 0
    assert planned == ["resampled_001"]
