"""Files and folders: written whole or not at all, fingerprints, and what must not be replaced."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from util.cli import UserError


@contextmanager
def atomic_path(path: Path, keep_suffix: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it once the block has ended well.

    Args:
        path: The file to be written; its folder is made.
        keep_suffix: Give the temporary file the suffix of `path`, which many writers choose their
            format by.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    suffix = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp{suffix if keep_suffix else ''}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{path} cannot be written ({reason}). Free space or choose another folder."
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def previous_folder(folder: Path) -> Path:
    """Return where `atomic_folder` keeps the old folder until the new one has its name."""
    return folder.with_name(f".{folder.name}.previous")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder` that replaces it once the block has ended well.

    A folder that is not empty cannot be replaced in one step, so the old one is renamed first (see
    `previous_folder`). After a kill between the two renames it is the only one, and is kept until
    a new one is complete.
    """
    temporary = folder.with_name(f".{folder.name}.writing")
    previous = previous_folder(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
        try:
            temporary.rename(folder)
        except OSError:
            if previous.exists():
                previous.rename(folder)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step; raise `UserError` where the disk refuses it."""
    with atomic_path(path, keep_suffix=False) as temporary:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; raise `UserError` that names a file that is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing. Check the folder, or make it again.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Restore it from a copy, or make it again."
        ) from None


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file in one step; a row may lack columns."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def file_fingerprint(path: Path) -> list[str | int]:
    """Return absolute path, size and time of change, which tell a file from another or older one.

    Volumes are too large to be read for this.
    """
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def json_digest(value: Any) -> str:
    """Return the sha256 of plain values as hexadecimal digits."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def claim_folder(
    folder: Path,
    markers: Sequence[str],
    overwrite: bool,
    flag: str = "--out",
    advice: str = "choose another folder",
) -> bool:
    """Raise `UserError` where a folder holds something that must not be replaced.

    Args:
        folder: The folder that a command is going to write.
        markers: Names of files or folders, one of which shows that the command made the folder;
            without any, only a new or empty folder is taken.
        overwrite: Take a folder that the command made before.
        flag: Flag that names the folder, for messages.
        advice: Further ways out, for messages.

    Returns:
        Whether the command made the folder before.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not any((folder / name).exists() for name in markers):
        holds = f" and holds no {' or '.join(markers)}" if markers else ""
        raise UserError(
            f"{flag}: {folder} is not empty{holds}, so it is not replaced. Choose another folder, "
            "or remove it by hand."
        )
    if not overwrite:
        raise UserError(
            f"{flag}: {folder} exists already. Use --overwrite to replace it, or {advice}."
        )
    return True


def claim_file(path: Path, overwrite: bool, flag: str = "--out") -> None:
    """Raise `UserError` where a file is there that must not be replaced."""
    if path.exists() and not overwrite:
        raise UserError(
            f"{flag}: {path} exists already. Use --overwrite to replace it, or choose another name."
        )
