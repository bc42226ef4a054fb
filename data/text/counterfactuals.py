"""Variants of a case: its factual text, and the same text with one attribute changed."""

from __future__ import annotations

import csv
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from data.cohort import Case
from data.text.free_text import ChangedText, TextEdit, TextReader
from data.text.prompts import Prompt, Row, Template
from data.text.values import parse_number
from util.cli import UserError, format_list, unknown_column
from util.notices import notice

log = logging.getLogger(__name__)

NEVER_SEEN = "value not seen in training"  # badge of pictures that mean nothing


@dataclass(frozen=True)
class Intervention:
    """One attribute and the values to set it to, from a flag such as `--vary "COLUMN=A,B"`."""

    column: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """One volume to generate: its text, and the changed attribute ("" for the factual row).

    `returned` is the text of the changed row with the attribute changed back, where there is a row.
    What the change dropped does not come back.
    """

    prompt: Prompt
    column: str = ""
    value: str = ""
    dropped: tuple[str, ...] = ()
    returned: Prompt | None = None


def describe_removed(change: str, columns: Sequence[str]) -> str:
    """Return a sentence about columns that a change removed from the text.

    Args:
        change: The change, such as "DIAGNOSIS = IPF".
    """
    verbs = ("was", "it contradicts") if len(columns) == 1 else ("were", "they contradict")
    return (
        f"{change}: {', '.join(columns)} {verbs[0]} removed from the text, because {verbs[1]} the "
        "new value."
    )


def describe_not_stated(flag: str, varied: Intervention | TextEdit, cases: Sequence[str]) -> str:
    """Return a sentence that texts do not hold what is to be changed, and what to do."""
    named = f"the text{'s' if len(cases) > 1 else ''} of {format_list(list(cases))}"
    verb = "do" if len(cases) > 1 else "does"
    if isinstance(varied, TextEdit):
        return (
            f"{flag}: {named} {verb} not hold the words {varied.wordings[0]!r}, so nothing can "
            "take their place. Give words as the texts have them (see volumes.csv)."
        )
    return (
        f"{flag}: {named} {verb} not state {varied.column!r} in words that are understood, so that "
        "it cannot be changed there; a text that a person wrote is never replaced as a whole. "
        'Name the words themselves: --vary_text "WORDS OF THE TEXT=>OTHER WORDS".'
    )


def parse_edits(texts: Sequence[str]) -> list[TextEdit]:
    """Return the edits of `--vary_text`.

    Raises:
        UserError: A text has another form, or two edits replace the same wording.
    """
    edits = [TextEdit.parse("--vary_text", text) for text in texts]
    counts = Counter(edit.column for edit in edits)
    if repeated := [edit.wordings[0] for edit in edits if counts[edit.column] > 1]:
        raise UserError(
            f"--vary_text is given {repeated.count(repeated[0])} times for one wording "
            f'({repeated[0]!r}). Give all its replacements once: --vary_text "A=>B=>C".'
        )
    return edits


def parse_intervention(flag: str, text: str, min_values: int) -> Intervention:
    """Parse `COLUMN=A,B`; values with commas stand in double quotes.

    Args:
        flag: Name of the flag, for messages.
        text: Its value.
        min_values: Fewest values that the flag takes.

    Raises:
        UserError: The text has another form, or a value is named twice.
    """
    column, equals, listed = text.partition("=")
    try:
        fields = next(csv.reader([listed], skipinitialspace=True), [])
    except csv.Error as error:
        raise UserError(
            f"{flag} is {text[:100]!r}; its values cannot be read ({error}). Write them in one "
            "line."
        ) from None
    values = tuple(field.strip() for field in fields)
    has_gap = min_values > 1 and "" in values
    if not equals or not column.strip() or len(values) < min_values or has_gap:
        form = "COLUMN=A,B[,C...]" if min_values > 1 else "COLUMN=VALUE"
        raise UserError(f'{flag} is {text!r}; it must be of the form "{form}".')
    if repeated := [value for value, count in Counter(values).items() if count > 1]:
        raise UserError(
            f"{flag} is {text!r}; it names {repeated[0]!r} twice. Name each value once."
        )
    return Intervention(column.strip(), values)


