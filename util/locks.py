"""Locks on folders, so that two processes never write into one at once."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from util.cli import UserError, is_main_process

log = logging.getLogger(__name__)

MAX_WAIT_S = 15.0  # for the children of a killed process, which hold its lock until they end
MAX_NAME_WAIT_S = 2.0  # for an owner that holds the lock and has not written its name yet
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of some file systems

_held: set[int] = set()


def _release_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


@contextlib.contextmanager
def locked_folder(folder: Path, flag: str) -> Iterator[None]:
    """Keep other processes from writing into a folder while the block runs.

    The lock is one of the operating system (`flock`) on a file beside the folder, so that it ends
    with its process, however that dies. The file names host, process and time. (`filelock` empties
    its file with every attempt, so the owner could not be named in it.) With torchrun, the main
    process holds the lock for all.

    Args:
        folder: The folder; it need not exist.
        flag: Flag that names the folder, for messages.

    Raises:
        UserError: Another process holds the lock, or the lock of another host was left.
    """
    if not is_main_process():
        yield
        return
    folder = folder.resolve()
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    try:
        descriptor = _acquire(path, folder, flag)
        try:
            yield
        finally:
            if descriptor is not None:
                _held.discard(descriptor)
                path.unlink(missing_ok=True)
                os.close(descriptor)
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()  # where nothing was written


def _acquire(path: Path, folder: Path, flag: str) -> int | None:
    """Return the descriptor of the locked file; None where the file system has no locks."""
    start = time.monotonic()
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _read_owner(descriptor)
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                log.warning(
                    "%s: the file system has no locks. See that no second process writes into it.",
                    folder,
                )
                return None
            max_wait_s = MAX_WAIT_S if _is_dead(owner) else 0.0 if owner else MAX_NAME_WAIT_S
            if time.monotonic() - start >= max_wait_s:
                raise UserError(
                    f"{flag}: {folder} is in use by {_describe(owner)}. Wait until it ends, stop "
                    "it, or choose another folder."
                ) from None
            time.sleep(0.2)
            continue
        if not _is_current(descriptor, path):  # another process removed it meanwhile
            os.close(descriptor)
            continue
        owner = _read_owner(descriptor)
        if owner.get("host", socket.gethostname()) != socket.gethostname():
            os.close(descriptor)
            raise UserError(
                f"{flag}: {folder} may be in use by {_describe(owner)}. If that process does not "
                f"run any more, delete {path}."
            )
        _write_owner(descriptor)
        _held.add(descriptor)
        return descriptor


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int) -> None:
    owner = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": datetime.datetime.now().isoformat(" ", "seconds"),
        "command": Path(sys.argv[0]).name,
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _read_owner(descriptor: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_dead(owner: dict[str, Any]) -> bool:
    """Return whether the owner was a process of this host that is gone."""
    process = owner.get("process")
    if owner.get("host") != socket.gethostname() or not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return (
        f"{owner.get('command')}, process {owner.get('process')} on {owner.get('host')}, since "
        f"{owner.get('since')}"
    )
