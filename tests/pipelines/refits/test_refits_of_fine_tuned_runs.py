"""Refits of runs that started from another run's weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data.phantom.write import make_phantom_cohort
from options.atlas_options import RefitOptions
from options.phantom_options import PhantomOptions
from pipelines.refits.plan import OriginRun, planned_refits
from pipelines.training.fine_tuning import SourceRun
from tests.atlas_run import in_this_process
from tests.commands import TrainedRun, command
from util.cli import UserError
from util.files import read_json, write_json
from util.training.runs import OPTIONS_FILE

ONE = RefitOptions(refits=1)


def fine_tune(source: TrainedRun, cohort: Path) -> OriginRun:
    """Start a run beside its source."""
    place = ("--name", "tuned", "--checkpoints_dir", source.checkpoints)
    words = ("--init_from", source.name, "--max_steps", "2", "--val_cases", "0", "--val_freq", "9")
    done = command("train.py", "--dataroot", cohort, *place, *words)
    assert done.code == 0, done.text
    return OriginRun.load(source.checkpoints / "tuned")


def test_refits_start_from_the_source_where_it_saw_other_patients(
    run_copy: TrainedRun,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = PhantomOptions(
        OUT=str(tmp_path / "other"), cases=8, size=(24, 24, 16), seed=9, test_cases=1, val_cases=0
    )
    origin = fine_tune(run_copy, make_phantom_cohort(options))
    wanted = planned_refits(origin, ONE)
    in_this_process(origin, ONE, wanted)
    refit = read_json(origin.folder / "refits" / "resampled_001" / OPTIONS_FILE)
    assert Path(refit["run"]["init_from"]) == run_copy.folder and refit["data"]["resample"]
    assert "does not tell its scans" not in caplog.text
    source = SourceRun.load(origin.source, "")
    exported = replace(source, state={**source.state, "data": {"values": {}}})
    with monkeypatch.context() as patch:
        patch.setattr(SourceRun, "load", lambda *_: exported)
        planned_refits(origin, ONE)
    assert "does not tell its scans" in caplog.text
    shutil.rmtree(run_copy.folder)
    with pytest.raises(UserError, match="no run"):
        planned_refits(origin, ONE)


def test_weights_that_have_seen_the_patients_are_refused(run_copy: TrainedRun) -> None:
    origin = fine_tune(run_copy, run_copy.cohort)
    with pytest.raises(UserError, match="used 10 of its scans"):
        planned_refits(origin, ONE)


def test_a_run_from_a_global_one_is_read_but_not_refitted(run_copy: TrainedRun) -> None:
    """Its atlas without refits can be built."""
    file = run_copy.folder / OPTIONS_FILE
    options = read_json(file)
    options["optim"]["load_global"] = "coarse"
    write_json(file, options)
    with pytest.raises(UserError, match="Refit the global run itself"):
        planned_refits(OriginRun.load(run_copy.folder), ONE)
