"""Clinical rows to text: phrases, sentences, and the consequences of a changed attribute."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.cohort import PROMPTS_FILE, Cohort
from data.table import read_lines
from data.text.template import TEMPLATES, Column, guess_role, read_template_columns
from data.text.values import UNKNOWN_VALUES, match_ids, parse_number
from data.volumes import strip_suffix
from util import phrasing
from util.cli import UserError, counted, format_list, shorten, unknown_column

log = logging.getLogger(__name__)

Row = Mapping[str, str]  # raw texts by column, "" where the value is not known


@dataclass(frozen=True)
class Phrase:
    """A piece of a prompt, and the table column it comes from (None for free text)."""

    text: str
    column: str | None


class Prompt(tuple[Phrase, ...]):
    """The phrases of one prompt, in order."""

    __slots__ = ()

    @classmethod
    def from_free_text(cls, text: str) -> Prompt:
        """Split a text written by a person into phrases without columns."""
        return cls(Phrase(piece, None) for piece in phrasing.split_phrases(text))

    @property
    def texts(self) -> list[str]:
        """The text of each phrase, as text encoders take a prompt."""
        return [phrase.text for phrase in self]

    @property
    def annotated(self) -> list[tuple[str, str]]:
        """The text of each phrase with its column ("" for free text)."""
        return [(phrase.text, phrase.column or "") for phrase in self]

    @property
    def sentence(self) -> str:
        """One sentence in the published wording; "" for the empty prompt."""
        return phrasing.join_phrases(self.texts)


@dataclass(frozen=True)
class ChangedRow:
    """A row after a change, and the columns emptied because they would contradict it."""

    row: dict[str, str]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """Wording and rules that turn the rows of one table into prompts.

    Attributes:
        name: Name or path.
        columns: The columns that it names.
        roles: Roles that replace those of the columns.
    """

    name: str
    columns: Mapping[str, Column]
    roles: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, column: str) -> Column:
        known = self.columns.get(column)
        return known or Column(column, role=guess_role(column), unknown=UNKNOWN_VALUES)

    def role(self, column: str) -> str:
        """Return exposure, demographic, mediator, outcome, acquisition or id."""
        return self.roles.get(column) or self[column].role

    def with_roles(self, path: Path, columns: Sequence[str]) -> Template:
        """Return the template with the roles that another one gives; the wording stays.

        Args:
            path: The other template, a YAML file.
            columns: Columns of the table.

        Raises:
            UserError: The file breaks the format, names no column of the table, or makes an
                identifier of one, or one of an identifier.
        """
        roles = {}
        for name, column in read_template_columns(path, "--roles").items():
            if name not in columns:
                continue
            if column.role != self.role(name) and "id" in (column.role, self.role(name)):
                raise UserError(
                    f"--roles {path}: {name!r} has the role {column.role}, and {self.role(name)} "
                    "in the run's template. Whether a column is in the text is decided in training."
                )
            roles[name] = column.role
        if not roles:
            raise UserError(
                f"--roles {path} names no column of the table; it has: "
                f"{format_list(self.attributes(columns), 40)}."
            )
        return replace(self, roles={**self.roles, **roles})

    def format_value(self, row: Row, column: str) -> str:
        """Return the value of a column as the text shows it, "" where it is not known."""
        return self[column].format_value(row.get(column, ""))

    def phrases(self, row: Row) -> Prompt:
        """Return the prompt of a row: its known, consistent values in the template's order.

        Raises:
            UserError: A value is not a number where one is needed.
        """
        consistent = self.consistent(row).row
        columns = [*self.columns, *(c for c in row if c not in self.columns)]
        phrases = []
        for column in columns:
            if column not in consistent or self.role(column) == "id":
                continue
            value = self.format_value(consistent, column)
            if value:
                phrases.append(Phrase(self[column].to_phrase(value), column))
        return Prompt(phrases)

    def consistent(self, row: Row, keep: str | None = None) -> ChangedRow:
        """Empty the values that others make meaningless (`Never smoker` empties pack-years).

        Args:
            row: Raw values.
            keep: Column that no rule may empty. A column whose rule would empty it is emptied
                instead.
        """
        values = dict(row)
        dropped: dict[str, None] = {}  # an ordered set
        for column, known in self.columns.items():
            value = self.format_value(values, column) if known.implies else ""
            if not value:
                continue
            excluded = known.excluded_columns(value)
            if keep in excluded and keep != column and self.format_value(values, keep):
                excluded = [column]
            for name in excluded:
                if self.format_value(values, name):
                    dropped[name] = None
                if name in values:
                    values[name] = ""
        return ChangedRow(values, tuple(dropped))

    def change(self, row: Row, column: str, value: str) -> ChangedRow:
        """Change one attribute of a row and empty what contradicts it; "" removes the attribute.

        Raises:
            UserError: The table does not have the column, it is an identifier, or the value is not
                a number where one is needed.
        """
        if column not in row:
            raise UserError(unknown_column("The table", column, self.attributes(row)))
        if self.role(column) == "id":
            raise UserError(
                f"Column {column!r} is an identifier and never in the text; choose one of: "
                f"{format_list(self.attributes(row), 40)}."
            )
        self[column].format_value(value)
        return self.consistent({**row, column: value}, keep=column)

    def attributes(self, columns: Iterable[str]) -> list[str]:
        """Return the columns that can occur in the text."""
        return [column for column in columns if self.role(column) != "id"]

    def known_values(self, rows: Iterable[Row], column: str) -> tuple[str, ...]:
        """Return the distinct values of a column as shown: numbers by size, then texts."""
        values = {self.format_value(row, column) for row in rows} - {""}
        return tuple(sorted(values, key=_value_order))


def _value_order(value: str) -> tuple[bool, float, str]:
    number = parse_number(value)
    return number is None, number or 0.0, value


def load_template(
    name: str, columns: Sequence[str] = (), key_column: str = "", patient_column: str = ""
) -> Template:
    """Load the template `aiib23`, `osic`, `auto`, or of a YAML file, for a table.

    Args:
        name: Name of a template, or the path of a YAML file.
        columns: Columns of the table.
        key_column: Column that names the case; never in the text.
        patient_column: Column that names the patient; never in the text.

    Raises:
        UserError: There is no such template, or it breaks the format (see
            `data/text/template.py`).
    """
    known: dict[str, Column] = {}
    if name == "auto":
        suggest_template(columns)
    else:
        path = TEMPLATES / f"{name}.yaml"
        known = read_template_columns(path if path.is_file() else Path(name))
        if columns and not set(known) & set(columns):
            raise UserError(
                f"--template {name} has none of the table's columns "
                f"({format_list(columns)}); it has {format_list(list(known))}. Use "
                "--template auto, or write a template."
            )
    for column in (key_column, patient_column):
        if column:
            known[column] = Column(column, role="id")
    return Template(name, known)


def suggest_template(columns: Sequence[str]) -> None:
    """Log which of the project's templates was written for a table with these columns."""
    if name := matching_template(columns):
        log.warning(
            "The table has columns of %s: --template %s words them as published, and has "
            "rules for values that exclude others. --template auto takes every column as it "
            "stands.",
            name,
            name,
        )


