"""Atlases of patients other than those of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.phantom.write import make_phantom_cohort
from options.phantom_options import PhantomOptions
from tests.atlas_run import discover, record, table
from tests.commands import TrainedRun, refused


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other patients with the same names."""
    root = tmp_path_factory.mktemp("others") / "cohort"
    return make_phantom_cohort(
        PhantomOptions(
            OUT=str(root), cases=4, size=(24, 24, 16), seed=77, test_cases=2, val_cases=0
        )
    )


def test_other_patients_are_not_taken_for_those_of_training(
    trained_run: TrainedRun, others: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.previous").mkdir()  # left by a program that was killed
    for more in ((), ("--overwrite",)):
        done = discover(
            trained_run, out, "--columns", "SEX", "--how_many", "1", *more, cohort=others
        )
        assert done.code == 0, done.text
    warned = table(out, "cautions")
    texts = warned.loc[warned["kind"] == "other cohort", "text"].tolist()
    assert len(texts) == 1 and str(trained_run.cohort) in texts[0]
    assert not (warned["kind"] == "seen").any() and set(table(out, "cases")["seen"]) == {"no"}
    assert (
        record(out)["counts"]["training"] > 4
    )  # the run's own training cases, of which the others have too few
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folds_are_of_the_runs_own_patients(
    trained_run: TrainedRun, others: Path, tmp_path: Path
) -> None:
    done = discover(trained_run, tmp_path / "out", "--fold", "1/2", cohort=others)
    refused(done, "--fold is '1/2'", "is for the run's own cohort")
