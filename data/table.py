"""The clinical table: CSV or XLSX to raw strings, exactly as written."""

from __future__ import annotations

import datetime
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import openpyxl
import pandas as pd
from openpyxl.utils.exceptions import InvalidFileException

from data.volumes import strip_suffix
from util.cli import UserError, format_list

TABLE_FILES = ("clinical.csv", "clinical.xlsx")
XLSX_ERRORS = (InvalidFileException, zipfile.BadZipFile, LookupError, OSError, ValueError)


@dataclass(frozen=True)
class ClinicalTable:
    """The rows of a clinical table.

    Attributes:
        columns: Names of the columns without the key.
        rows: Raw strings by case id and column, "" where a cell is empty.
    """

    columns: tuple[str, ...]
    rows: Mapping[str, dict[str, str]]


def find_table(root: Path) -> Path | None:
    """Return the clinical table of a dataroot, or None; raise `UserError` where there are two."""
    tables = [root / name for name in TABLE_FILES if (root / name).is_file()]
    if len(tables) > 1:
        raise UserError(f"{root} holds both {' and '.join(TABLE_FILES)}; keep one of them.")
    return tables[0] if tables else None


def read_table(path: Path, key_column: str) -> ClinicalTable:
    """Read a table with one row per case.

    Args:
        path: A `.csv` (commas or semicolons, UTF-8) or `.xlsx` file (its first sheet), column names
            in the first line.
        key_column: Column that names the scan, with or without a volume suffix; it is left out of
            `columns`.

    Raises:
        UserError: The file cannot be read, the key column is missing, a column or a case occurs
            twice, or a row has no key.
    """
    header, *lines = read_lines(path)
    if key_column not in header:
        raise UserError(
            f"{path} has no column {key_column!r}; it has: "
            f"{format_list([name for name in header if name], 30)}. Name the column of the scans "
            "with --key_column."
        )
    rows: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines, start=2):
        if not any(cell.strip() for cell in line):
            continue
        row = {name: cell for name, cell in zip(header, line, strict=True) if name}
        case = strip_suffix(row.pop(key_column).strip())
        if not case:
            raise UserError(
                f"{path}, row {number}: {key_column!r} is empty. Name the row's scan or delete the "
                "row."
            )
        if case in rows:
            raise UserError(
                f"{path}, row {number}: case {case!r} has a row already. Keep one row per case."
            )
        rows[case] = row
    columns = tuple(name for name in header if name and name != key_column)
    return ClinicalTable(columns, rows)


def read_lines(path: Path) -> list[list[str]]:
    """Read a CSV or XLSX table as raw strings.

    Returns:
        Lines of one width, the column names (stripped) first.

    Raises:
        UserError: The file is missing, cannot be read or is empty, or a column occurs twice.
    """
    lines = _read_xlsx(path) if path.suffix.lower() == ".xlsx" else _read_csv(path)
    if not lines:
        raise UserError(f"{path} is empty; its first line must name the columns.")
    header = [name.strip() for name in lines[0]]
    counts = Counter(name for name in header if name)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise UserError(
            f"{path} has these columns more than once: {format_list(repeated)}. Rename or delete "
            "one of each."
        )
    return [header, *lines[1:]]


def _read_csv(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            first_line = file.readline()
        # header=None: pandas would rename repeated columns; the other settings keep "None", "NA",
        # 55 and "" as written.
        frame = pd.read_csv(
            path,
            sep=";" if ";" in first_line and "," not in first_line else ",",
            header=None,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            encoding="utf-8-sig",
            skip_blank_lines=False,
        )
    except pd.errors.EmptyDataError:
        return []
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text. Save it as CSV UTF-8, or as .xlsx.") from None
    except (pd.errors.ParserError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read as a table ({reason}). Quote cells that hold a comma."
        ) from None
    return [list(map(str, line)) for line in frame.fillna("").to_numpy().tolist()]


def _read_xlsx(path: Path) -> list[list[str]]:
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = book.worksheets[0].iter_rows(values_only=True)
        lines = [list(map(_cell, row)) for row in rows]
        book.close()
    except XLSX_ERRORS as error:
        raise UserError(
            f"{path} cannot be read as an XLSX table ({error}). Save it again, or as CSV."
        ) from None
    width = max(map(len, lines), default=0)
    lines = [line + [""] * (width - len(line)) for line in lines]
    while lines and not any(lines[-1]):
        lines.pop()
    return lines


def _cell(value: object) -> str:
    """Return a spreadsheet cell as its reader sees it: 55.0 is 55, a date is 2020-03-01."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
