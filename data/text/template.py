"""What is known of a table's columns: how a value is said, what is no value, its role, and what it
implies for others.

A template (YAML in `data/templates/`) has `columns`, and `unknown` values for all of them. It may
say of a column:

    phrase:   "Patient age: {value}."          how it is said (default "COLUMN is {value}")
    phrases:  {"Yes": "Exposure present."}     wording for single values, before `phrase`
    values:   {"1": Alive}                     what codes mean
    unknown:  [99999]                          further values that mean "not known"
    kind:     category, number, date, text     number is checked; date: days for `phrase`, or said
        as it is
    role:     exposure, demographic, mediator, outcome, acquisition, id (never said)
    unit, digits, absolute                     the unit shown, digits after the point, a number
    without its sign
    implies:  [{when: [Never smoker], drop: [PACK-YEARS]}, {unless: [CTD-ILD], drop: [TYPE CTD]}]

Columns it does not name are said as "COLUMN is VALUE".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from util.cli import UserError

TEMPLATES = Path(__file__).parents[1] / "templates"
ROLES = ("exposure", "demographic", "mediator", "outcome", "acquisition", "id")
KINDS = ("category", "number", "date", "text")
UNKNOWN_VALUES = frozenset(
    (
        "",
        "nan",
        "na",
        "n/a",
        "#n/a",
        "<na>",
        "null",
        "nat",
        "not available",
        "unknown",
        "not known",
        "not reported",
        "not recorded",
        "not applicable",
        "missing",
    )
)
_WHOLE = re.compile(r"([+-]?\d+)\.0+")
_ID = re.compile(
    r"(.* )?id|patientid|patient|subject|case|mrn|accession number|unnamed: ?\d+|index|synthetic( "
    r".*)?|"
)
_ROLE_NAMES = {  # whole names
    "demographic": ("height", "weight", "race"),
    "acquisition": ("contrast", "contrast agent", "dose", "site", "center", "centre"),
    "outcome": ("label", "status", "vital status", "event"),
}
_ROLE_WORDS = {  # words that a name holds somewhere; an outcome first, for "age at death" is one
    "outcome": (
        "outcome",
        "survival",
        "survived",
        "death",
        "dead",
        "died",
        "deceased",
        "alive",
        "mortality",
        "follow-up",
        "followup",
        "decline",
        "progression",
        "relapse",
        "recurrence",
    ),
    "acquisition": (
        "kernel",
        "kvp",
        "tube",
        "scanner",
        "manufacturer",
        "thickness",
        "spacing",
        "ctdivol",
        "mas",
    ),
    "demographic": ("age", "sex", "gender", "ethnicity", "bmi"),
}


def clean_cell(value: object) -> str:
    """A raw table value as text: stripped, and a whole number without ".0"."""
    text = " ".join(str(value).split())
    whole = _WHOLE.fullmatch(text)
    return whole.group(1) if whole else text


def normalise_key(value: object) -> str:
    """What two ways of writing a value have in common: `Never-smoker` is `never smoker`; a sign
    stays.
    """
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", clean_cell(value)).casefold()


@dataclass(frozen=True)
class ImplicationRule:
    """Columns without meaning when a column's known value is among `when`, or is not among
    `unless`.
    """

    drop: tuple[str, ...]
    when: frozenset[str] | None = None
    unless: frozenset[str] | None = None

    def applies(self, value: str) -> bool:
        key = normalise_key(value)
        return (
            key in self.when if self.when is not None else key not in (self.unless or frozenset())
        )


@dataclass(frozen=True)
class Column:
    """What a template knows of one column; values are looked up by `same_key`."""

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
        """The value as the text says it, "" where it is not known; a number that is none raises
        `UserError`.
        """
        text = clean_cell(raw)
        if normalise_key(text) in self.unknown:
            return ""
        text = self.values.get(normalise_key(text), text)
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
            number, text = abs(number), text.lstrip("+-")
        return text if self.digits is None else clean_cell(f"{number:.{self.digits}f}")

    def to_phrase(self, shown: str) -> str:
        """The phrase of a value as `shown` gives it."""
        automatic = f"{self.name} is {shown}"
        if self.kind == "date" and parse_number(shown) is None:
            return automatic
        pattern = self.phrases.get(normalise_key(shown), self.phrase)
        return (
            pattern.replace("{value}", shown).replace("{unit}", self.unit) if pattern else automatic
        )


def parse_number(text: str) -> float | None:
    """The finite number that a text is, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def guess_role(column: str) -> str:
    """The role of a column that no template knows, by its name; an exposure where the name tells
    nothing.
    """
    name = normalise_key(column)
    if _ID.fullmatch(name):
        return "id"
    words = set(re.findall(r"[a-z]+(?:-[a-z]+)*", name))
    return next((role for role, names in _ROLE_NAMES.items() if name in names), "") or next(
        (role for role, known in _ROLE_WORDS.items() if words & set(known)), "exposure"
    )


