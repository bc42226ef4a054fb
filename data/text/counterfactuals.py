"""The arms of a counterfactual: a case's own row, and the same row with one attribute changed."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from data.cohort import Case
from data.text.prompts import Prompt, Template, split_free_text
from data.text.template import parse_number
from util.cli import UserError, format_list, safe_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Intervention:
    """One attribute and the values it is given, from a flag such as `--vary "COLUMN=A,B"`."""

    column: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """One volume to generate: its text, and what was changed for it (`column` is "" for the own
    row).
    """

    prompt: Prompt
    column: str = ""
    value: str = ""
    dropped: tuple[str, ...] = ()


def parse_intervention(flag: str, text: str, least: int) -> Intervention:
    """`COLUMN=A,B` with at least so many values; raises `UserError`. Values with commas stand in
    double quotes.
    """
    column, equals, values = text.partition("=")
    found = tuple(v.strip() for v in next(csv.reader([values], skipinitialspace=True), []))
    if not equals or not column.strip() or len(found) < least or (least > 1 and "" in found):
        form = "COLUMN=A,B[,C...]" if least > 1 else "COLUMN=VALUE"
        raise UserError(f'{flag} is {text!r}; it must be of the form "{form}".')
    if len({safe_name(v) for v in found}) < len(found):
        raise UserError(
            f"{flag} is {text!r}; two of its values are the same, or would give the same file name."
        )
    return Intervention(column.strip(), found)


def check_intervention(
    flag: str,
    change: Intervention,
    template: Template,
    rows: Sequence[dict[str, str]],
    seen: bool = False,
) -> None:
    """Raises `UserError` for a column that is not there; warns of a value that no row has.

    With `seen` a category that no row has is an error: nothing can be learnt of it.
    """
    columns = list(rows[0]) if rows else []
    if change.column not in columns:
        raise UserError(
            f"{flag}: the table has no column {change.column!r}; it has: "
            f"{format_list(template.attributes(columns), 40)}."
        )
    known = template.known_values(rows, change.column)
    try:
        shown = {
            v: template.format_value(template.change(rows[0], change.column, v).row, change.column)
            for v in change.values
        }
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None
    for value in (v for v in change.values if v and shown[v] not in known):
        number = template[change.column].kind == "number" or all(
            k.replace(".", "", 1).isdigit() for k in known
        )
        if not number and seen:
            raise UserError(
                f"{flag}: no case has {change.column}={value}; there are: "
                f"{format_list(list(known), 20) or 'none'}."
            )
        if not number:
            meaning = "; the model has never seen it, so its effect means nothing"
        else:
            at, sizes = (
                parse_number(shown[value]),
                [n for k in known if (n := parse_number(k)) is not None],
            )
            between = at is not None and min(sizes, default=at) < at < max(sizes, default=at)
            meaning = "; the model takes it for what lies between its neighbours" if between else ""
        log.warning(
            "%s: no case has %s=%s%s. Known: %s.",
            flag,
            change.column,
            value,
            meaning,
            f"{known[0]} to {known[-1]}"
            if number and known
            else format_list(list(known), 20) or "none",
        )


def factual_variant(
    case: Case, template: Template, settings: Sequence[Intervention], own: Prompt | None, free: str
) -> tuple[Variant, dict[str, str]]:
    """The case's own row as text, and the row as changed by `--set`.

    Args:
        case: The case.
        template: How rows become text.
        settings: Changes of `--set`, made one after the other.
        own: The case's prompt of `prompts.csv`, if there is one.
        free: Text of `--prompt`, which replaces everything.
    """
    row, dropped = template.consistent(case.row).row, list[str]()
    for setting in settings:
        changed = template.change(row, setting.column, setting.values[0])
        row = changed.row
        dropped += changed.dropped
    prompt = split_free_text(free) if free else own if own is not None else template.phrases(row)
    return Variant(prompt, dropped=tuple(dropped)), row


def counterfactual_variants(
    row: dict[str, str], template: Template, change: Intervention
) -> list[Variant]:
    """An arm a value of one `--vary`."""
    made = []
    for value in change.values:
        changed = template.change(row, change.column, value)
        made.append(Variant(template.phrases(changed.row), change.column, value, changed.dropped))
    return made


def variant_pairs(arms: Sequence[Variant]) -> list[tuple[Variant, Variant]]:
    """Every pair (from, to), in the order in which the values were given."""
    return list(combinations(arms, 2))
