"""Errors meant for people, exit codes, log set-up and file names: what every command shares."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Callable

from tqdm import tqdm

log = logging.getLogger(__name__)

UNSAFE = re.compile(r"[^A-Za-z0-9.+-]")

# What a disk refuses for reasons that a user can mend.
REFUSED = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "choose another folder",
    errno.EACCES: "choose another folder or change its permissions",
    errno.EPERM: "choose another folder or change its permissions",
    errno.ENAMETOOLONG: "choose shorter names",
    errno.ENOTDIR: "choose another folder",
}


class UserError(Exception):
    """Bad input: the message names the file or flag, the rule, the value that came and what to
    do.
    """

    code = 2  # the command's exit code


class _AboveProgressBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def setup_logging(level: int = logging.INFO) -> None:
    """Sends log records to standard error, without breaking progress bars."""
    handler = _AboveProgressBar()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for noisy in ("transformers", "matplotlib", "nibabel", "PIL"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def is_main_process() -> bool:
    """Whether this process is the one that speaks (rank 0, or the only one)."""
    return int(os.environ.get("RANK", "0")) == 0


def world_size() -> int:
    """Processes of this run; in a dry run those that the launch script is going to start
    (PLANNED_WORLD_SIZE).
    """
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("PLANNED_WORLD_SIZE") or "1")


def run_command(command: Callable[[], None]) -> None:
    """Runs a command's `main`; a `UserError` becomes one message and exit code 2, Ctrl-C exit code
    130.

    So does what a disk refuses (no space, no permission), wherever it happens.
    """
    setup_logging(logging.INFO if is_main_process() else logging.ERROR)
    try:
        command()
    except UserError as error:
        log.error("%s", error)
        sys.exit(error.code)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        what = (
            f"{error.filename} cannot be used" if error.filename else "A file could not be written"
        )
        log.error(
            "%s: %s. What was finished before is kept; %s, and run the command again.",
            what,
            error.strerror,
            REFUSED[error.errno],
        )
        sys.exit(UserError.code)
    except KeyboardInterrupt:
        log.error("Interrupted.")
        sys.exit(130)


def safe_name(text: str) -> str:
    """`text` as part of a file name: every character outside letters, digits, `.`, `+`, `-` becomes
    `_`.
    """
    return UNSAFE.sub("_", text)


def format_list(items: list[str], limit: int = 8) -> str:
    """The items as "a, b, c, ... (12 in all)", for messages."""
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown}, ... ({len(items)} in all)"
