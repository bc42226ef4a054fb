"""Choice of attributes: the columns of a table that can be studied, and their values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from data.text.counterfactuals import (
    CaseText,
    Intervention,
    RowText,
    Variant,
    counterfactual_variants,
    edit_variants,
)
from data.text.free_text import TextEdit
from data.text.prompts import Prompt, Row, Template
from data.text.values import parse_number
from pipelines.atlas.statistics.contrasts import WORDING, AtlasAttribute
from util.cli import UserError, format_list, unique_names

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
# With more distinct numbers a column is a number, otherwise a category; a template can declare it.
MAX_CODES = 6
MAX_LEVELS = 8  # with more distinct texts a column is free text
MIN_LEVEL_CASES = 3  # training cases of a value; rarer ones are skipped if two others have more
# A number with a decimal comma or with its unit.
WRITTEN_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)?(?:\s*\D{1,12})?")
ADJUSTED_ROLES = ("demographic", "acquisition")  # real scans are always adjusted for these
ABSENT_VALUE = re.compile(
    r"(no|not|none|never|negative|absent|without|normal|healthy|control)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class AttributeChoice:
    """The choice of attributes.

    Attributes:
        attributes: The attributes to study.
        left_out: Reason by column that is not studied.
    """

    attributes: list[AtlasAttribute]
    left_out: dict[str, str]


def classify_column(
    template: Template, rows: Sequence[Row], column: str, reference: str = ""
) -> AtlasAttribute | str:
    """Return a column as an attribute, or the reason why it cannot be studied.

    Args:
        template: How rows become text.
        rows: Rows of the training cases.
        reference: Value that the others are compared with; "" to choose one.
    """
    counts = _value_counts(template, rows, column)
    if not counts:
        return "no training case has a value"
    if len(counts) == 1:
        return f"all training cases that have a value have {next(iter(counts))!r}"
    if template[column].kind != "category":
        numbers = [value for value in counts if parse_number(value) is not None]
        texts = sorted(set(counts) - set(numbers))
        written = [value for value in texts if WRITTEN_NUMBER.fullmatch(value)]
        if len(written) > MAX_CODES and len(written) > len(counts) / 2:
            return (
                f"it holds numbers written as texts ({format_list(written, 3)}); write plain "
                "numbers, such as 63 or 1.5"
            )
        is_declared = template[column].kind == "number"
        if len(numbers) > MAX_CODES or (is_declared and numbers):
            if texts:
                return _mixed_values(texts)
            return _classify_number(template, column, counts)
    return _classify_category(template, column, counts, reference)


def words_among_numbers(
    template: Template, attributes: Iterable[AtlasAttribute], rows: Sequence[Row]
) -> dict[str, str]:
    """Return why columns that hold numbers in the training cannot be studied in other rows."""
    reasons = {}
    for attribute in attributes:
        if attribute.kind == "number":
            values = _value_counts(template, rows, attribute.column)
            if texts := sorted(value for value in values if parse_number(value) is None):
                reasons[attribute.column] = _mixed_values(texts)
    return reasons


def _mixed_values(texts: Sequence[str]) -> str:
    return (
        f"it holds numbers and texts ({format_list(texts, 3)}); write plain numbers, or leave the "
        "cell empty where nothing is known"
    )


def _value_counts(template: Template, rows: Sequence[Row], column: str) -> Counter[str]:
    """Return how many rows have each value, as the text shows it."""
    values = (template.format_value(row, column) for row in rows)
    return Counter(value for value in values if value)


def _classify_number(
    template: Template, column: str, counts: Mapping[str, int]
) -> AtlasAttribute | str:
    values = quantile_values(counts)
    if float(values[0]) == float(values[-1]):
        return f"most training cases have {values[0]}, so that its outer quantiles do not differ"
    unit = template[column].unit
    return AtlasAttribute(column, template.role(column), "number", values, counts, unit)


def _classify_category(
    template: Template, column: str, counts: Mapping[str, int], reference: str
) -> AtlasAttribute | str:
    if len(counts) > MAX_LEVELS:
        return (
            f"it holds {len(counts)} different texts, which is free text and not a category (at "
            f"most {MAX_LEVELS})"
        )
    by_count = sorted(counts, key=lambda value: (-counts[value], value))
    common = [v for v in by_count if counts[v] >= MIN_LEVEL_CASES or v == reference]
    levels = common if len(common) > 1 else by_count  # a small cohort is shown too, and warned of
    if reference and reference not in levels:
        listed = format_list([f"{value}: {count}" for value, count in counts.items()], 6)
        return f"no training case has the reference {reference!r} ({listed})"
    absent = (value for value in levels if ABSENT_VALUE.match(value))
    start = reference or next(absent, levels[0])
    others = sorted(levels, key=lambda value: (parse_number(value) or 0, value))
    others.remove(start)
    unit = template[column].unit
    return AtlasAttribute(column, template.role(column), "category", (start, *others), counts, unit)


def pooled_covariate(template: Template, rows: Sequence[Row], column: str) -> AtlasAttribute | None:
    """Return a column that cannot be studied, such as many scanners, as a covariate."""
    role = template.role(column)
    counts = _value_counts(template, rows, column)
    if role not in ADJUSTED_ROLES or len(counts) < 2:
        return None
    values = tuple(sorted(counts))
    return AtlasAttribute(column, role, "category", values, counts, template[column].unit)


def quantile_values(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the values at five quantiles of the cases, fewer where they coincide.

    Args:
        counts: Cases by value; all values are numbers.
    """
    ordered: list[str] = []
    for value in sorted(counts, key=float):
        ordered += [value] * counts[value]
    chosen = [ordered[round(quantile * (len(ordered) - 1))] for quantile in QUANTILES]
    return tuple(dict.fromkeys(chosen))


