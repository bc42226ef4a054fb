"""The clinical table: CSV or XLSX to raw strings, exactly as written."""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data.text.values import match_ids
from data.volumes import strip_suffix
from util.cli import UserError, format_list, unknown_column
from util.files import read_text, unescape_cell

log = logging.getLogger(__name__)

TABLE_FILES = ("clinical.csv", "clinical.xlsx")
MAX_SHOWN = 60  # characters of a cell in a message


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
        fix = "Name the column of the scans with --key_column."
        raise UserError(unknown_column(str(path), key_column, [n for n in header if n], fix))
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
                f"{path}, row {number}: case {case[:MAX_SHOWN]!r} has a row already. Keep one row "
                "per case."
            )
        rows[case] = row
    columns = tuple(name for name in header if name and name != key_column)
    return ClinicalTable(columns, rows)


def match_table(
    table: ClinicalTable, cases: Sequence[str], path: Path, key_column: str
) -> ClinicalTable:
    """Return the table with its rows under the ids of the cases.

    Capitals, leading zeros and suffixes may differ where only one case can be meant. Rows without a
    case keep their name.

    Args:
        cases: Ids of the cases.
        path: The table's file, for messages.
        key_column: Its column that names the scan.

    Raises:
        UserError: No row names a case, or a row may name several.
    """
    matches = match_ids(table.rows, cases, f"{path}, column {key_column!r}")
    if not matches:
        held = f"holds, for example, {_examples(table.rows)}" if table.rows else "has no rows"
        raise UserError(
            f"{path}: no scan has a row. The scans are called, for example, {_examples(cases)}; "
            f"the column {key_column!r} {held}. Write the names of the scans there, or name "
            "another column with --key_column."
        )
    if other := [f"{row} is {case}" for row, case in matches.items() if row != case]:
        log.info("%s: scans that the table spells otherwise: %s.", path, format_list(other))
    rows = {matches.get(name, name): row for name, row in table.rows.items()}
    return ClinicalTable(table.columns, rows)


def _examples(names: Iterable[str]) -> str:
    return " or ".join(repr(name[:MAX_SHOWN]) for name in list(names)[:2])


def read_lines(path: Path, row_numbers: bool = True) -> list[list[str]]:
    """Read a CSV or XLSX table as raw strings.

    Args:
        path: The table.
        row_numbers: Whether a column without a name may hold the numbers of the rows.

    Returns:
        Lines of one width, the column names (stripped) first.

    Raises:
        UserError: The file is missing, cannot be read or is empty, a column occurs twice, or one
            with cells has no name.
    """
    if path.suffix.lower() == ".xlsx":
        from data.spreadsheet import read_sheet  # slow to import

        lines = read_sheet(path)
    else:
        lines = _read_csv(path)
    if not lines:
        raise UserError(f"{path} is empty; its first line must name the columns.")
    header = [name.strip() for name in lines[0]]
    counts = Counter(name for name in header if name)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise UserError(
            f"{path} has these columns more than once: {format_list(repeated)}. Rename or delete "
            "one of each."
        )
    _check_nameless(path, header, lines[1:], row_numbers)
    return [header, *lines[1:]]


def _check_nameless(
    path: Path, header: Sequence[str], lines: Sequence[Sequence[str]], row_numbers: bool
) -> None:
    """Raise `UserError` where a column without a name holds cells, but for numbers of the rows."""
    nameless = []
    for i, name in enumerate(header):
        if name:
            continue
        cells = [line[i].strip() for line in lines if any(cell.strip() for cell in line)]
        numbers = [[str(k + first) for k in range(len(cells))] for first in (0, 1)]
        if any(cells) and not (row_numbers and cells in numbers):
            nameless.append(str(i + 1))
    if nameless:
        raise UserError(
            f"{path}: column {format_list(nameless)} has cells but no name in the first row. Are "
            "header cells merged, or is there a title above the table? Give every column its own "
            "name in the first row."
        )


def _read_csv(path: Path) -> list[list[str]]:
    text = read_text(path, "Save it as CSV UTF-8, or as .xlsx.")
    first_line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    try:
        # header=None: pandas would rename repeated columns; the other settings keep "None", "NA",
        # 55 and "" as written.
        frame = pd.read_csv(
            io.StringIO(text, newline=""),
            sep=";" if ";" in first_line and "," not in first_line else ",",
            header=None,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            skip_blank_lines=False,
        )
    except pd.errors.EmptyDataError:
        return []
    except (pd.errors.ParserError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read as a table ({reason}). Quote cells that hold a comma."
        ) from None
    lines = frame.fillna("").to_numpy().tolist()
    return [[unescape_cell(str(cell)) for cell in line] for line in lines]
