"""Worker processes of the preparation: errors, deaths, interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from data.preparation.jobs import run_in_processes
from tests.commands import ROOT
from tests.worker_tasks import act, leave_mark

PROGRAM = """
import pathlib, sys
from data.preparation.jobs import run_in_processes
from tests.worker_tasks import leave_mark
paths = [pathlib.Path(word) for word in sys.argv[1:]]
try:
    list(run_in_processes(leave_mark, paths, 2))
except KeyboardInterrupt:
    sys.exit(130)
"""


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it took too long")


def is_running(process: str) -> bool:
    """Whether a process exists and is not a zombie, which waits for nobody in a container."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_that_dies_takes_no_other_task_with_it(processes: int) -> None:
    words = ["a", "die", "b", "fail", "c"]
    outcomes = dict(run_in_processes(act, words, processes))
    assert set(outcomes) == set(words)
    assert [outcomes[word] for word in "abc"] == ["A", "B", "C"]
    assert str(outcomes["fail"]) == "it failed"
    assert "Its process died" in str(outcomes["die"])


def test_tasks_in_this_process() -> None:
    assert dict(run_in_processes(act, ["a", "b"], 0)) == {"a": "A", "b": "B"}
    assert list(run_in_processes(act, [], 2)) == []


def test_a_caller_that_stops_begins_no_further_task(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("fast", "slow1", "slow2", "slow3")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcomes = run_in_processes(leave_mark, paths, 1)
        assert next(outcomes) == (paths[0], None)
        outcomes.close()
    assert not paths[-1].exists()


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_command(tmp_path: Path, kill: int) -> None:
    paths = [tmp_path / f"slow{i}" for i in range(4)]
    command = [sys.executable, "-c", PROGRAM, *map(str, paths)]
    running = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: all(path.exists() and path.read_text() for path in paths[:2]))
    workers = [path.read_text() for path in paths[:2]]
    if kill == signal.SIGINT:
        os.killpg(running.pid, kill)  # as Ctrl-C does
    else:
        running.send_signal(kill)
    running.wait(timeout=30)
    if kill == signal.SIGINT:
        assert running.returncode == 130
    wait_until(lambda: not any(map(is_running, workers)))
    assert not paths[2].exists() and not paths[3].exists()
