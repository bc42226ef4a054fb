"""Files and folders: written whole or not at all, fingerprints, and what must not be replaced."""

from __future__ import annotations

import codecs
import csv
import functools
import hashlib
import io
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.cli import UserError, counted, format_list

if TYPE_CHECKING:
    import pandas as pd

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BLOCK_BYTES = 2**22  # of a file that is read in blocks
# Characters with which a cell becomes a formula in a spreadsheet, also in full width.
FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")
NO_FORMULA = re.compile(r"[+-]?[\d.,]*\d[.,]?([eE][+-]?\d+)?( ?%)?|[+-]+")  # numbers, dashes


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


def plain_json(value: Any) -> Any:
    """Return a value as JSON has it: NaN and infinities as None, tuples as lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: plain_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(part) for part in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step, numbers that it does not have (NaN, infinities) as null.

    Raises:
        UserError: The disk refuses it.
    """
    with atomic_path(path, keep_suffix=False) as temporary:
        text = json.dumps(plain_json(value), indent=1, allow_nan=False)
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; raise `UserError` that names a file that is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing. Check the folder, or make it again.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None
    # Damage also makes numbers of too many digits (ValueError) and brackets that nest too deep.
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Restore it from a copy, or make it again."
        ) from None


def _is_formula(text: str) -> bool:
    """Return whether a spreadsheet takes a cell for a formula; numbers and dashes are none."""
    return text.startswith(FORMULA_STARTS) and not NO_FORMULA.fullmatch(text)


def escape_cell(value: Any) -> Any:
    """Return a cell with an apostrophe before a text that a spreadsheet takes for a formula.

    `unescape_cell` takes it away, and leaves every other text as it is.
    """
    if isinstance(value, str) and _is_formula(value.lstrip("'")):
        return f"'{value}"
    return value


def unescape_cell(text: str) -> str:
    """Return the text that `escape_cell` was given."""
    return text[1:] if text.startswith("'") and _is_formula(text.lstrip("'")) else text


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file in one step, formulas escaped; a row may lack columns."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writerow({column: escape_cell(column) for column in columns})
        for row in rows:
            writer.writerow({column: escape_cell(value) for column, value in row.items()})


def path_inside(folder: Path, name: str, source: Path) -> Path:
    """Return a file that a table names, which must lie in the table's folder or below.

    Args:
        name: Path relative to the folder.
        source: The table, for messages.

    Raises:
        UserError: The path leads elsewhere, also by a link.
    """
    path = folder / name
    try:
        path.exists()  # raises for a name that is too long
        if name and path.resolve().is_relative_to(folder.resolve()):
            return path
    except (OSError, ValueError, RuntimeError):
        pass  # a NUL character, or a loop of links
    raise UserError(
        f"{source} names the file {name[:200]!r}, which does not lie in {folder}. Only files in "
        "this folder are read; correct the name."
    )


def write_frame(path: Path, frame: pd.DataFrame, float_format: str | None = None) -> None:
    """Write a table of pandas without its index in one step, formulas escaped."""
    escaped = {}
    quoting = csv.QUOTE_MINIMAL
    for column in frame.columns:
        values = frame[column]
        if values.dtype.kind not in "biuf":
            values = values.map(escape_cell)
            if any("\r" in value for value in values if isinstance(value, str)):
                quoting = csv.QUOTE_NONNUMERIC  # pandas does not quote it by itself
        escaped[escape_cell(column)] = values
    with atomic_path(path) as temporary:
        table = type(frame)(escaped)
        table.to_csv(temporary, index=False, float_format=float_format, quoting=quoting)


def read_frame(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV file as a table of pandas, all cells as text; see `read_csv`."""
    import pandas as pd  # slow to import, and needed by few

    header, rows = _read_rows(path, columns)
    return pd.DataFrame(rows, columns=header, dtype=str)


def read_csv(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read a CSV file with a header as rows of text by column, without escapes.

    Args:
        path: The file, in UTF-8.
        columns: Columns that it must have.

    Raises:
        UserError: The file is missing, is not UTF-8, lacks a column, or has a row that cannot be
            read; the message names file and row.
    """
    header, rows = _read_rows(path, columns)
    return [dict(zip(header, cells, strict=True)) for cells in rows]


def _read_rows(path: Path, columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a CSV file; see `read_csv`."""
    lines = _csv_lines(path, read_text(path))
    header = next(lines, (1, []))[1]
    if missing := [column for column in columns if column not in header]:
        raise UserError(
            f"{path} lacks the columns {format_list(missing)}; it has: "
            f"{format_list(header) or 'none'}."
        )
    if len(set(header)) < len(header):
        raise UserError(f"{path} has a column twice: {format_list(header)}. Rename one of them.")
    rows = []
    for number, cells in lines:
        if len(cells) != len(header):
            raise UserError(
                f"{path}, row {number}, has {counted(len(cells), 'cell')}, and the header "
                f"{len(header)}. Put cells that hold a comma in quotes."
            )
        rows.append(cells)
    return header, rows


def read_text(path: Path, advice: str = "Save it as CSV UTF-8.") -> str:
    """Read a text file in UTF-8.

    Args:
        path: The file.
        advice: The fix, for messages.

    Raises:
        UserError: The file cannot be read, is in another encoding, or holds NUL characters.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Check the file.") from None
    if content.startswith(UTF16_MARKS):
        raise UserError(f"{path} is not UTF-8 text but UTF-16. {advice}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise UserError(
            f"{path} is not UTF-8 text: line {line} holds the byte 0x{content[error.start]:02x} at "
            f"place {column}. {advice}"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {line} holds a NUL character; the file is damaged. {advice}")
    return text


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of every row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""))
    number = 0
    try:
        for number, cells in enumerate(reader, start=1):
            if cells:
                yield number, [unescape_cell(cell) for cell in cells]
    except csv.Error as error:
        raise UserError(
            f"{path}, row {number + 1}, cannot be read ({error}). Correct or shorten its cells."
        ) from None


def file_fingerprint(path: Path) -> list[str | int]:
    """Return absolute path, size and time of change, which tell a file from another or older one.

    Volumes are too large to be read for this.
    """
    status = path.stat()
    return [_resolved(path.absolute()), status.st_size, status.st_mtime_ns]


@functools.lru_cache(maxsize=65536)
def _resolved(path: Path) -> str:
    """Return an absolute path without links; each folder on the way is looked at once."""
    if path.name in ("", "..") or path.is_symlink():
        return str(path.resolve())
    return str(Path(_resolved(path.parent), path.name))


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


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
    """Raise `UserError` where a file is there that must not be replaced, or cannot be written."""
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise UserError(
            f"{flag}: {path} cannot be written, because {parent} is not a folder. Choose another "
            "name."
        )
    if path.exists() and not overwrite:
        raise UserError(
            f"{flag}: {path} exists already. Use --overwrite to replace it, or choose another name."
        )
