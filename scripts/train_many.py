"""Train several runs, one after the other in one process, so that imports are made once.

Each line of standard input is a JSON object: "words", the command line of train.py, and "log", the
file of its messages. For each, a line with train.py's exit code is written to standard output.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.parser import parse_command
from options.train_many_options import TrainManyOptions
from util.cli import run_command


def train_logged(words: list[str], log: str) -> int:
    """Run train.py with these words, its messages to a file; return the exit code."""
    # Slow to import: --help and mistakes in the command line are answered without it.
    from accelerate.state import AcceleratorState

    import train

    # Accelerate keeps device and precision for the life of a process; each run begins anew.
    AcceleratorState._reset_state(reset_partial_state=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    sys.argv = ["train.py", *words]
    try:
        run_command(train.main)
    except SystemExit as end:
        return int(end.code or 0)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Parse the command line and train the runs of standard input."""
    limit = parse_command(TrainManyOptions, (__doc__ or "").splitlines()[0]).max_runs
    answers = os.fdopen(os.dup(1), "w")
    for number, line in enumerate(sys.stdin, start=1):
        task = json.loads(line)
        answers.write(f"{train_logged(task['words'], task['log'])}\n")
        answers.flush()
        if number == limit:
            break


if __name__ == "__main__":
    run_command(main)
