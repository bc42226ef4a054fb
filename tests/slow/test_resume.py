"""Runs that were killed or stopped and go on, as a user sees them: `train.py` itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks import check_resume
from tests.commands import TINY, command
from util.training import checkpoint
from util.training.monitor import Monitor
from util.training.trainer import Trainer

pytestmark = pytest.mark.slow

STEPS = ("--max_steps", "8", "--save_latest_freq", "2", "--log_freq", "1", "--gpu_ids", "-1")


class Killed(BaseException):
    """Stands for SIGKILL within one process: no handler of errors sees it."""


def train(cohort: Path, runs: Path, name: str, *words: str) -> tuple[int, str]:
    done = command(
        "train.py",
        "--dataroot",
        cohort,
        "--checkpoints_dir",
        runs,
        "--name",
        name,
        *TINY,
        *STEPS,
        *words,
    )
    return done.code, done.text


@pytest.fixture(scope="module")
def uninterrupted(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is not stopped."""
    runs = tmp_path_factory.mktemp("runs")
    code, said = train(cohort_dir, runs, "uninterrupted")
    assert code == 0, said
    return runs / "uninterrupted"


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, happens: Any) -> None:
    """Call `happens` after everything else that a step of training brings."""
    original = Monitor.__call__

    def call(self: Monitor, losses: dict[str, torch.Tensor]) -> None:
        original(self, losses)
        if self.trainer.steps_done == step:
            happens()

    monkeypatch.setattr(Monitor, "__call__", call)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def raise_killed() -> None:
    raise Killed


# --- kills ---


def test_a_killed_run_goes_on_as_if_nothing_had_been(
    uninterrupted: Path, cohort_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 5, raise_killed)
        with pytest.raises(Killed):
            train(cohort_dir, tmp_path, "run")
    assert checkpoint.load_state(tmp_path / "run" / "latest")["step"] == 4
    assert [r["step"] for r in lines(tmp_path / "run")] == [1, 2, 3, 4, 5]
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "loss_')  # cut off in the middle of a line
    code, said = train(cohort_dir, tmp_path, "run", "--continue_train")
    assert code == 0, said
    assert not any(
        check_resume.compare_checkpoints(
            uninterrupted / "latest", tmp_path / "run" / "latest"
        ).values()
    )
    assert lines(tmp_path / "run") == lines(uninterrupted)  # nothing twice, nothing missing


@pytest.mark.parametrize("moment", ["in a file", "between the renames"])
def test_a_real_kill_in_a_save(
    moment: str, uninterrupted: Path, cohort_dir: Path, tmp_path: Path
) -> None:
    flags = [
        "--dataroot",
        str(cohort_dir),
        "--checkpoints_dir",
        str(tmp_path),
        "--name",
        "run",
        *TINY,
        *STEPS,
    ]
    check_resume.kill_at(moment, flags, 4)
    left = sorted(p.name for p in (tmp_path / "run").glob("*latest*"))
    assert left == (
        [".latest.writing", "latest"]
        if moment == "in a file"
        else [".latest.previous", ".latest.writing"]
    )
    assert checkpoint.load_state(checkpoint.find(tmp_path / "run" / "latest"))["step"] == 2
    code, said = train(cohort_dir, tmp_path, "run", "--continue_train")
    assert code == 0, said
    assert not any(
        check_resume.compare_checkpoints(
            uninterrupted / "latest", tmp_path / "run" / "latest"
        ).values()
    )


def test_differences_are_found(uninterrupted: Path, tmp_path: Path) -> None:
    """The comparison that the tests above trust."""
    shutil.copytree(uninterrupted / "latest", tmp_path / "latest")
    weights = checkpoint.load_part(tmp_path / "latest", "D")
    name = next(iter(weights))
    weights[name].view(-1)[0] += 0.5
    state = checkpoint.load_state(tmp_path / "latest")
    parts = {part: checkpoint.load_part(tmp_path / "latest", part) for part in state["parts"]}
    checkpoint.save(tmp_path / "latest", {**parts, "D": weights, "G": {}}, {**state, "step": 7})
    differences = check_resume.compare_checkpoints(uninterrupted / "latest", tmp_path / "latest")
    assert (
        differences["D"] == pytest.approx(0.5, rel=1e-3)
        and differences["G"] == float("inf")
        and differences["step"] == 1
    )
    assert differences["average"] == 0


