"""Runs that were handed on: a zip file or a folder of `scripts/export.py`.

A zip comes from somebody else, so everything in it is checked before a file is written: names,
sizes, checksums. Nothing in it can run code.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from util import __version__
from util.cli import UserError, format_list, safe_name
from util.files import BLOCK_BYTES, file_sha256, read_json
from util.schema import misfit

MANIFEST = "mask2ct.json"  # of an exported run
CARD = "README.md"
FORMAT = 1
MANIFEST_TYPES = {"format": int, "version": str, "name": str, "step": int, "files": dict[str, str]}
MAX_MANIFEST_BYTES = 2**20
MAX_BYTES = 2**35  # of all files of a zip
MAX_FILES = 1000
MAX_RATIO = 200  # of a file's bytes to its stored ones; weights hardly shrink
ALLOWED_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.+-]*){0,3}")
FIX = "Ask for the file again, or export the run again."
ZIP_ERRORS = (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, ValueError)


def is_shared(name: str) -> bool:
    """Return whether the name of a run is a zip file, or the folder of an exported run."""
    return Path(name).suffix.lower() == ".zip" or (Path(name) / MANIFEST).is_file()


def shared_title(name: str) -> str:
    """Return what a shared run is called in results: the name of its file or folder."""
    path = Path(name)
    return safe_name(path.stem if path.suffix.lower() == ".zip" else path.resolve().name)


def open_shared(name: str) -> Path:
    """Return the run's folder of a zip or of an exported folder.

    A zip is unpacked to a temporary folder, which is removed when the program ends.

    Raises:
        UserError: The file is missing, damaged, unsafe, not an exported run, or of a later format.
    """
    path = Path(name)
    if path.is_dir():
        check_folder(path.resolve())
        return path
    if not path.is_file():
        raise UserError(f"--name: {path} is not there. Check the path.")
    status = path.stat()
    return _unpacked(path.resolve(), status.st_size, status.st_mtime_ns)


@functools.cache
def check_folder(folder: Path) -> None:
    """Raise `UserError` where a file of an exported folder is missing or changed, once per program.

    The model card may be edited.
    """
    manifest = check_manifest(read_json(folder / MANIFEST), folder)
    for name, digest in manifest["files"].items():
        if name == CARD:
            continue
        if not ALLOWED_NAME.fullmatch(name) or not (folder / name).is_file():
            raise UserError(f"{folder} is incomplete: it lacks {name[:100]}. {FIX}")
        if file_sha256(folder / name) != digest:
            raise UserError(
                f"{folder / name} is damaged: its content is not that of its checksum. {FIX}"
            )


@functools.cache
def _unpacked(path: Path, size: int, changed: int) -> Path:
    """Unpack a zip once per program; size and time of change tell a new file of the same name."""
    folder = Path(tempfile.mkdtemp(prefix="mask2ct-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = folder / shared_title(path.name)
    try:
        unpack(path, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return target


def unpack(path: Path, folder: Path) -> None:
    """Unpack an exported run; nothing is written before all names and sizes were checked.

    Raises:
        UserError: The zip is damaged, unsafe, not an exported run, or of a later format; or the
            disk is full.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            manifest = _read_manifest(path, archive)
            _check_listed(path, entries, manifest["files"])
            for entry in entries:
                _extract(path, archive, entry, folder, manifest["files"].get(entry.filename))
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except (*ZIP_ERRORS, RuntimeError) as error:  # RuntimeError: an encrypted file
        shutil.rmtree(folder, ignore_errors=True)
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path} cannot be read as a zip file ({reason}). {FIX}") from None


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Raise `UserError` for names that lead elsewhere, links, repeats, and sizes beyond reason."""
    names = [entry.filename for entry in entries]
    if len(names) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise UserError(
            f"{path} would unpack to more than {MAX_FILES} files or {MAX_BYTES // 2**30} GB, so it "
            f"is not opened. {FIX}"
        )
    for entry in entries:
        name = entry.filename
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if not ALLOWED_NAME.fullmatch(name) or ".." in PurePosixPath(name).parts:
            problem = "which may lead out of its folder"
        elif kind not in (0, stat.S_IFREG):
            problem = "which is a link or no plain file"
        elif names.count(name) > 1:
            problem = "twice"
        elif entry.file_size > MAX_RATIO * max(entry.compress_size, 1) + BLOCK_BYTES:
            problem = f"which would unpack to {entry.file_size} bytes"
        else:
            continue
        raise UserError(
            f"{path} holds the file {name[:100]!r}, {problem}. It is not opened; do not trust it."
        )


def _read_manifest(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    try:
        entry = archive.getinfo(MANIFEST)
    except KeyError:
        raise UserError(
            f"{path} holds no {MANIFEST}, so it is not a run that scripts/export.py wrote. {FIX}"
        ) from None
    if entry.file_size > MAX_MANIFEST_BYTES:
        raise UserError(f"{path}: {MANIFEST} is far too large. {FIX}")
    try:
        content = json.loads(archive.read(entry))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {MANIFEST} is damaged ({error}). {FIX}") from None
    return check_manifest(content, path)


def check_manifest(content: Any, source: Path) -> dict[str, Any]:
    """Return the manifest of an exported run.

    Raises:
        UserError: It is damaged, or of a format that this version does not know.
    """
    if problem := misfit(content, MANIFEST_TYPES):
        raise UserError(f"{source}: {MANIFEST} is damaged ({problem}). {FIX}")
    if content["format"] != FORMAT:
        raise UserError(
            f"{source} was exported by version {content['version']} in format "
            f"{content['format']}, and this is version {__version__}, which reads format {FORMAT}. "
            "Use that version, or export the run again."
        )
    return dict(content)


def _check_listed(path: Path, entries: list[zipfile.ZipInfo], files: dict[str, str]) -> None:
    names = {entry.filename for entry in entries} - {MANIFEST}
    if strangers := sorted(names - set(files)):
        raise UserError(
            f"{path} holds files that its {MANIFEST} does not list: {format_list(strangers)}. It "
            "is not opened; do not trust it."
        )
    if missing := sorted(set(files) - names):
        raise UserError(f"{path} is incomplete: it lacks {format_list(missing)}. {FIX}")


def _extract(
    path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, sha256: str | None
) -> None:
    target = folder / entry.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(entry) as source, target.open("wb") as file:
        while block := source.read(BLOCK_BYTES):
            digest.update(block)
            file.write(block)
    if sha256 is not None and digest.hexdigest() != sha256:
        raise UserError(
            f"{path}: {entry.filename} is damaged: its content is not that of its checksum. {FIX}"
        )


def write_manifest(folder: Path, name: str, step: int) -> None:
    """Write the manifest of a folder that is exported, with the checksum of every file."""
    files = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "format": FORMAT,
        "version": __version__,
        "name": name,
        "step": step,
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def pack(folder: Path, path: Path) -> None:
    """Write a folder as a zip whose bytes depend on its files alone."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if not file.is_file():
                continue
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            is_text = file.suffix != ".safetensors"
            entry.compress_type = zipfile.ZIP_DEFLATED if is_text else zipfile.ZIP_STORED
            with file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, BLOCK_BYTES)