def values_by_column(template: Template, rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the distinct values, as shown, of every column that can be in the text."""
    columns = template.attributes(dict.fromkeys(column for row in rows for column in row))
    return {column: list(template.known_values(rows, column)) for column in columns}


def check_intervention(
    flag: str,
    intervention: Intervention,
    template: Template,
    rows: Sequence[dict[str, str]],
    trained: Mapping[str, Sequence[str]] | None = None,
    must_occur: bool = False,
) -> None:
    """Check an intervention against a table, and warn of values that were not trained on.

    Args:
        flag: Name of the flag, for messages.
        intervention: The attribute and its values.
        template: Wording of the table.
        rows: Rows of the table.
        trained: Values in training (see `values_by_column`); None where they are not known: those
            of `rows` count.
        must_occur: Whether a category without a case is an error, because nothing can be learnt
            of it.

    Raises:
        UserError: The table does not have the column or, with `must_occur`, a category.
    """
    column = intervention.column
    columns = list(rows[0]) if rows else []
    if column not in columns:
        attributes = template.attributes(columns)
        raise UserError(unknown_column(f"{flag}: the table", column, attributes))
    noun, known = "case", template.known_values(rows, column)
    if trained is not None and column in trained:
        noun, known = "training case", tuple(trained[column])
    try:
        unseen = _unseen_values(intervention, template, rows[0], known)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None
    if noun == "case" and not any(any(row.values()) for row in rows):
        return  # a single mask has no table to compare with
    has_numbers = bool(known) and all(parse_number(other) is not None for other in known)
    has_numbers = has_numbers or template[column].kind == "number"
    listed = f"{known[0]} to {known[-1]}" if has_numbers and known else format_list(known, 20)
    for value, shown in unseen.items():
        is_numeric = has_numbers and (not shown or parse_number(shown) is not None)
        if must_occur and not is_numeric:
            raise UserError(
                f"{flag}: no {noun} has {column}={value}; there are: {listed or 'none'}."
            )
        meaning, badge = "", "outside the range of training"
        if not is_numeric:
            never = "has never seen it" if noun != "case" else "may never have seen it"
            meaning = f"; the model {never}, so its effect means nothing"
            badge = NEVER_SEEN
        elif _lies_between(shown, known):
            meaning = "; the model interpolates between its neighbours"
            badge = "interpolated"
        log.warning(
            "%s: no %s has %s=%s%s. Known: %s.",
            flag,
            noun,
            column,
            value,
            meaning,
            listed or "none",
            extra=notice(badge, column, value),
        )


def _unseen_values(
    intervention: Intervention, template: Template, row: dict[str, str], known: Sequence[str]
) -> dict[str, str]:
    """Return the values that no row has, with the form in which the text shows them."""
    unseen = {}
    for value in intervention.values:
        changed = template.change(row, intervention.column, value)
        shown = template.format_value(changed.row, intervention.column)
        if value and shown not in known:
            unseen[value] = shown
    return unseen


def _lies_between(value: str, known: Sequence[str]) -> bool:
    """Return whether a number lies between the smallest and the largest of the known ones."""
    number = parse_number(value)
    numbers = [n for n in map(parse_number, known) if n is not None]
    return number is not None and bool(numbers) and min(numbers) < number < max(numbers)


class CaseText(ABC):
    """The factual text of a case, and what it becomes when an attribute is changed."""

    prompt: Prompt

    @abstractmethod
    def change(self, column: str, value: str) -> ChangedText | None:
        """Return the text with one attribute changed; None where the text does not state it.

        Args:
            column: The attribute.
            value: Its value; "" removes the attribute.

        Raises:
            UserError: There is no such column, or the value is not a number where one is needed.
        """

    @abstractmethod
    def with_value(self, column: str, value: str) -> CaseText | None:
        """Return the same as the new factual text of the case."""

    def returned(self, column: str, value: str) -> Prompt | None:
        """Return the text with one attribute changed and changed back; None without a row."""
        return None


@dataclass(frozen=True)
class RowText(CaseText):
    """A text that a template words from a row of the table.

    Attributes:
        row: The row, without values that contradict others.
        template: How rows become text.
    """

    row: Mapping[str, str]
    template: Template

    @property
    def prompt(self) -> Prompt:  # type: ignore[override]
        """The row in words."""
        return self.template.phrases(self.row)

    def change(self, column: str, value: str) -> ChangedText:
        """Return the text of the changed row; values that contradict it are removed."""
        changed = self.template.change(self.row, column, value)
        return ChangedText(self.template.phrases(changed.row), changed.dropped)

    def with_value(self, column: str, value: str) -> RowText:
        """Return the text of the changed row."""
        return replace(self, row=self.template.change(self.row, column, value).row)

    def returned(self, column: str, value: str) -> Prompt:
        """Return the text of the row changed and changed back."""
        return self.with_value(column, value).with_value(column, self.row[column]).prompt


@dataclass(frozen=True)
class WrittenText(CaseText):
    """A text that a person wrote: of `prompts.csv`, or of `--prompt`.

    Attributes:
        prompt: The text.
        reader: Finds what it states.
    """

    prompt: Prompt
    reader: TextReader

    def change(self, column: str, value: str) -> ChangedText | None:
        """Return the text with the statements on a column replaced, and nothing else."""
        return self.reader.change(self.prompt, column, value)

    def with_value(self, column: str, value: str) -> WrittenText | None:
        """Return the text with the statements on a column replaced."""
        changed = self.change(column, value)
        return None if changed is None else replace(self, prompt=changed.prompt)


def case_text(case: Case, prompt: Prompt, reader: TextReader) -> CaseText:
    """Return the text of a case, which is its row's or one that a person wrote.

    Args:
        prompt: Its prompt, see `cohort_prompts`.
        reader: Reads written texts, and words rows by its template.
    """
    row = RowText(reader.template.consistent(case.row).row, reader.template)
    return row if prompt == row.prompt else WrittenText(prompt, reader)


def counterfactual_variants(text: CaseText, intervention: Intervention) -> list[Variant]:
    """Return one variant per value of an intervention; none where the text does not state it."""
    column = intervention.column
    variants = []
    for value in intervention.values:
        changed = text.change(column, value)
        if changed is None:
            return []
        returned = text.returned(column, value)
        variants.append(Variant(changed.prompt, column, value, changed.dropped, returned))
    return variants


def edit_variants(prompt: Prompt, edit: TextEdit) -> list[Variant]:
    """Return one variant per wording of an edit, the first as it stands; none without the words."""
    variants = []
    for wording, value in zip(edit.wordings, edit.values, strict=True):
        edited = prompt if wording == edit.wordings[0] else edit.apply(prompt, wording)
        if edit.apply(prompt, "") is None or edited is None:
            return []
        variants.append(Variant(edited, edit.column, value))
    return variants


def variant_pairs(variants: Sequence[Variant]) -> list[tuple[Variant, Variant]]:
    """Return every pair (from, to), in the order in which the values were given."""
    return list(combinations(variants, 2))
