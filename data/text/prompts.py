"""Clinical rows to text: phrases, sentences, and what changing one attribute implies for the
others.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.cohort import Cohort
from data.text.template import (
    TEMPLATES,
    UNKNOWN_VALUES,
    Column,
    parse_number,
    guess_role,
    read_template_columns,
)
from data.volumes import strip_suffix
from util import phrasing as wording
from util.cli import UserError, format_list

log = logging.getLogger(__name__)

PROMPTS_FILE = "prompts.csv"  # in the dataroot

Row = Mapping[str, str]  # raw texts by column, "" where nothing is known


@dataclass(frozen=True)
class Phrase:
    """A piece of a prompt, and the table column that it tells (None in free text)."""

    text: str
    column: str | None


Prompt = tuple[Phrase, ...]


def phrase_columns(prompts: Iterable[Prompt]) -> list[list[tuple[str, str]]]:
    """Of each prompt the phrases' texts, each with its column ("" for free text)."""
    return [[(phrase.text, phrase.column or "") for phrase in prompt] for prompt in prompts]


def sentence(prompt: Prompt) -> str:
    """The prompt as one sentence in the published wording; the empty text for the empty prompt."""
    return wording.join([p.text for p in prompt])


def split_free_text(text: str) -> Prompt:
    """A text written by a person as phrases (without columns), so that it can be encoded phrase by
    phrase.
    """
    return tuple(Phrase(piece, None) for piece in wording.split(text))


@dataclass(frozen=True)
class ChangedRow:
    """A row after a change, and the columns that lost their value because they would contradict the
    rest.
    """

    row: dict[str, str]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """How the rows of one table become text."""

    name: str
    columns: Mapping[str, Column]

    def __getitem__(self, column: str) -> Column:
        return self.columns.get(column) or Column(
            column, role=guess_role(column), unknown=UNKNOWN_VALUES
        )

    def role(self, column: str) -> str:
        """What a column is in a study: exposure, demographic, mediator, outcome, acquisition or
        id.
        """
        return self[column].role

    def format_value(self, row: Row, column: str) -> str:
        """The value of a column as the text says it, "" where it is not known."""
        return self[column].format_value(row.get(column, ""))

    def phrases(self, row: Row) -> Prompt:
        """The prompt of a row: known values in the template's order, without what contradicts (see
        `consistent`).

        Raises:
            UserError: A value that is no number where one is needed.
        """
        kept = self.consistent(row).row
        order = [*self.columns, *(c for c in row if c not in self.columns)]
        said = [
            (c, self.format_value(kept, c)) for c in order if c in kept and self.role(c) != "id"
        ]
        return tuple(Phrase(self[c].to_phrase(value), c) for c, value in said if value)

    def consistent(self, row: Row, keep: str | None = None) -> ChangedRow:
        """The row without the values that others make meaningless (`Never smoker` empties
        pack-years).

        Args:
            row: Raw values.
            keep: A column that wins against every rule: the column whose rule would empty it is
                emptied instead.
        """
        made, dropped = dict(row), []
        for column, known in self.columns.items():
            if not known.implies or not self.format_value(made, column):
                continue
            drop = [
                d
                for rule in known.implies
                if rule.applies(self.format_value(made, column))
                for d in rule.drop
            ]
            if keep in drop and keep != column and self.format_value(made, keep):
                drop = [column]
            for other in drop:
                if made.get(other, "") and self.format_value(made, other):
                    dropped.append(other)
                if other in made:
                    made[other] = ""
        return ChangedRow(made, tuple(dict.fromkeys(dropped)))

    def change(self, row: Row, column: str, value: str) -> ChangedRow:
        """The row with one attribute changed, and what contradicts it emptied; an empty value
        removes the attribute.

        Raises:
            UserError: The table has no such column, it is an identifier, or the value is no number
                where one is needed.
        """
        if column not in row:
            raise UserError(
                f"The table has no column {column!r}; it has: {format_list(self.attributes(row), 40)}."
            )
        if self.role(column) == "id":
            raise UserError(
                f"Column {column!r} is an identifier and never in the text; choose one of: "
                f"{format_list(self.attributes(row), 40)}."
            )
        self[column].format_value(value)
        return self.consistent({**row, column: value}, keep=column)

    def attributes(self, row: Iterable[str]) -> list[str]:
        """The columns that the text can tell."""
        return [c for c in row if self.role(c) != "id"]

    def known_values(self, rows: Iterable[Row], column: str) -> tuple[str, ...]:
        """The distinct values of a column as the text says them, numbers in order of size, then
        texts.
        """
        values = {self.format_value(row, column) for row in rows} - {""}
        return tuple(
            sorted(values, key=lambda v: (parse_number(v) is None, parse_number(v) or 0.0, v))
        )


