"""The clinical table beside the scans: its key column, the row of each scan, unmatched rows."""

from __future__ import annotations

import logging
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.preparation.sources import Source
from data.table import read_lines
from data.text.values import (
    MAX_AGE,
    cap_age,
    clean_cell,
    clean_value,
    is_identifying,
    is_unknown,
    match_ids,
    normalise_key,
    parse_number,
)
from util.cli import UserError, counted, format_list, unknown_column

log = logging.getLogger(__name__)

Row = dict[str, str]
Identity = tuple[str, str]  # see `Source.identity`

# Words of a column's name that holds ids. A column of numbers is taken for the key only where its
# name consists of them, because measurements and row numbers match scans that are called 1, 2, 3.
KEY_WORDS = frozenset((
    "accession", "case", "code", "ct", "dicom", "file", "filename", "id", "ids", "identifier",
    "image", "key", "mapping", "mrn", "name", "nifti", "no", "nr", "number", "participant",
    "patient", "patientid", "pseudonym", "scan", "scanid", "series", "study", "subject",
    "subjectid", "uid", "volume",
))  # fmt: skip
ROW_NUMBER_NAMES = frozenset(("no", "nr", "number", "id no", "key", "code"))
MAX_PAIRS = 3  # shown of a column
VISIT_COLUMN = "Weeks"  # OSIC: weeks from the scan to the visit of a row
UNKNOWN_WEEKS = 1e9  # later than every visit


PATIENT_COLUMNS = ("patient", "patient id", "patientid", "subject", "subject id", "subjectid")


@dataclass(frozen=True)
class JoinedTable:
    """The clinical table, joined to the sources.

    Attributes:
        columns: Its columns in the order of the file, without the key, unless it names the patient.
        rows: Rows by the identity of a source.
        key_column: The column that names scans or patients.
        remarks: Remarks for the report.
    """

    columns: tuple[str, ...]
    rows: Mapping[Identity, Row]
    key_column: str
    remarks: tuple[str, ...]


def join_table(
    path: Path,
    sources: Sequence[Source],
    key_column: str = "",
    private: bool = True,
    default_key: str = "",
    patient_column: str = "",
) -> JoinedTable:
    """Read a table and give each source its row.

    Args:
        path: CSV or XLSX.
        sources: The scans; a column matches by any of their names.
        key_column: The column that names scan or patient. By default the only one that names every
            scan and can be nothing else (see `_guess_key_column`).
        private: Leave out columns whose names suggest that they identify people.
        default_key: The key column of a published data set, taken where the table has it.
        patient_column: A column that stays in any case.

    Raises:
        UserError: The table cannot be read, has columns without a name or with the same name, names
            no scan, or its key column is not clear.
    """
    header, *lines = read_lines(path, row_numbers=False)
    columns = {name: _match_column(name, header, lines, sources) for name in header if name}
    if not key_column:
        is_published = default_key in columns
        key_column = default_key if is_published else _guess_key_column(path, columns, sources)
    key = _checked_key(path, key_column, columns, sources)
    others = [name for name in columns if name != key_column or name == patient_column]
    identifying = [
        name for name in others if private and name != patient_column and is_identifying(name)
    ]
    kept = [name for name in others if name not in identifying]
    remarks = [f"Rows of the table were matched by its column {key_column!r}."]
    cells = [_clean_row(header, line) for line in lines]
    if capped := sum(_is_capped(header, line) for line in lines):
        remarks.append(
            f"{counted(capped, 'row')} with an age above {MAX_AGE - 1} got {MAX_AGE} instead."
        )
    rows = _rows_of_sources(sources, key, cells, remarks)
    if not patient_column:
        _check_key_patients(path, key)
        _check_patients(path, rows, sources, others)
    if identifying:
        remarks.append(
            f"Columns that may identify people were left out: {format_list(identifying)}."
        )
    for source, row in rows.items():
        rows[source] = {name: row[name] for name in kept}
    return JoinedTable(tuple(kept), rows, key_column, tuple(remarks))


def _checked_key(
    path: Path, name: str, columns: Mapping[str, _KeyColumn], sources: Sequence[Source]
) -> _KeyColumn:
    """Return the column that names the scans; raise `UserError` for one that does not."""
    if name not in columns:
        raise UserError(unknown_column(str(path), name, list(columns), "Correct --key_column."))
    key = columns[name]
    if key.problem:
        raise UserError(f"{path}: {key.problem}")
    if not key.lines:
        raise UserError(
            f"{path}: its column {name!r} names no scan. {_example(sources)}; it holds, for "
            f"example, {format_list(list(filter(None, key.cells)), MAX_PAIRS) or 'nothing'}."
        )
    pairs = _pairs(key, sources)
    log.info("%s: its column %r names the scans, for example %s.", path, name, pairs)
    return key


