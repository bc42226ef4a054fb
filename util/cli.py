"""Errors meant for people, exit codes, log set-up and file names: what every command shares."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable

from tqdm import tqdm

log = logging.getLogger(__name__)

UNSAFE = re.compile(r"[^A-Za-z0-9.+-]")


class UserError(Exception):
    """Bad input: the message names the file or flag, the rule, the value that came and what to do."""

    code = 2  # the command's exit code


class _AboveProgressBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def setup_logging(level: int = logging.INFO) -> None:
    """Sends log records to standard error, without breaking progress bars."""
    handler = _AboveProgressBar()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for noisy in ("transformers", "matplotlib", "nibabel", "PIL"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def main_rank() -> bool:
    """Whether this process is the one that speaks (rank 0, or the only one)."""
    return int(os.environ.get("RANK", "0")) == 0


def run(command: Callable[[], None]) -> None:
    """Runs a command's `main`; a `UserError` becomes one message and exit code 2, Ctrl-C exit code 130."""
    setup_logging(logging.INFO if main_rank() else logging.ERROR)
    try:
        command()
    except UserError as error:
        log.error("%s", error)
        sys.exit(error.code)
    except KeyboardInterrupt:
        log.error("Interrupted.")
        sys.exit(130)


def safe_name(text: str) -> str:
    """`text` as part of a file name: every character outside letters, digits, `.`, `+`, `-` becomes `_`."""
    return UNSAFE.sub("_", text)


def listing(items: list[str], limit: int = 8) -> str:
    """The items as "a, b, c, ... (12 in all)", for messages."""
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown}, ... ({len(items)} in all)"
