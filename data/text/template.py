"""The columns of a clinical table: wording of values, unknown values, roles and implications.

A template (YAML in `data/templates/`) has `columns`, and `unknown` values for all of them. A column
may have:

    phrase:   "Patient age: {value}."          wording (default "COLUMN is {value}")
    phrases:  {"Yes": "Exposure present."}     wording for single values, before `phrase`
    values:   {"1": Alive}                     meaning of codes
    unknown:  [99999]                          values that mean "not known", beside those of
                                               `data.text.values` that the column does not word
    kind:     category, number, date, text     a number is checked; a date in days is worded by
                                               `phrase`, any other date as it stands
    role:     exposure, demographic, mediator, outcome, acquisition, id (never in the text)
    unit, digits, absolute                     unit shown, digits after the point, number without
                                               its sign
    implies:  [{when: [Never smoker], drop: [PACK-YEARS]}, {unless: [CTD-ILD], drop: [TYPE CTD]}]

Columns it does not name are worded "COLUMN is VALUE".
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from data.text.values import (
    UNKNOWN_VALUES,
    clean_cell,
    clean_value,
    is_never_text,
    normalise_key,
    parse_number,
)
from util.cli import UserError, format_list
from util.phrasing import normalise_phrase
from util.yaml_files import parse_yaml

TEMPLATES = Path(__file__).parents[1] / "templates"
ROLES = ("exposure", "demographic", "mediator", "outcome", "acquisition", "id")
KINDS = ("category", "number", "date", "text")
MAX_DIGITS = 15
MAX_SHOWN = 200  # characters of a wrong entry in a message
LINK = re.compile(r"\b(?:is|are|was|were)\b|[:=]")  # between the name of a column and its value
FORMS = {str: "text (in quotes)", int: "whole number", bool: "true or false"}
# Roles by the whole name of a column.
_ROLE_NAMES = {
    "demographic": ("height", "weight", "race"),
    "acquisition": ("contrast", "contrast agent", "dose", "site", "center", "centre"),
    "outcome": ("label", "status", "vital status", "event"),
}
# Roles by a word of the name; outcomes come first because "age at death" is one.
_ROLE_WORDS = {
    "outcome": (
        "outcome", "survival", "survived", "death", "dead", "died", "deceased", "alive",
        "mortality", "follow-up", "followup", "decline", "progression", "relapse", "recurrence",
    ),
    "acquisition": (
        "kernel", "kvp", "tube", "scanner", "manufacturer", "thickness", "spacing", "ctdivol",
        "mas",
    ),
    "demographic": ("age", "sex", "gender", "ethnicity", "bmi"),
}  # fmt: skip


@dataclass(frozen=True)
class ImplicationRule:
    """Columns without meaning for some values of a column.

    They are dropped for the values in `when`, or for all known values but those in `unless`.
    """

    drop: tuple[str, ...]
    when: frozenset[str] | None = None
    unless: frozenset[str] | None = None

    def applies(self, value: str) -> bool:
        """Return whether the columns have no meaning for this value."""
        key = normalise_key(value)
        if self.when is not None:
            return key in self.when
        return key not in (self.unless or frozenset())


@dataclass(frozen=True)
class Column:
    """One column of a template; values are looked up by `normalise_key`."""

    name: str
    role: str = "exposure"
    kind: str = "text"
    phrase: str = ""
    phrases: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    unit: str = ""
    digits: int | None = None
    absolute: bool = False
    implies: tuple[ImplicationRule, ...] = ()

    def format_value(self, raw: object) -> str:
        """Return the value as the text shows it, "" where it is not known.

        Raises:
            UserError: The column is numeric and the value is not a number.
        """
        text = self.known_text(raw)
        if not text:
            return ""
        if self.kind not in ("number", "date"):
            return text
        number = parse_number(text)
        if number is None:
            if self.kind == "date":
                return text
            raise UserError(
                f"Column {self.name!r} must hold a number, and holds {text!r}. Correct it, or "
                "leave it empty where it is not known."
            )
        if self.absolute:
            number = abs(number)
            text = text.lstrip("+-")
        return text if self.digits is None else clean_cell(f"{number:.{self.digits}f}")

    def known_text(self, raw: object) -> str:
        """Return what a cell means, whatever the kind of the column; "" where it is not known."""
        text = clean_value(self.name, raw)
        key = normalise_key(text)
        if key in self.unknown:
            return ""
        if key in self.values:
            return self.values[key]
        return self.meanings.get(key, text)

    @cached_property
    def meanings(self) -> dict[str, str]:
        """The meanings of codes by their spelling, so that `male` is the `Male` of code M."""
        return {normalise_key(text): text for text in self.values.values()}

    def to_phrase(self, value: str) -> str:
        """Return the phrase of a value formatted by `format_value`."""
        pattern = self.phrases.get(normalise_key(value), self.phrase)
        is_calendar_date = self.kind == "date" and parse_number(value) is None
        if not pattern or is_calendar_date:
            return f"{self.name} is {value}"
        return pattern.replace("{value}", value).replace("{unit}", self.unit)

    def parse_phrase(self, phrase: str) -> str | None:
        """Return the value of a phrase that words this column as `to_phrase` does, else None.

        Capitals and punctuation do not count, so that a value has neither; it is "" where the
        wording tells none.
        """
        text = normalise_phrase(phrase)
        for key, wording in self.phrases.items():
            if text == normalise_phrase(wording.replace("{value}", key)):
                return key
        for pattern in (f"{self.name} is {{value}}", self.phrase.replace("{unit}", self.unit)):
            before, placeholder, after = pattern.partition("{value}")
            start, end = normalise_phrase(before), normalise_phrase(after)
            if not placeholder:
                if start and text == start:
                    return ""
            elif start and text.startswith(f"{start} ") and text.endswith(end):
                value = text[len(start) : len(text) - len(end)].strip()
                is_linked = LINK.search(phrase) is not None or pattern == self.phrase
                if parse_number(value) is not None or (is_linked and self.kind != "number"):
                    return value
        return None

    def excluded_columns(self, value: str) -> list[str]:
        """Return the columns that have no meaning for a known value of this one."""
        excluded: list[str] = []
        for rule in self.implies:
            if rule.applies(value):
                excluded += rule.drop
        return excluded


def guess_role(column: str) -> str:
    """Return the role of a column that no template names, guessed from its name.

    A column whose name matches nothing is an exposure.
    """
    name = normalise_key(column)
    if is_never_text(column):
        return "id"
    for role, names in _ROLE_NAMES.items():
        if name in names:
            return role
    words = set(re.findall(r"[a-z]+(?:-[a-z]+)*", name))
    for role, known in _ROLE_WORDS.items():
        if words & set(known):
            return role
    return "exposure"


def read_template_columns(path: Path, option: str = "--template") -> dict[str, Column]:
    """Read the columns of a template file, which a command line names with `option`.

    Raises:
        UserError: The file cannot be read or breaks the format above.
    """
    try:
        raw = parse_yaml(path.read_bytes())
    except OSError:
        names = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.yaml")))
        listed = f"neither auto, {names} nor" if option == "--template" else "not"
        raise UserError(
            f"{option} {path} is {listed} a YAML file that can be read. Correct the name or the "
            "path."
        ) from None
    except ValueError as error:
        raise UserError(f"Template {path} is not valid YAML: {error}. Correct it.") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("columns"), dict):
        raise UserError(
            f"Template {path} must be a mapping with a mapping `columns`; see "
            "data/templates/aiib23.yaml."
        )
    unknown = _parse_keys(f"Template {path}, unknown", raw.get("unknown", []))
    columns = {}
    for key, entry in raw["columns"].items():
        name = str(key)
        columns[name] = _parse_column(f"Template {path}, column {name!r}", name, entry, unknown)
    return columns


def _show(value: Any) -> str:
    """Return a part of a template for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _parse_keys(where: str, values: Any) -> frozenset[str]:
    if not isinstance(values, list | dict):
        raise UserError(f"{where} must be a list such as [a, b], and is {_show(values)}.")
    for value in values:
        if isinstance(value, bool):
            raise UserError(
                f"{where}: YAML reads a bare Yes or No as a truth value; write it in quotes."
            )
        if not isinstance(value, str | int | float | datetime.date):
            raise UserError(
                f"{where} holds {_show(value)}; it must hold texts or numbers. Write a text in "
                "quotes."
            )
    return frozenset(map(normalise_key, values))


