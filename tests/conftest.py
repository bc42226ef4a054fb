"""What tests share: a small phantom cohort and a run trained on it. Commands are started by
`tests/commands.py`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data.phantom.write import make_phantom_cohort
from options.phantom_options import PhantomOptions
from tests.commands import TINY, TrainedRun, command


@pytest.fixture(scope="session")
def cohort_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom cohort: 9 training, 1 validation and 2 test cases of 24x24x16 voxels. Not to be
    changed; copy it.
    """
    out = tmp_path_factory.mktemp("phantoms") / "cohort"
    return make_phantom_cohort(
        PhantomOptions(
            OUT=str(out),
            cases=12,
            size=(24, 24, 16),
            seed=1,
            test_cases=2,
            val_cases=1,
            missing=0.12,
            patient_sd=0.0,
        )
    )


@pytest.fixture(scope="session")
def trained_run(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A tiny run of four steps on `cohort_dir`, with the `table` text encoder."""
    run = TrainedRun(tmp_path_factory.mktemp("checkpoints"), "tiny", cohort_dir)
    done = command("train.py", "--dataroot", cohort_dir, *run.flags(), *TINY)
    assert done.code == 0, done.text
    return run


@pytest.fixture()
def cohort_copy(cohort_dir: Path, tmp_path: Path) -> Path:
    """A copy of the cohort, to be changed."""
    return Path(shutil.copytree(cohort_dir, tmp_path / "cohort"))


@pytest.fixture()
def run_copy(trained_run: TrainedRun, tmp_path: Path) -> TrainedRun:
    """A copy of the trained run, to be changed."""
    copy = shutil.copytree(trained_run.checkpoints, tmp_path / "checkpoints")
    return TrainedRun(Path(copy), trained_run.name, trained_run.cohort)
