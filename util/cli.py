"""Shared parts of all commands: errors for users, exit codes, logging and safe names."""

from __future__ import annotations

import difflib
import errno
import hashlib
import logging
import os
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger(__name__)

UNSAFE = re.compile(r"[^A-Za-z0-9.+-]")
INTERRUPTED = 130  # exit code after Ctrl-C
threads_abandoned = threading.Event()  # set where threads are still at work after Ctrl-C
MAX_COLUMNS_SHOWN = 40
MAX_SUGGESTIONS = 2
MAX_SHOWN = 300  # characters of a user's text in a message
MAX_NAME_LENGTH = 100  # a file name of 255 characters holds a case, a column and two values

# Parts of the texts of torch's RuntimeErrors for memory that the CPU does not have.
MEMORY_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "Storage size calculation overflowed",
    "std::bad_alloc",
    "killed by signal: Killed",  # a worker process that the system ended
    "killed by signal: Bus error",  # a worker process without shared memory
)

# Errors of the file system that a user can fix, and how.
FIXES = {
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
    """Bad input; the message names the file or flag, the rule, the value and the fix."""

    code = 2  # the command's exit code


class _Repetition(logging.Filter):
    """Keep a message that was printed before, which a cohort that is opened twice would repeat."""

    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = f"{record.levelname} {record.getMessage()}"
        is_new = text not in self._printed
        self._printed.add(text)
        return is_new


class _AboveProgressBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def setup_logging(level: int = logging.INFO) -> None:
    """Send log records to standard error, without breaking progress bars."""
    handler = _AboveProgressBar()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    )
    handler.addFilter(_Repetition())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for noisy in ("transformers", "matplotlib", "nibabel", "numexpr", "PIL", "highdicom"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def is_main_process() -> bool:
    """Return whether this process has rank 0 or is the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def world_size() -> int:
    """Return the number of processes of this run.

    In a dry run, the launch script sets PLANNED_WORLD_SIZE to the number that it is going to start.
    """
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("PLANNED_WORLD_SIZE") or "1")


def file_problem(error: BaseException) -> str:
    """Return an error of the file system and its fix in words, or "" for any other error.

    Libraries raise errors of their own, of any type, that hold the system's text.
    """
    text = str(error)
    for code, fix in FIXES.items():
        reason = os.strerror(code)
        if getattr(error, "errno", None) == code or reason in text or f"os error {code})" in text:
            return f"{reason}; {fix}"
    return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, of the CPU or of a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MEMORY_TEXTS)


def run_command(command: Callable[[], None]) -> None:
    """Run a command's `main` and turn errors into messages and exit codes.

    A `UserError`, a full or read-only disk, or memory that runs out, ends with exit code 2, Ctrl-C
    with 130.
    """
    setup_logging(logging.INFO if is_main_process() else logging.ERROR)
    try:
        command()
    except UserError as error:
        log.error("%s", error)
        sys.exit(error.code)
    except KeyboardInterrupt:
        log.error("Interrupted.")
        if threads_abandoned.is_set():
            logging.shutdown()
            os._exit(INTERRUPTED)  # else Python would wait for them
        sys.exit(INTERRUPTED)
    except Exception as error:
        if is_out_of_memory(error):
            log.error(
                "There is not enough memory (%s). Finished parts are kept; choose smaller sizes or "
                "fewer workers, or free memory, and run the command again.",
                " ".join(str(error).split())[:160] or type(error).__name__,
            )
        elif problem := file_problem(error):
            name = getattr(error, "filename", None)
            subject = f"{name} cannot be used" if name else "A file cannot be written"
            log.error(
                "%s: %s, and run the command again. Finished parts are kept.", subject, problem
            )
        else:
            raise
        sys.exit(UserError.code)


def safe_name(text: str) -> str:
    """Return `text` as part of a file name.

    Every character but letters, digits, `.`, `+` and `-` becomes `_`.
    """
    return UNSAFE.sub("_", text)


def digest_name(text: str, plain: str = "") -> str:
    """Return a file name that no other text has: the readable part and a short digest.

    Args:
        plain: The readable part; by default the safe name of `text`.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{(plain or safe_name(text))[:MAX_NAME_LENGTH]}-{digest}"


def unique_names(
    texts: Iterable[str], readable: Callable[[str], str] = safe_name
) -> dict[str, str]:
    """Return a file name for each text; no two are the same, also where case is ignored.

    A name is the readable form of its text. Only names that would be the same, or are too long,
    carry a digest. One whose readable form is the text itself keeps it.

    Args:
        texts: All texts whose files lie in one folder.
        readable: Returns the readable form of a text.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for text in dict.fromkeys(texts):
        groups[readable(text).casefold()].append(text)
    names = {}
    for group in groups.values():
        unchanged = [text for text in group if readable(text) == text]
        for text in group:
            plain = readable(text)
            is_clear = len(group) == 1 or unchanged == [text]
            fits = len(plain) <= MAX_NAME_LENGTH
            names[text] = plain if is_clear and fits else digest_name(text, plain)
    return names


def path_from_here(path: str) -> str:
    """Return a path as one would type it: relative where it lies below the current folder."""
    here = Path.cwd()
    below = Path(path).is_absolute() and Path(path).is_relative_to(here)
    return str(Path(path).relative_to(here)) if below else path


def shorten(text: str) -> str:
    """Return a text of users with at most `MAX_SHOWN` characters, for messages."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def counted(number: float, noun: str, plural: str = "") -> str:
    """Return a number with its noun, as in "1 case" and "3 cases", for messages and pages.

    Args:
        number: A whole number.
        noun: The noun of one, which may go on: "scan has".
        plural: The noun of several, where it is not `noun` with an s: "scans have".
    """
    return f"{number:.0f} {noun if number == 1 else plural or f'{noun}s'}"


def format_list(items: Sequence[str], limit: int = 8) -> str:
    """Return the items as "a, b, c, ... (12 in all)", for messages."""
    shown = ", ".join(shorten(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown}, ... ({len(items)} in all)"


def suggestion(word: str, choices: Iterable[str], mark: str = "") -> str:
    """Return " Did you mean X?" for a misspelt word, or "" where nothing is near.

    Args:
        word: The word as it was typed.
        choices: Words that are known.
        mark: What stands before a word, such as the dashes of a flag.
    """
    lowered = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower(), lowered, MAX_SUGGESTIONS)
    near = near[:1] if word.lower() in lowered else near
    names = [f"{mark}{lowered[name]}" for name in near]
    names = [repr(name) if name.endswith("?") else name for name in names]
    return f" Did you mean {' or '.join(names)}?" if names else ""


def unknown_column(subject: str, column: str, columns: Sequence[str], fix: str = "") -> str:
    """Return the message for a column that a table does not have, with those that it has.

    Args:
        subject: Flag or table, as the beginning of the sentence ("--vary: the table").
        columns: The columns that may be chosen.
        fix: What to do, as a sentence.
    """
    listed = format_list(columns, MAX_COLUMNS_SHOWN) or "none"
    near = suggestion(column, columns)
    fix = fix or "Correct the name."
    return f"{subject} has no column {column!r}; it has: {listed}.{near} {fix}"