def _check_patients(
    path: Path, rows: Mapping[Identity, Row], sources: Sequence[Source], columns: Sequence[str]
) -> None:
    """Raise `UserError` where a column of patients joins scans that count as different patients."""
    for column in columns:
        if normalise_key(column).replace("_", " ") not in PATIENT_COLUMNS:
            continue
        scans: dict[str, list[Source]] = {}
        for source in sources:
            if value := rows.get(source.identity, {}).get(column, ""):
                scans.setdefault(value, []).append(source)
        for members in scans.values():
            if len({source.patient for source in members}) > 1:
                names = [source.key for source in members]
                raise UserError(
                    f"{path}: its column {column!r} gives one patient to several scans "
                    f"({format_list(names, 3)}), which would land in different splits. Give "
                    f"--patient_column {column!r}, or rename the column if it holds something else."
                )


def _check_key_patients(path: Path, key: _KeyColumn) -> None:
    """Raise `UserError` where one row names scans that count as different patients."""
    scans: dict[int, list[Identity]] = defaultdict(list)
    for identity, numbers in key.lines.items():
        for number in numbers:
            scans[number].append(identity)
    for number, members in sorted(scans.items()):
        if len({patient for _, patient in members}) > 1:
            raise UserError(
                f"{path}: {key.cells[number]!r} in its column {key.name!r} names several scans "
                f"({format_list([name for name, _ in members], 3)}), which would land in different "
                f"splits. Give --patient_column {key.name!r}."
            )


def _clean_row(header: Sequence[str], line: Sequence[str]) -> Row:
    """Return a line by column: "" where a value is not known, ages above 89 as 90."""
    row = {}
    for name, cell in zip(header, line, strict=True):
        if name:
            row[name] = "" if is_unknown(cell) else cap_age(name, cell)
    return row


def _is_capped(header: Sequence[str], line: Sequence[str]) -> bool:
    pairs = zip(header, line, strict=True)
    return any(cap_age(name, cell) != clean_value(name, cell) for name, cell in pairs)


@dataclass(frozen=True)
class _KeyColumn:
    """A column as the key of the scans.

    Attributes:
        lines: Numbers of the lines of each source that it names.
        cells: Its cells, line by line.
        ids: Number of different ids in it.
        is_repeated: Whether an id stands in several lines.
        is_numeric: Whether all its cells are numbers.
        is_row_number: Whether its cells count the lines.
        problem: Message on cells that may mean several scans, "" where all are clear.
    """

    name: str
    lines: Mapping[Identity, tuple[int, ...]]
    cells: tuple[str, ...]
    ids: int
    is_repeated: bool
    is_numeric: bool
    is_row_number: bool
    problem: str

    @property
    def can_be_guessed(self) -> bool:
        """Whether it can be nothing but a key: neither a measurement nor a row number."""
        if self.is_repeated:
            return False
        words = re.findall(r"[a-z]+", normalise_key(self.name))
        is_named = bool(words) and set(words) <= KEY_WORDS
        if self.is_row_number and normalise_key(self.name).strip(" .#") in ROW_NUMBER_NAMES:
            return False
        return is_named or not self.is_numeric


def _match_column(
    name: str, header: Sequence[str], lines: Sequence[Sequence[str]], sources: Sequence[Source]
) -> _KeyColumn:
    """Return which lines of a column name which source, by the first of its names that it has."""
    position = header.index(name)
    by_text: dict[str, list[int]] = defaultdict(list)
    for number, line in enumerate(lines):
        if not is_unknown(line[position]):
            by_text[clean_cell(line[position])].append(number)
    lines_of: dict[str, tuple[int, ...]] = {}
    problem = ""
    try:
        known = [own_name for source in sources for own_name in source.names]
        for text, own_name in match_ids(by_text, known, f"Column {name!r}").items():
            lines_of[own_name] = tuple(by_text[text])
    except UserError as error:  # of interest only if it is the key
        problem = str(error)
    matched: dict[Identity, tuple[int, ...]] = {}
    for source in sources:
        for own_name in source.names:
            if own_name in lines_of:
                matched[source.identity] = lines_of[own_name]
                break
    numbers = list(map(parse_number, by_text))
    counted = len(numbers)
    return _KeyColumn(
        name=name,
        lines=matched,
        cells=tuple(clean_cell(line[position]) for line in lines),
        ids=len(by_text),
        is_repeated=len(by_text) < sum(map(len, by_text.values())),
        is_numeric=bool(numbers) and None not in numbers,
        is_row_number=numbers in (list(range(1, counted + 1)), list(range(counted))),
        problem=problem,
    )


