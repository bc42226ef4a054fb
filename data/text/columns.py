"""Review of a table's columns: which stay out of the text, and which values look wrong.

A rule for one cell is in `data.text.values`; these rules need all rows.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from data.text.prompts import Row, Template
from data.text.values import (
    DOUBTFUL_NUMBERS,
    DOUBTFUL_VALUES,
    MAX_AGE,
    SYNONYMS,
    clean_cell,
    is_age_column,
    is_identifying,
    normalise_key,
    parse_number,
)
from util.cli import UserError, counted, format_list, shorten, unknown_column

log = logging.getLogger(__name__)

MIN_KNOWN = 10  # fewer rows may all differ by chance
UNIQUE_SHARE = 0.9  # of known values that occur once, for a column that is no category
MIN_NUMBERS_SHARE = 0.8  # of known values, for a column that is meant to hold numbers
OUTLIER_FACTOR = 2.0  # how far a code such as 999 lies above all other numbers


@dataclass(frozen=True)
class ColumnReview:
    """Columns that stay out of the text, and remarks on columns and values."""

    left_out: tuple[str, ...]
    remarks: tuple[str, ...]


def review_table(
    rows: Sequence[Row],
    template: Template,
    asked_for: Collection[str],
    left_out: Sequence[str] | None = None,
) -> ColumnReview:
    """Decide which columns stay out of the text, and warn of them and of odd values.

    Args:
        rows: The rows of all cases.
        template: How they become text.
        asked_for: Columns of `text_columns`, which stay in.
        left_out: Columns that a run left out, which decide if they are given.

    Raises:
        UserError: The table does not have a column that is asked for.
    """
    columns = _columns(rows)
    if unknown := [column for column in asked_for if column not in columns]:
        raise UserError(unknown_column("--text_columns: the table", unknown[0], columns))
    if left_out is None:
        left_out = find_unique_columns(rows, template, asked_for)
    remarks = [f"{remark}." for remark in review_columns(rows, template, left_out)]
    for remark in remarks:
        log.warning("%s", remark)
    if private := [c for c in columns if c not in template.columns and is_identifying(c)]:
        log.info("Columns that may identify people are not in the text: %s.", format_list(private))
    return ColumnReview(tuple(left_out), tuple(remarks))


def find_unique_columns(
    rows: Sequence[Row], template: Template, asked_for: Collection[str]
) -> tuple[str, ...]:
    """Return the columns of texts with a different value in nearly every row.

    A model cannot learn from a value that one case has; such columns are notes, dates or names.
    Columns of numbers are none of them.

    Args:
        rows: The rows of all cases.
        template: A column that it names is asked for.
        asked_for: Further columns that are asked for.
    """
    unique = []
    for column in _columns(rows):
        if column in asked_for or column in template.columns or template.role(column) == "id":
            continue
        texts = [text for text in _known_texts(rows, template, column) if not _is_number(text)]
        once = sum(count == 1 for count in Counter(map(normalise_key, texts)).values())
        if len(texts) >= MIN_KNOWN and once >= UNIQUE_SHARE * len(texts):
            unique.append(column)
    return tuple(unique)


def review_columns(rows: Sequence[Row], template: Template, left_out: Sequence[str]) -> list[str]:
    """Return remarks on columns and values that may not mean what the text makes of them.

    Args:
        rows: The rows of all cases.
        template: How they become text.
        left_out: Columns that `find_unique_columns` left out.
    """
    remarks = []
    if left_out:
        remarks.append(
            "Left out of the text, because nearly every row has another value: "
            f"{format_list(left_out)}. To use such a column, name it with --text_columns or in the "
            "template"
        )
    for column in _columns(rows):
        if template.role(column) == "id" or column in left_out:
            continue
        cells = [clean_cell(row.get(column, "")) for row in rows]
        known = Counter(cell for cell in cells if _is_known(template, column, cell))
        for remark in _column_remarks(template, column, known, cells):
            remarks.append(f"Column {column!r}: {remark}")
    return remarks


def _column_remarks(
    template: Template, column: str, known: Mapping[str, int], cells: Sequence[str]
) -> Iterator[str]:
    named = _named_keys(template, column)
    others = {cell: count for cell, count in known.items() if normalise_key(cell) not in named}
    if doubtful := _doubtful(others):
        yield (
            f"{_counted(doubtful, known)} may mean 'not known', and is used as a value. If it is "
            "not known, name it under `unknown` in a template, else under `values`"
        )
    if groups := _spellings(template, column, known):
        entry = ", ".join(f'"{other}": "{words[0]}"' for words in groups for other in words[1:])
        yield (
            f"{'; '.join(format_list(list(map(repr, words))) for words in groups)} may be one "
            "value, and are used as several. Write them alike in the table, or name them in a "
            f"template: values: {{{shorten(entry)}}}"
        )
    if words := _words_among_numbers(others):
        yield f"{_counted(words, known)} stands among numbers, and is used as a word. Correct it"
    if "-" in cells and "+" in known and "-" not in known:
        yield "'-' is read as not known, beside '+'. If it means negative, name it in a template"
    ages = [parse_number(cell) or 0 for cell in known] if is_age_column(column) else []
    if any(age > MAX_AGE for age in ages):
        yield (
            f"ages above {MAX_AGE - 1} identify people, and are in the text as they stand; "
            f"prepare_data.py writes them as {MAX_AGE}"
        )


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _known_texts(rows: Sequence[Row], template: Template, column: str) -> list[str]:
    cells = [row.get(column, "") for row in rows]
    return [clean_cell(cell) for cell in cells if _is_known(template, column, cell)]


def _is_known(template: Template, column: str, cell: str) -> bool:
    return template[column].known_text(cell) != ""


def _is_number(text: str) -> bool:
    return parse_number(text) is not None


def _named_keys(template: Template, column: str) -> set[str]:
    """Return the values, as keys, that the template words for a column."""
    known = template[column]
    return {*known.values, *known.meanings, *known.phrases}


def _doubtful(known: Mapping[str, int]) -> list[str]:
    """Return the values that often stand for a missing one."""
    numbers = sorted(n for n in map(parse_number, known) if n is not None)
    mostly_words = len(numbers) < (1 - MIN_NUMBERS_SHARE) * len(known)
    doubtful = []
    for cell in known:
        number = parse_number(cell)
        if number is None:
            if normalise_key(cell) in DOUBTFUL_VALUES:
                doubtful.append(cell)
        elif number in DOUBTFUL_NUMBERS and (mostly_words or _lies_apart(number, numbers)):
            doubtful.append(cell)
    return doubtful


def _lies_apart(number: float, numbers: Sequence[float]) -> bool:
    """Return whether a number lies far from all that are no such codes."""
    others = [n for n in numbers if n not in DOUBTFUL_NUMBERS]
    if not others:
        return True
    return number > OUTLIER_FACTOR * others[-1] if number > 0 else others[0] >= 0


def _spellings(template: Template, column: str, known: Mapping[str, int]) -> list[list[str]]:
    """Return the groups of values, as shown, that are spellings of one value.

    A group begins with its most frequent value. Values are never merged unasked, because `M` and
    `m`, or `n` and `no`, can be two codes.
    """
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for cell, count in known.items():
        shown = template[column].known_text(cell)
        key = normalise_key(shown).strip(" .,;:")
        words = next((group[0] for group in SYNONYMS if key in group), key)
        groups[words][shown] += count
    several = [group for group in groups.values() if len(group) > 1]
    return [sorted(group, key=lambda word: (-group[word], word)) for group in several]


def _words_among_numbers(known: Mapping[str, int]) -> list[str]:
    words = [cell for cell in known if not _is_number(cell)]
    numbers = sum(count for cell, count in known.items() if _is_number(cell))
    distinct = len(known) - len(words)
    if distinct < 3 or numbers < MIN_NUMBERS_SHARE * sum(known.values()):
        return []
    return [word for word in words if normalise_key(word) not in DOUBTFUL_VALUES]


def _counted(values: Sequence[str], known: Mapping[str, int]) -> str:
    return format_list([f"{value!r} ({counted(known[value], 'row')})" for value in values])
