"""The clinical table: CSV or XLSX to raw strings, exactly as they were written."""

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


@dataclass(frozen=True)
class ClinicalTable:
    """Rows by case id: `rows[case][column]` is the raw string, empty where nothing was written."""

    columns: tuple[str, ...]
    rows: Mapping[str, dict[str, str]]


def find_table(root: Path) -> Path | None:
    """The clinical table of a dataroot, or None; two of them raise `UserError`."""
    found = [root / name for name in TABLE_FILES if (root / name).is_file()]
    if len(found) > 1:
        raise UserError(
            f"{root} holds both {TABLE_FILES[0]} and {TABLE_FILES[1]}; keep one of them."
        )
    return found[0] if found else None


def read_table(path: Path, key_column: str) -> ClinicalTable:
    """Reads a table with one row a case.

    Args:
        path: A `.csv` (commas or semicolons, UTF-8) or `.xlsx` file (its first sheet), column names
            in the first line.
        key_column: Column that names the scan, with or without a volume suffix; it is left out of
            `columns`.

    Raises:
        UserError: A file that cannot be read, no key column, a column or a case twice, or a row
            without a key.
    """
    header, *lines = read_lines(path)
    if key_column not in header:
        raise UserError(
            f"{path} has no column {key_column!r}; it has: "
            f"{format_list([h for h in header if h], 30)}. Name the column of the scans with "
            "--key_column."
        )
    columns = tuple(name for name in header if name and name != key_column)
    return ClinicalTable(columns, _rows(path, header, lines, key_column))


def read_lines(path: Path) -> list[list[str]]:
    """The lines of a CSV or XLSX table as raw strings, all of one width, the column names
    (stripped) first.

    Raises:
        UserError: A file that is missing, cannot be read or is empty, or a column that is there
            twice.
    """
    lines = _read_xlsx(path) if path.suffix.lower() == ".xlsx" else _read_csv(path)
    if not lines:
        raise UserError(f"{path} is empty; its first line must name the columns.")
    header = [name.strip() for name in lines[0]]
    repeated = sorted(name for name, count in Counter(header).items() if count > 1 and name)
    if repeated:
        raise UserError(
            f"{path} has these columns more than once: {format_list(repeated)}. Rename or delete one "
            "of each."
        )
    return [header, *lines[1:]]


def _rows(
    path: Path, header: list[str], lines: list[list[str]], key_column: str
) -> dict[str, dict[str, str]]:
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
                f"{path}, row {number}: case {case!r} has a row already. Keep one row a case."
            )
        rows[case] = row
    return rows


def _read_csv(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline()
        separator = ";" if ";" in first and "," not in first else ","
        # header=None: pandas would rename repeated columns; the other settings keep "None", "NA",
        # 55 and "" as written.
        frame = pd.read_csv(
            path,
            sep=separator,
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
    return [[str(cell) for cell in line] for line in frame.fillna("").to_numpy().tolist()]


def _read_xlsx(path: Path) -> list[list[str]]:
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        lines = [
            [_cell(value) for value in line]
            for line in book.worksheets[0].iter_rows(values_only=True)
        ]
        book.close()
    except (
        InvalidFileException,
        zipfile.BadZipFile,
        KeyError,
        OSError,
        ValueError,
        IndexError,
    ) as error:
        raise UserError(
            f"{path} cannot be read as an XLSX table ({error}). Save it again, or as CSV."
        ) from None
    width = max((len(line) for line in lines), default=0)
    lines = [line + [""] * (width - len(line)) for line in lines]
    while lines and not any(lines[-1]):
        lines.pop()
    return lines


def _cell(value: object) -> str:
    """A spreadsheet cell as its reader sees it: 55.0 is 55, a date is 2020-03-01."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