def read_template_columns(path: Path) -> dict[str, Column]:
    """The columns of a template file; raises `UserError` for what breaks the format above."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        names = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.yaml")))
        raise UserError(
            f"--template {path} is neither auto, {names} nor a YAML file that can be read."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Template {path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("columns"), dict):
        raise UserError(
            f"Template {path} must be a mapping with a mapping `columns`; see "
            "data/templates/aiib23.yaml."
        )
    unknown = UNKNOWN_VALUES | _keys(f"Template {path}, unknown", raw.get("unknown", []))
    return {
        str(c): _column(f"Template {path}, column {str(c)!r}", str(c), e, unknown)
        for c, e in raw["columns"].items()
    }


def _keys(where: str, values: Any) -> frozenset[str]:
    if not isinstance(values, list | dict):
        raise UserError(f"{where} must be a list such as [a, b], and is {values!r}.")
    if any(isinstance(v, bool) for v in values):
        raise UserError(
            f"{where}: YAML reads a bare Yes or No as a truth value; write it in quotes."
        )
    return frozenset(map(normalise_key, values))


def _column(where: str, name: str, entry: Any, unknown: frozenset[str]) -> Column:
    allowed = {
        "phrase",
        "phrases",
        "values",
        "unknown",
        "kind",
        "role",
        "unit",
        "digits",
        "absolute",
        "implies",
    }
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be a mapping such as {{kind: number}}, and is {entry!r}.")
    if wrong := sorted(map(str, set(entry) - allowed)):
        raise UserError(
            f"{where}: unknown entries {', '.join(wrong)}; known are {', '.join(sorted(allowed))}."
        )
    kind, role = entry.get("kind", "text"), entry.get("role", "exposure")
    for key, value, choices in (("kind", kind, KINDS), ("role", role, ROLES)):
        if value not in choices:
            raise UserError(f"{where}: {key} is {value!r}; it must be one of {', '.join(choices)}.")
    simple = {k: entry[k] for k in ("phrase", "unit", "digits", "absolute") if k in entry}
    maps: dict[str, Any] = {}
    for key in ("phrases", "values"):
        _keys(f"{where}, {key}", entry.get(key, {}))
        maps[key] = {normalise_key(code): str(text) for code, text in entry.get(key, {}).items()}
    unknown |= _keys(f"{where}, unknown", entry.get("unknown", []))
    rules = tuple(_rule(f"{where}, implies", rule) for rule in entry.get("implies", []))
    return Column(name, role=role, kind=kind, unknown=unknown, implies=rules, **simple, **maps)


def _rule(where: str, entry: Any) -> ImplicationRule:
    if not isinstance(entry, dict) or set(entry) not in ({"when", "drop"}, {"unless", "drop"}):
        raise UserError(
            f"{where}: an entry takes `drop` with `when` or with `unless`; it is {entry!r}."
        )
    if not isinstance(entry["drop"], list):
        raise UserError(f"{where}: `drop` must be a list of columns, and is {entry['drop']!r}.")
    sets = {k: _keys(f"{where}, {k}", entry[k]) for k in ("when", "unless") if k in entry}
    return ImplicationRule(tuple(map(str, entry["drop"])), **sets)