def choose_attributes(
    template: Template,
    rows: Sequence[Row],
    columns: Sequence[str],
    wanted: Sequence[str],
    known: Sequence[str],
    references: Mapping[str, str],
    words: Sequence[AtlasAttribute] = (),
) -> AttributeChoice:
    """Choose the attributes to study.

    Args:
        template: How rows become text.
        rows: Rows of the training cases.
        columns: Columns of the table.
        wanted: Columns asked for by name; empty for all that can be studied.
        known: Columns that the run was trained with.
        references: Reference value by column.
        words: Words of the texts to study beside the columns; see `wording_attribute`.

    Raises:
        UserError: A column asked for does not exist, is not known to the run, or cannot be studied.
    """
    candidates = template.attributes(columns)
    _check_columns("--columns", wanted, candidates)
    _check_columns("--reference", list(references), candidates)
    choice = AttributeChoice([], {})
    names = unique_names([*candidates, *(attribute.column for attribute in words)])
    for column in candidates:
        attribute = classify_column(template, rows, column, references.get(column, ""))
        if column not in known:
            attribute = "the run was trained without this column"
        if isinstance(attribute, str):
            if column in wanted or (column in references and not wanted):
                raise UserError(f"--columns: {column!r} cannot be studied: {attribute}.")
            choice.left_out[column] = attribute
        elif wanted and column not in wanted:
            choice.left_out[column] = "not asked for"
        elif column in references and attribute.kind == "number":
            raise UserError(
                f"--reference: {column!r} holds numbers, which are compared at quantiles; give "
                "--reference for columns with categories only."
            )
        else:
            choice.attributes.append(replace(attribute, file_name=names[column]))
    choice.attributes.extend(replace(one, file_name=names[one.column]) for one in words)
    if not choice.attributes:
        reasons = [f"{column}: {reason}" for column, reason in choice.left_out.items()]
        raise UserError(
            "No column of the table can be studied: "
            f"{format_list(reasons, 20) or 'the table does not have any'}."
        )
    return choice


def wording_attribute(edit: TextEdit, prompts: Sequence[Prompt]) -> AtlasAttribute:
    """Return the words of an edit as an attribute, whose values are its wordings.

    Args:
        prompts: Texts of the training cases.
    """
    counts = Counter(value for value in map(edit.value, prompts) if value)
    holding = [prompt for prompt in prompts if edit.apply(prompt, "") is not None]
    columns: set[str] = set()
    for prompt in holding:
        kept = edit.apply(prompt, "") or ()
        columns.update(phrase.column or "" for phrase in prompt if phrase not in kept)
    return AtlasAttribute(
        edit.column,
        WORDING,
        "category",
        edit.values,
        {value: counts[value] for value in edit.values},
        edit=edit,
        columns=frozenset(columns),
    )


def _check_columns(flag: str, named: Sequence[str], candidates: list[str]) -> None:
    for column in named:
        if column not in candidates:
            raise UserError(
                f"{flag}: {column!r} is not a column that can stand in the text. Choose from: "
                f"{format_list(candidates, 40)}."
            )


def attribute_variants(text: CaseText, attribute: AtlasAttribute) -> list[Variant]:
    """Return one variant per value of an attribute.

    The list is empty where the rest of the row rules the attribute out, such as pack-years of a
    never smoker, and where a text that a person wrote does not state it, or hold the words.
    """
    if attribute.edit is not None:
        return edit_variants(text.prompt, attribute.edit)
    if isinstance(text, RowText):
        for value in attribute.values:
            changed = {**text.row, attribute.column: value}
            if not text.template.consistent(changed).row[attribute.column]:
                return []
    return counterfactual_variants(text, Intervention(attribute.column, tuple(attribute.values)))


def dependent_columns(template: Template) -> dict[str, tuple[str, ...]]:
    """Return, for each column, those that one of its values can make meaningless."""
    dependent = {}
    for name, column in template.columns.items():
        if column.implies:
            dropped: list[str] = []
            for rule in column.implies:
                dropped += rule.drop
            dependent[name] = tuple(dict.fromkeys(dropped))
    return dependent