def _guess_key_column(
    path: Path, columns: Mapping[str, _KeyColumn], sources: Sequence[Source]
) -> str:
    """Return the only column that can be the key.

    It names every scan, holds no id twice, and is no measurement and no row number. Where another
    column also names every scan, both must give the same rows.

    Raises:
        UserError: No column can be the key, or several give different rows.
    """
    complete = [column for column in columns.values() if len(column.lines) == len(sources)]
    matching = [column for column in complete if not column.is_repeated]
    usable = [column for column in matching if column.can_be_guessed]
    if not usable:
        partly = [column for column in columns.values() if column.lines]
        for column in columns.values():
            if not partly and column.problem:
                raise UserError(f"{path}: {column.problem}")
        if not partly:
            raise UserError(
                f"{path}: none of its columns names a scan. {_example(sources)}; name the column "
                "that holds such names with --key_column, or correct the spelling."
            )
        best = max(partly, key=lambda column: (len(column.lines), column.can_be_guessed))
        raise UserError(
            f"{path}: the column that names the scans is not clear. {best.name!r} names "
            f"{len(best.lines)} of {counted(len(sources), 'scan')}{_doubt(best)}: "
            f"{_pairs(best, sources)}. If these belong together, give --key_column "
            f"{shlex.quote(best.name)}; else name the right column."
        )
    first = usable[0]
    for other in matching:
        differing = [i for i in first.lines if first.lines[i] != other.lines[i]]
        if differing:
            raise UserError(
                f"{path}: the columns {first.name!r} and {other.name!r} both name the scans, but "
                f"give {len(differing)} of {len(sources)} different rows. By {first.name!r}: "
                f"{_pairs(first, sources, differing)}. By {other.name!r}: "
                f"{_pairs(other, sources, differing)}. Name the right one with --key_column."
            )
    return first.name


def _doubt(column: _KeyColumn) -> str:
    """Return why a column that names scans is not taken for the key."""
    if column.is_repeated:
        return ", and holds an id in several rows"
    if not column.can_be_guessed:
        return ", and may be a measurement or a row number"
    return ""


def _pairs(
    column: _KeyColumn, sources: Sequence[Source], identities: Sequence[Identity] = ()
) -> str:
    """Return up to three scans with their rows, for messages."""
    wanted = set(identities or column.lines)
    pairs = []
    for source in sources:
        if source.identity in wanted and source.identity in column.lines:
            line = column.lines[source.identity][0]
            # The first line of the file holds the names of the columns.
            pairs.append(f"scan {source.names[0]} is {column.cells[line]!r} in row {line + 2}")
    return "; ".join(pairs[:MAX_PAIRS])


def _example(sources: Sequence[Source]) -> str:
    return f"A scan is called, for example, {' or '.join(sources[0].names[:2])}"


def _rows_of_sources(
    sources: Sequence[Source], key: _KeyColumn, cells: Sequence[Row], remarks: list[str]
) -> dict[Identity, Row]:
    """Return the row of each source by its identity, and add remarks."""
    rows: dict[Identity, Row] = {}
    used: set[int] = set()
    ambiguous = 0
    for identity, numbers in key.lines.items():
        used.update(numbers)
        row = _select_row([cells[number] for number in numbers])
        if row is None:
            ambiguous += 1
        else:
            rows[identity] = row
    if unmatched := len(sources) - len(key.lines):
        remarks.append(f"No row for {unmatched} of {counted(len(sources), 'scan')}.")
    unused = {row[key.name] for n, row in enumerate(cells) if row[key.name] and n not in used}
    if unused:
        remarks.append(f"No scan for {len(unused)} of {counted(key.ids, 'id')} in the table.")
    if ambiguous:
        remarks.append(
            f"{counted(ambiguous, 'scan')} with several rows that differ got none; keep one row "
            "each."
        )
    return rows


def _select_row(rows: list[Row]) -> Row | None:
    """Return the only row, or the visit nearest to the scan; None where several differ."""
    if VISIT_COLUMN in rows[0] and len(rows) > 1:
        return min(rows, key=_weeks_from_scan)
    return rows[0] if all(row == rows[0] for row in rows) else None


def _weeks_from_scan(row: Row) -> float:
    weeks = parse_number(row[VISIT_COLUMN])
    return UNKNOWN_WEEKS if weeks is None else abs(weeks)
