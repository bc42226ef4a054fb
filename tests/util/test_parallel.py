"""Work in threads: order, errors, and Ctrl-C that does not wait for them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.commands import ROOT
from util.parallel import map_threads

SLEEP = """
import os
import time
from util.cli import run_command
from util.parallel import map_threads

def sleep(seconds):
    os.write(1, b"working\\n")  # not print, which writes the end of the line by itself
    time.sleep(seconds)

run_command(lambda: map_threads(sleep, [60] * 9, "Sleeping"))
"""


def test_results_come_in_order() -> None:
    assert map_threads(lambda n: n * n, range(30), "Squaring") == [n * n for n in range(30)]


def test_an_error_ends_the_work() -> None:
    def fail(number: int) -> None:
        if number == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        map_threads(fail, range(9), "Failing")


def test_ctrl_c_does_not_wait_for_threads() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEP], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"working\n"
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=30)
    assert process.returncode == 130 and time.monotonic() - start < 5
    assert b"Interrupted" in messages and b"Traceback" not in messages