def matching_template(columns: Sequence[str]) -> str:
    """Return the project's template most of whose columns a table has; "" for none."""
    for path in sorted(TEMPLATES.glob("*.yaml")):
        known = set(read_template_columns(path))
        if len(known & set(columns)) > len(known) / 2:
            return path.stem
    return ""


def read_prompts(path: Path) -> dict[str, Prompt]:
    """Read the prompts of a `prompts.csv` (columns `File Name`, `Prompt`) by case id.

    Raises:
        UserError: The file cannot be read, a column is missing, or a file is named twice.
    """
    header, *lines = read_lines(path)
    if not {"File Name", "Prompt"} <= set(header):
        raise UserError(
            f"{path} must have the columns 'File Name' and 'Prompt'; it has: "
            f"{format_list(header)}. Add them."
        )
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(lines, start=2):
        row = dict(zip(header, line, strict=True))
        name = strip_suffix(row["File Name"].strip())
        if not name:
            if row["Prompt"].strip():
                raise UserError(f"{path}, row {number}: 'File Name' is empty. Name the row's file.")
            continue
        if name in prompts:
            raise UserError(
                f"{path}, row {number}, names {shorten(name)!r} a second time; keep one row per "
                "file."
            )
        prompts[name] = Prompt.from_free_text(row["Prompt"])
    return prompts


def _written_prompts(cohort: Cohort) -> dict[str, Prompt]:
    """Return the prompts of `prompts.csv` by the ids of the cases.

    Raises:
        UserError: The file is malformed, or names no case.
    """
    path = cohort.root / PROMPTS_FILE
    if not path.is_file():
        return {}
    written = read_prompts(path)
    ids = [case.id for case in cohort.cases]
    matches = match_ids(written, ids, str(path))
    if not matches:
        held = f"its column 'File Name' holds, for example, {next(iter(written), '')!r}"
        raise UserError(
            f"{path} has the prompt of no scan. A scan is called, for example, {ids[0]!r}; {held}. "
            "Write the names of the scans there, or move the file away."
        )
    if strangers := [name for name in written if name not in matches]:
        log.warning(
            "%s has prompts of %s not in the cohort: %s.",
            path,
            counted(len(strangers), "case"),
            format_list(sorted(strangers)),
        )
    return {case: written[name] for name, case in matches.items()}


def cohort_prompts(cohort: Cohort, template: Template) -> dict[str, Prompt]:
    """Return the prompt of every case: from `prompts.csv` where it names the case, else its row.

    Raises:
        UserError: `prompts.csv` is malformed, or a value is not a number where one is needed.
    """
    written = _written_prompts(cohort)
    prompts: dict[str, Prompt] = {}
    dropped: Counter[str] = Counter()
    for case in cohort.cases:
        try:
            dropped.update(template.consistent(case.row).dropped)
            prompt = written.get(case.id)
            prompts[case.id] = template.phrases(case.row) if prompt is None else prompt
        except UserError as error:
            raise UserError(f"Case {case.id}: {error}") from None
    if dropped:
        log.warning(
            "Left out of the text because other values of the same row contradict them: %s.",
            format_list(
                [f"{column} ({counted(count, 'row')})" for column, count in dropped.items()]
            ),
        )
    return prompts
