"""Functions for worker processes of the tests, without heavy imports so that workers start fast."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from util.cli import UserError


def act(word: str) -> str:
    """Return the word in capitals; "die" kills the process and "fail" raises an error."""
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "fail":
        raise UserError("it failed")
    return word.upper()


def leave_mark(path: Path) -> None:
    """Write the id of this process to a file, and stay busy unless the name begins with "fast"."""
    path.write_text(str(os.getpid()))
    if not path.name.startswith("fast"):
        time.sleep(120)
