"""The clinical table beside the scans: which column names them, which row is whose, what matches
nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.preparation.sources import Source
from data.table import read_lines
from data.text.template import UNKNOWN_VALUES, clean_cell, normalise_key, parse_number
from data.volumes import strip_suffix
from util.cli import UserError, format_list

BLANK = UNKNOWN_VALUES | {"-", "--", ".", "?", "#value!", "#ref!", "#div/0!", "#name?"}
IDENTITY = re.compile(
    r"\b(name|surname|birth|birthdate|birthday|dob|mrn|ssn|address|phone|e-?mail|accession|insurance)\b"
)
VISIT = "Weeks"  # OSIC: weeks from the scan to the visit of a row


@dataclass(frozen=True)
class Joined:
    """Rows by source key; `columns` in the table's order; `key_column`, `remarks` for people."""

    columns: tuple[str, ...]
    rows: Mapping[str, dict[str, str]]
    key_column: str
    remarks: tuple[str, ...]


def same_id(text: str) -> str:
    """What two ways of writing an id have in common: no suffix, no case, no leading zeros that a
    spreadsheet drops.
    """
    bare = strip_suffix(clean_cell(text)).casefold()
    return bare.lstrip("0") or "0" if bare.isdigit() else bare


def join(
    path: Path, sources: Sequence[Source], key_column: str = "", private: bool = True
) -> Joined:
    """Reads a table and gives each source its row.

    Args:
        path: CSV or XLSX.
        sources: The scans; a column matches by any of their names.
        key_column: The column that names scan or patient; by default the one that names most of
            them.
        private: Leave out columns that identify people by their names (see `IDENTITY`).

    Raises:
        UserError: A table that cannot be read, columns without a name or with the same name, or one
            that names no scan.
    """
    header, lines = _table(path)
    key = _key(path, header, lines, sources, key_column)
    by_id: dict[str, list[dict[str, str]]] = defaultdict(list)
    for line in lines:
        row = {
            name: "" if normalise_key(cell) in BLANK else clean_cell(cell)
            for name, cell in zip(header, line, strict=True)
            if name
        }
        if row[key]:
            by_id[same_id(row.pop(key))].append(row)
    dropped = [
        name for name in header if private and name != key and IDENTITY.search(normalise_key(name))
    ]
    rows, remarks = _matched(sources, by_id)
    remarks = [f"rows of the table were matched by its column {key!r}", *remarks]
    if dropped:
        remarks.append(f"columns that may identify people were left out: {format_list(dropped)}")
    columns = tuple(name for name in header if name and name != key and name not in dropped)
    return Joined(
        columns, {k: {c: row[c] for c in columns} for k, row in rows.items()}, key, tuple(remarks)
    )


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    header, *lines = read_lines(path)
    nameless = [
        i for i, name in enumerate(header) if not name and any(line[i].strip() for line in lines)
    ]
    if nameless:
        shown = format_list([str(i + 1) for i in nameless])
        raise UserError(
            f"{path}: column {shown} has cells but no name in the first row. Are header cells "
            "merged, or is there a title above the table? Give every column its own name in the "
            "first row."
        )
    return header, [line for line in lines if any(cell.strip() for cell in line)]


def _key(
    path: Path, header: list[str], lines: list[list[str]], sources: Sequence[Source], asked: str
) -> str:
    if asked and asked not in header:
        raise UserError(
            f"{path} has no column {asked!r}; it has: {format_list([h for h in header if h], 30)}. "
            "Correct --key_column."
        )
    wanted = [{same_id(n) for n in s.names} for s in sources]
    counts = {}
    for i, name in enumerate(header):
        if name and (not asked or name == asked):
            ids = {same_id(line[i]) for line in lines if line[i].strip()}
            counts[name] = sum(bool(w & ids) for w in wanted)
    best = max(counts, key=lambda name: counts[name], default="")
    if not best or not counts[best]:
        which = f"its column {asked!r} names" if asked else "none of its columns names"
        raise UserError(
            f"{path}: {which} no scan. A scan is called, for example, "
            f"{' or '.join(sources[0].names[:2])}; name the column that holds such names with "
            "--key_column."
        )
    return best


def _matched(
    sources: Sequence[Source],
    by_id: Mapping[str, list[dict[str, str]]],
) -> tuple[dict[str, dict[str, str]], list[str]]:
    rows: dict[str, dict[str, str]] = {}
    used: set[str] = set()
    several, without = [], []
    for source in sources:
        found = next((i for name in source.names if (i := same_id(name)) in by_id), None)
        if found is None:
            without.append(source.names[0])
            continue
        used.add(found)
        row = _one(by_id[found])
        if row is None:
            several.append(source.names[0])
        else:
            rows[source.key] = row
    unused = len(set(by_id) - used)
    said = [f"{len(without)} of {len(sources)} scans have no row"] if without else []
    said += [f"{unused} of {len(by_id)} rows' ids have no scan"] if unused else []
    said += (
        [f"{len(several)} scans have several rows that differ and got none; keep one row each"]
        if several
        else []
    )
    return rows, said


def _one(rows: list[dict[str, str]]) -> dict[str, str] | None:
    """The only row, or the visit nearest to the scan; None where several differ."""
    if VISIT in rows[0] and len(rows) > 1:
        return min(
            rows,
            key=lambda row: abs(
                parse_number(row[VISIT]) if parse_number(row[VISIT]) is not None else 1e9
            ),
        )  # type: ignore[arg-type]
    return rows[0] if all(row == rows[0] for row in rows) else None
