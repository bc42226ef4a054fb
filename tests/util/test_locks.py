"""Locks on folders: one process at a time, and none left by a process that died."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.commands import ROOT
from util.cli import UserError
from util.locks import locked_folder

HOLD = """
import os, sys, time
from pathlib import Path
from util.locks import locked_folder
with locked_folder(Path(sys.argv[1]), "--name"):
    if len(sys.argv) > 2:
        if os.fork() == 0:
            time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end_group(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    process = hold(folder)
    try:
        with pytest.raises(UserError) as error, locked_folder(folder, "--name"):
            pass
        text = str(error.value)
        assert f"process {process.pid} on {socket.gethostname()}, since 20" in text
        with locked_folder(tmp_path / "new" / "another", "--name"):
            pass
    finally:
        end_group(process)


@pytest.mark.parametrize("named", [True, False])
def test_an_owner_between_its_lock_and_its_name_is_waited_for(named: bool, tmp_path: Path) -> None:
    """One that never writes its name (a full disk) is not waited for long."""
    path = tmp_path / ".run.lock"
    owner = {"host": socket.gethostname(), "process": os.getpid(), "since": "", "command": "late"}
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if named:
            threading.Timer(0.5, path.write_text, [json.dumps(owner)]).start()
        start = time.monotonic()
        with (
            pytest.raises(UserError, match="is in use by " + ("late" if named else "another")),
            locked_folder(tmp_path / "run", "--name"),
        ):
            pass
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("words", [(), ("with a child",)])
def test_the_lock_of_a_killed_process_is_taken_over(words: tuple[str, ...], tmp_path: Path) -> None:
    """Also while a child of it, such as a data worker, lives on."""
    folder = tmp_path / "run"
    process = hold(folder, *words)
    process.kill()
    process.wait()
    try:
        assert (tmp_path / ".run.lock").is_file()
        start = time.monotonic()
        with locked_folder(folder, "--name"):
            assert time.monotonic() - start < 5
        assert not (tmp_path / ".run.lock").exists()
    finally:
        if words:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_lock_of_another_host_is_left(tmp_path: Path) -> None:
    path = tmp_path / ".run.lock"
    path.write_text(
        json.dumps({"host": "elsewhere", "process": 1, "since": "2026", "command": "c"})
    )
    with (
        pytest.raises(UserError, match=r"process 1 on elsewhere.*delete .*\.run\.lock"),
        locked_folder(tmp_path / "run", "--name"),
    ):
        pass
    path.write_text("not JSON")
    with locked_folder(tmp_path / "run", "--name"):
        assert json.loads(path.read_text())["process"] == os.getpid()


def test_nothing_is_left_where_nothing_was_written(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "a" / "b" / "run", "--name"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked_folder(tmp_path / "a" / "run", "--name"):
        (tmp_path / "a" / "run").mkdir()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run"]