def load_template(
    name: str, columns: Sequence[str] = (), key_column: str = "", patient_column: str = ""
) -> Template:
    """The template `aiib23`, `osic`, `auto`, or of a YAML file, for a table with these columns.

    Raises:
        UserError: No such template, or one that breaks the format (see `data/text/template.py`).
    """
    made: dict[str, Column] = {}
    if name == "auto":
        hint_at_template(columns)
    else:
        path = TEMPLATES / f"{name}.yaml" if (TEMPLATES / f"{name}.yaml").is_file() else Path(name)
        made = read_template_columns(path)
        if columns and not set(made) & set(columns):
            raise UserError(
                f"--template {name} knows none of the table's columns ({format_list(list(columns))}); "
                f"it knows {format_list(list(made))}. Use --template auto, or write a template."
            )
    for column in (key_column, patient_column):
        if column:
            made[column] = Column(column, role="id")
    return Template(name, made)


def hint_at_template(columns: Sequence[str]) -> None:
    """Says which of the project's templates was written for a table with these columns, where one
    was.
    """
    for path in sorted(TEMPLATES.glob("*.yaml")):
        known = set(read_template_columns(path))
        if len(known & set(columns)) > len(known) / 2:
            log.warning(
                "The table has columns of %s: --template %s words them as published, and knows "
                "which values go together. --template auto takes every column as it stands.",
                path.stem,
                path.stem,
            )


def read_prompts(path: Path) -> dict[str, Prompt]:
    """The prompts of a `prompts.csv` (columns `File Name`, `Prompt`) by case id.

    Raises:
        UserError: A missing column, or a file named twice.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"File Name", "Prompt"} <= set(rows.fieldnames or ()):
            raise UserError(
                f"{path} must have the columns 'File Name' and 'Prompt'; it has: "
                f"{format_list(list(rows.fieldnames or ()))}."
            )
        made: dict[str, Prompt] = {}
        for row in rows:
            name = strip_suffix(row["File Name"].strip())
            if name in made:
                raise UserError(f"{path} names {name!r} twice; keep one row a file.")
            made[name] = split_free_text(row["Prompt"] or "")
    return made


def cohort_prompts(cohort: Cohort, template: Template) -> dict[str, Prompt]:
    """The prompt of every case: that of `prompts.csv` where it names the case, else its row by the
    template.

    Raises:
        UserError: A bad `prompts.csv`, or a value that is no number where one is needed.
    """
    path = cohort.root / PROMPTS_FILE
    given = read_prompts(path) if path.is_file() else {}
    if strangers := sorted(set(given) - {case.id for case in cohort.cases}):
        log.warning(
            "%s has prompts of %d cases that are not there: %s.",
            path,
            len(strangers),
            format_list(strangers),
        )
    made: dict[str, Prompt] = {}
    emptied: Counter[str] = Counter()
    for case in cohort.cases:
        try:
            emptied.update(template.consistent(case.row).dropped)
            made[case.id] = given[case.id] if case.id in given else template.phrases(case.row)
        except UserError as error:
            raise UserError(f"Case {case.id}: {error}") from None
    if emptied:
        log.warning(
            "Left out of the text, for other values of the same row contradict them: %s.",
            format_list([f"{column} ({count} rows)" for column, count in emptied.items()]),
        )
    return made
