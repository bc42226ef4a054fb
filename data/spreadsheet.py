"""Cells of the first sheet of an XLSX file as their reader sees them, or a message why not."""

from __future__ import annotations

import datetime
import logging
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import openpyxl
from openpyxl.utils import get_column_letter, range_boundaries

from util.cli import UserError, format_list

log = logging.getLogger(__name__)

MAX_UNPACKED_BYTES = 2**29  # a table of half a million rows; a larger one is a zip bomb
CELL = "c"
MERGED = "mergeCell"


@dataclass
class _SheetFacts:
    """What openpyxl does not report of a sheet that it streams."""

    merged: list[str] = field(default_factory=list)
    formulas: list[str] = field(default_factory=list)  # cells whose formula has no stored result


def read_sheet(path: Path) -> list[list[str]]:
    """Read the first sheet of an XLSX file.

    A value that is merged over several rows of one column stands in each of them, as a reader sees
    it. Empty rows and columns at the end are left out, whatever the file says of its size.

    Returns:
        Lines of one width.

    Raises:
        UserError: The file is damaged or too large, a formula has no stored result, or cells of
            several columns are merged.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file. Correct the path.")
    try:
        _check_size(path)
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            sheets = [sheet.title for sheet in book.worksheets]
            sheet = book.worksheets[0]
            with zipfile.ZipFile(path) as archive, archive.open(sheet._worksheet_path) as source:
                facts = _read_facts(source)
            sheet.reset_dimensions()  # programs write <dimension> wrongly
            lines = _trimmed(sheet.iter_rows(values_only=True))
        finally:
            book.close()
    except UserError:
        raise
    except Exception as error:  # damaged files raise nearly every kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path} cannot be read as an XLSX table ({reason}). Save it again, or as CSV."
        ) from None
    if len(sheets) > 1:
        log.warning("%s has %d sheets; only the first, %r, is read.", path, len(sheets), sheets[0])
    if facts.formulas:
        raise UserError(
            f"{path}: cell {format_list(facts.formulas)} holds a formula without its result, "
            "because a program wrote the file. Open it in a spreadsheet program and save it, or "
            "replace formulas by values."
        )
    width = max(map(len, lines), default=0)
    blank = [""] * width
    lines = [[*line, *blank[len(line) :]] if line else blank for line in lines]
    return _fill_merged(path, lines, facts.merged)


def _check_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(info.file_size for info in archive.infolist())
    if size > MAX_UNPACKED_BYTES:
        raise UserError(
            f"{path} unpacks to {size / 2**20:.0f} MiB, more than "
            f"{MAX_UNPACKED_BYTES / 2**20:.0f}. Save the sheet as CSV."
        )


def _read_facts(source: Any) -> _SheetFacts:
    """Return the merged ranges of a sheet, and its formulas without a stored result."""
    facts = _SheetFacts()
    for _, element in ElementTree.iterparse(source):
        tag = element.tag.rpartition("}")[2]
        if tag == MERGED:
            facts.merged.append(element.get("ref", ""))
        if tag == CELL:
            parts = {part.tag.rpartition("}")[2]: part.text for part in element}
            is_text = element.get("t") in ("str", "inlineStr")  # the result may be an empty text
            if "f" in parts and not parts.get("v") and not is_text:
                facts.formulas.append(element.get("r", "?"))
            element.clear()
        elif tag == "row":
            element.clear()
    return facts


def _trimmed(rows: Iterable[Sequence[object]]) -> list[list[str]]:
    """Return rows as texts without the empty cells and rows at their end."""
    lines: list[list[str]] = []
    empty: list[str] = []  # one object for all empty rows, of which a sheet may have a million
    pending = 0
    for row in rows:
        line = list(map(format_cell, row))
        while line and not line[-1].strip():
            line.pop()
        if not line:
            pending += 1
            continue
        lines += [empty] * pending
        pending = 0
        lines.append(line)
    return lines


def format_cell(value: object) -> str:
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


def _fill_merged(path: Path, lines: list[list[str]], ranges: Iterable[str]) -> list[list[str]]:
    """Return the lines with the value of each merged range in all its rows."""
    filled: Mapping[str, list[str]] = defaultdict(list)
    for text in ranges:
        left, top, right, bottom = _boundaries(path, text)
        if bottom == 1 or top > len(lines) or left > len(lines[0]):
            continue  # merged names of columns are found because all but the first are empty
        if right > left or top == 1:
            raise UserError(
                f"{path}: the cells {text} are merged over several columns or with the column "
                "names, so what they mean for each column is not known. Unmerge them and fill in "
                "each cell."
            )
        value = lines[top - 1][left - 1]
        for row in range(top, min(bottom, len(lines))):
            lines[row] = [*lines[row][: left - 1], value, *lines[row][left:]]
        filled[get_column_letter(left)].append(text)
    for column, texts in filled.items():
        log.warning(
            "%s: merged cells of column %s count for each of their rows: %s.",
            path,
            column,
            format_list(texts),
        )
    return lines


def _boundaries(path: Path, text: str) -> Iterator[int]:
    try:
        boundaries = [int(edge) for edge in range_boundaries(text)]
    except (TypeError, ValueError):
        boundaries = []
    if len(boundaries) != 4 or min(boundaries) < 1:
        raise UserError(
            f"{path} cannot be read as an XLSX table (merged cells {text[:50]!r}). Save it again, "
            "or as CSV."
        )
    return iter(boundaries)