def _parse_texts(where: str, entry: Any) -> dict[str, str]:
    """Return a mapping of texts by normalised key, such as `values`."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be a mapping such as {{a: text}}, and is {_show(entry)}.")
    _parse_keys(where, entry)
    _parse_keys(where, list(entry.values()))
    return {normalise_key(code): str(text) for code, text in entry.items()}


def _parse_column(where: str, name: str, entry: Any, unknown: frozenset[str]) -> Column:
    if not isinstance(entry, dict):
        raise UserError(
            f"{where} must be a mapping such as {{kind: number}}, and is {_show(entry)}."
        )
    allowed = {f.name for f in fields(Column)} - {"name"}
    if wrong := sorted(map(str, set(entry) - allowed)):
        raise UserError(
            f"{where}: unknown entries {format_list(wrong)}; known are "
            f"{', '.join(sorted(allowed))}."
        )
    for key, choices in (("kind", KINDS), ("role", ROLES)):
        if key in entry and entry[key] not in choices:
            raise UserError(
                f"{where}: {key} is {_show(entry[key])}; it must be one of {', '.join(choices)}."
            )
    for key, form in (("phrase", str), ("unit", str), ("digits", int), ("absolute", bool)):
        if key in entry and type(entry[key]) is not form:
            raise UserError(
                f"{where}: {key} is {_show(entry[key])}; it must be a {FORMS[form]}. Correct it or "
                "leave it out."
            )
    if not 0 <= entry.get("digits", 0) <= MAX_DIGITS:
        raise UserError(f"{where}: digits is {entry['digits']}; it must be 0 to {MAX_DIGITS}.")
    settings = dict(entry)
    for key in ("phrases", "values"):
        settings[key] = _parse_texts(f"{where}, {key}", entry.get(key, {}))
    # A value that the template words is known, also where the list of all tables has it.
    shared = UNKNOWN_VALUES - {""} - set(settings["phrases"]) - set(settings["values"])
    column_unknown = _parse_keys(f"{where}, unknown", entry.get("unknown", []))
    settings["unknown"] = shared | {""} | unknown | column_unknown
    rules = entry.get("implies", [])
    if not isinstance(rules, list):
        raise UserError(f"{where}: implies must be a list of rules, and is {_show(rules)}.")
    settings["implies"] = tuple(_parse_rule(f"{where}, implies", rule) for rule in rules)
    return Column(name, **settings)


def _parse_rule(where: str, entry: Any) -> ImplicationRule:
    if not isinstance(entry, dict) or set(entry) not in ({"when", "drop"}, {"unless", "drop"}):
        raise UserError(
            f"{where}: an entry takes `drop` with `when` or with `unless`; it is {_show(entry)}."
        )
    if not isinstance(entry["drop"], list):
        raise UserError(
            f"{where}: `drop` must be a list of columns, and is {_show(entry['drop'])}."
        )
    condition = "when" if "when" in entry else "unless"
    values = _parse_keys(f"{where}, {condition}", entry[condition])
    return ImplicationRule(tuple(map(str, entry["drop"])), **{condition: values})