# --- signals ---


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_saves_and_says_so(
    workers: int,
    uninterrupted: Path,
    cohort_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end_the_group() -> None:
        """What a batch system does: every process of the job gets the signal, the data workers
        first.
        """
        workers_now = [str(child.pid) for child in psutil.Process().children()]
        if (
            workers_now
        ):  # by another program: of its parent a data worker takes it without complaint
            subprocess.run(["kill", "-TERM", *workers_now], check=True)
        time.sleep(0.2)  # a worker that dies of it is noticed meanwhile
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        at_step(patch, 3, end_the_group)
        code, said = train(cohort_dir, tmp_path, "run", "--num_workers", str(workers))
    assert (
        code == 128 + signal.SIGTERM
        and "Stopped by SIGTERM after step 3; saved. Continue with --continue_train" in said
    )
    assert checkpoint.load_state(tmp_path / "run" / "latest")["step"] == 3
    code, said = train(cohort_dir, tmp_path, "run", "--continue_train", "--num_workers", "0")
    assert code == 0, said
    assert not any(
        check_resume.compare_checkpoints(
            uninterrupted / "latest", tmp_path / "run" / "latest"
        ).values()
    )


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(
    cohort_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.to_device

    def spoil(self: Trainer, batch: Any, prepare: Any) -> Any:
        moved = original(self, batch, prepare)
        return {**moved, "image": moved["image"] * float("inf")} if self.steps_done == 5 else moved

    monkeypatch.setattr(Trainer, "to_device", spoil)
    code, said = train(cohort_dir, tmp_path, "run")
    assert code == 1 and "in step 6 (D nan)" in said and "Traceback" not in said
    assert checkpoint.load_state(tmp_path / "run" / "latest")["step"] == 4


def test_ctrl_c_within_a_step_saves_the_step_before(
    uninterrupted: Path, cohort_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._update

    def interrupted(self: Trainer, name: str) -> None:
        original(self, name)
        if name == "D" and self.steps_done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupted)
        code, said = train(cohort_dir, tmp_path, "run")
    assert code == 130 and "after step 3; saved" in said, said
    code, said = train(cohort_dir, tmp_path, "run", "--continue_train")
    assert code == 0, said
    differences = check_resume.compare_checkpoints(
        uninterrupted / "latest", tmp_path / "run" / "latest"
    )
    assert not any(differences.values())


def test_two_processes_do_not_train_one_run(
    uninterrupted: Path, cohort_dir: Path, tmp_path: Path
) -> None:
    """One is refused, the other ends as if it had been alone; also after a kill."""
    flags: list[str] = [
        *("--dataroot", str(cohort_dir), "--checkpoints_dir", str(tmp_path), "--name", "run"),
        *TINY,
        *STEPS,
    ]
    processes = [check_resume.start_training(flags) for _ in range(3)]
    messages = [process.communicate(timeout=300)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2, 2], messages
    for code, text in zip(codes, messages, strict=True):
        assert "Traceback" not in text
        # One that starts late finds the finished run.
        assert code == 0 or "is in use by train.py, process" in text or "exists already" in text
    check_resume.kill_at("in a step", [*flags, "--overwrite"], 4)
    code, said = train(cohort_dir, tmp_path, "run", "--continue_train")
    assert code == 0, said
    differences = check_resume.compare_checkpoints(
        uninterrupted / "latest", tmp_path / "run" / "latest"
    )
    assert not any(differences.values())


# --- what goes on ---


def test_validation_of_lost_steps_is_dropped(
    cohort_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = ("--val_freq", "1", "--val_cases", "1", "--val_share", "1")
    with monkeypatch.context() as patch:
        at_step(patch, 5, raise_killed)
        with pytest.raises(Killed):
            train(cohort_dir, tmp_path, "run", *often)
    code, said = train(cohort_dir, tmp_path, "run", *often, "--val_freq", "8", "--continue_train")
    assert code == 0, said
    pictures = json.loads((tmp_path / "run" / "web" / "images.json").read_text())
    assert [p["step"] for p in pictures] == [1, 2, 3, 4, 8]
    assert [r["step"] for r in lines(tmp_path / "run") if "val_lung_mae_hu" in r] == [1, 2, 3, 4, 8]


def test_local_enhancers_start_from_a_trained_global_generator(
    cohort_dir: Path, tmp_path: Path
) -> None:
    """Coarse to fine: the global generator of a run twice as wide, kept as it is while only the
    enhancers learn.
    """
    code, said = train(
        cohort_dir,
        tmp_path,
        "coarse",
        "--ngf",
        "8",
        "--max_steps",
        "3",
        "--n_downsample_global",
        "1",
    )
    assert code == 0, said
    fine = (
        "--n_local_enhancers",
        "1",
        "--n_downsample_global",
        "1",
        "--load_global",
        "coarse",
        "--max_steps",
        "2",
    )
    code, said = train(cohort_dir, tmp_path, "fine", *fine, "--niter_fix_global", "99")
    assert code == 0, said
    begun = checkpoint.load_part(tmp_path / "coarse" / "latest", "average")
    for part in ("G", "average"):
        found = checkpoint.load_part(tmp_path / "fine" / "latest", part)
        shared = [k for k in found if k.startswith("global_generator.")]
        assert shared and all(torch.equal(found[k], begun[k]) for k in shared)
    code, said = train(cohort_dir, tmp_path, "other", *fine, "--ngf", "16")
    assert code == 2 and "Give --ngf 4" in said
