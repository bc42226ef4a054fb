"""The clinical table beside the scans: its key column, the row of each scan, unmatched rows."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.preparation.sources import Source
from data.table import read_lines
from data.text.values import UNKNOWN_VALUES, clean_cell, normalise_key, parse_number
from data.volumes import strip_suffix
from util.cli import UserError, format_list

Row = dict[str, str]

BLANK_CELLS = UNKNOWN_VALUES | {"-", "--", ".", "?", "#value!", "#ref!", "#div/0!", "#name?"}
IDENTIFYING_COLUMN = re.compile(
    r"\b(name|surname|birth|birthdate|birthday|dob|mrn|ssn|address|phone|e-?mail|accession"
    r"|insurance)\b"
)
VISIT_COLUMN = "Weeks"  # OSIC: weeks from the scan to the visit of a row
UNKNOWN_WEEKS = 1e9  # later than every visit


@dataclass(frozen=True)
class JoinedTable:
    """The clinical table, joined to the sources.

    Attributes:
        columns: Its columns in the order of the file, without the key.
        rows: Rows by the key of a source.
        key_column: The column that names scans or patients.
        remarks: Remarks for the report.
    """

    columns: tuple[str, ...]
    rows: Mapping[str, Row]
    key_column: str
    remarks: tuple[str, ...]


def normalise_id(text: str) -> str:
    """Return an id without suffix, case, and the leading zeros that a spreadsheet drops."""
    bare = strip_suffix(clean_cell(text)).casefold()
    return bare.lstrip("0") or "0" if bare.isdigit() else bare


def join_table(
    path: Path, sources: Sequence[Source], key_column: str = "", private: bool = True
) -> JoinedTable:
    """Read a table and give each source its row.

    Args:
        path: CSV or XLSX.
        sources: The scans; a column matches by any of their names.
        key_column: The column that names scan or patient; by default the one that names most of
            them.
        private: Leave out columns whose names suggest that they identify people.

    Raises:
        UserError: The table cannot be read, has columns without a name or with the same name, or
            names no scan.
    """
    header, lines = _read_table(path)
    key = _find_key_column(path, header, lines, sources, key_column)
    identifying = []
    columns = []
    for name in header:
        if private and name != key and IDENTIFYING_COLUMN.search(normalise_key(name)):
            identifying.append(name)
        elif name and name != key:
            columns.append(name)
    rows_by_id: dict[str, list[Row]] = defaultdict(list)
    for line in lines:
        row = _clean_row(header, line)
        if row[key]:
            rows_by_id[normalise_id(row.pop(key))].append(row)
    rows: dict[str, Row] = {}
    remarks = [f"rows of the table were matched by its column {key!r}"]
    remarks += _match_rows(sources, rows_by_id, rows)
    if identifying:
        remarks.append(
            f"columns that may identify people were left out: {format_list(identifying)}"
        )
    for source_key, row in rows.items():
        rows[source_key] = {name: row[name] for name in columns}
    return JoinedTable(tuple(columns), rows, key, tuple(remarks))


def _read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines that are not empty."""
    header, *lines = read_lines(path)
    nameless = []
    for i, name in enumerate(header):
        if not name and any(line[i].strip() for line in lines):
            nameless.append(str(i + 1))
    if nameless:
        raise UserError(
            f"{path}: column {format_list(nameless)} has cells but no name in the first row. Are "
            "header cells merged, or is there a title above the table? Give every column its own "
            "name in the first row."
        )
    return header, [line for line in lines if any(cell.strip() for cell in line)]


def _clean_row(header: Sequence[str], line: Sequence[str]) -> Row:
    row = {}
    for name, cell in zip(header, line, strict=True):
        if name:
            row[name] = "" if normalise_key(cell) in BLANK_CELLS else clean_cell(cell)
    return row


def _find_key_column(
    path: Path,
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    sources: Sequence[Source],
    key_column: str,
) -> str:
    """Return the named column, or the one that names most scans."""
    if key_column and key_column not in header:
        names = [name for name in header if name]
        raise UserError(
            f"{path} has no column {key_column!r}; it has: {format_list(names, 30)}. Correct "
            "--key_column."
        )
    source_ids = [{normalise_id(name) for name in source.names} for source in sources]
    best = ""
    best_count = 0
    for i, name in enumerate(header):
        if not name or (key_column and name != key_column):
            continue
        cells = {normalise_id(line[i]) for line in lines if line[i].strip()}
        count = sum(bool(ids & cells) for ids in source_ids)
        if count > best_count:
            best = name
            best_count = count
    if not best:
        which = f"its column {key_column!r} names" if key_column else "none of its columns names"
        raise UserError(
            f"{path}: {which} no scan. A scan is called, for example, "
            f"{' or '.join(sources[0].names[:2])}; name the column that holds such names with "
            "--key_column."
        )
    return best


def _match_rows(
    sources: Sequence[Source], rows_by_id: Mapping[str, list[Row]], rows: dict[str, Row]
) -> list[str]:
    """Fill `rows` with the row of each source by its key, and return remarks."""
    used: set[str] = set()
    ambiguous = 0
    unmatched = 0
    for source in sources:
        ids = [i for i in map(normalise_id, source.names) if i in rows_by_id]
        if not ids:
            unmatched += 1
            continue
        used.add(ids[0])
        row = _select_row(rows_by_id[ids[0]])
        if row is None:
            ambiguous += 1
        else:
            rows[source.key] = row
    remarks = []
    if unmatched:
        remarks.append(f"{unmatched} of {len(sources)} scans have no row")
    if unused := len(set(rows_by_id) - used):
        remarks.append(f"{unused} of {len(rows_by_id)} rows' ids have no scan")
    if ambiguous:
        remarks.append(
            f"{ambiguous} scans have several rows that differ and got none; keep one row each"
        )
    return remarks


def _select_row(rows: list[Row]) -> Row | None:
    """Return the only row, or the visit nearest to the scan; None where several differ."""
    if VISIT_COLUMN in rows[0] and len(rows) > 1:
        return min(rows, key=_weeks_from_scan)
    return rows[0] if all(row == rows[0] for row in rows) else None


def _weeks_from_scan(row: Row) -> float:
    weeks = parse_number(row[VISIT_COLUMN])
    return UNKNOWN_WEEKS if weeks is None else abs(weeks)
