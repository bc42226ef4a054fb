"""The project's commands as a user starts them: in this process, which is fast, or as programs of
their own.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from accelerate.state import AcceleratorState

from util import cli
from util.files import file_sha256

ROOT = Path(__file__).resolve().parents[1]
# The smallest network that is one, and a training of a second.
TINY = (
    "--template",
    "aiib23",
    "--text_encoder",
    "table",
    "--patch_size",
    "16,16,8",
    "--ngf",
    "4",
    "--ndf",
    "4",
    "--n_blocks_global",
    "1",
    "--n_layers_D",
    "2",
    "--num_D",
    "1",
    "--text_hidden",
    "8",
    "--max_steps",
    "4",
    "--val_cases",
    "1",
    "--val_freq",
    "100",
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it said."""

    code: int
    text: str


def program(*words: str | Path, timeout: float = 300, **environment: str) -> Outcome:
    """Runs `python WORDS` from the project's root."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Outcome(done.returncode, done.stdout + done.stderr)


def main_of(name: str) -> Callable[[], None]:
    """Return the `main` of a command, such as scripts/refit.py."""
    module = importlib.import_module(".".join(Path(name).with_suffix("").parts))
    main: Callable[[], None] = module.main
    return main


def command(name: str, *words: str | Path) -> Outcome:
    """Runs a command with these words in this process, as `util.cli.run_command` runs it."""
    # Accelerate keeps its settings for the life of a process; here each command is to begin anew.
    AcceleratorState._reset_state(reset_partial_state=True)
    said = io.StringIO()
    with _own_logging(), _arguments(name, *words), contextlib.redirect_stderr(said):
        try:
            cli.run_command(main_of(name))
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, said.getvalue())


@dataclass(frozen=True)
class TrainedRun:
    """A run of a few steps: it makes volumes, bad ones. Leave it as it is, or work on a copy of
    `checkpoints`.
    """

    checkpoints: Path
    name: str
    cohort: Path

    @property
    def folder(self) -> Path:
        return self.checkpoints / self.name

    def flags(self) -> tuple[str, ...]:
        """Which run it is, for any command."""
        return "--name", self.name, "--checkpoints_dir", str(self.checkpoints)

    def test(self, results: Path, *words: str, cohort: Path | None = None) -> Outcome:
        """`test.py` on its cohort (or another one), without a page unless asked for."""
        page = () if "--page" in words else ("--no-page",)
        return command(
            "test.py",
            "--dataroot",
            str(cohort or self.cohort),
            *self.flags(),
            "--results_dir",
            str(results),
            *page,
            *words,
        )


def refused(done: Outcome, *parts: str) -> None:
    """One message with these parts, for a person, and exit code 2."""
    assert done.code == 2, done.text
    assert "Traceback" not in done.text and done.text.count(" ERROR ") == 1, done.text
    message = done.text.partition(" ERROR ")[2]
    for part in parts:
        assert part in message, message


def train(cohort: Path, checkpoints: Path, *words: str | Path, name: str = "new") -> Outcome:
    """`train.py` on a cohort with the `TINY` flags and these."""
    return command(
        "train.py",
        "--dataroot",
        cohort,
        "--name",
        name,
        "--checkpoints_dir",
        checkpoints,
        *TINY,
        *words,
    )


def files(folder: Path) -> dict[str, str]:
    """Name and sha256 of every file in a folder."""
    return {
        str(p.relative_to(folder)): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()
    }


def kept(folder: Path) -> dict[str, str]:
    """The files of a run that a refused command must not change: all but what the checks of volumes
    found.
    """
    return {
        name: digest for name, digest in files(folder).items() if not name.endswith("checks.json")
    }


@contextlib.contextmanager
def _arguments(*words: str | Path) -> Iterator[None]:
    before, sys.argv = sys.argv, [str(word) for word in words]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _own_logging() -> Iterator[None]:
    """Gives pytest its log handlers back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)
