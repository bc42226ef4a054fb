"""The table of planted effects: change of lung parenchyma in HU, and its place, by attribute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.phantom.anatomy import Anatomy
from data.phantom.rows import COLUMNS, LEVELS, NUMBERS
from util.cli import UserError, format_list
from util.schema import fits, type_in_words
from util.yaml_files import parse_yaml

Array = NDArray[np.float32]
DEFAULT_FILE = Path(__file__).parents[1] / "effects" / "phantom.yaml"
MAX_NUMBER = 1e9  # of any entry
MAX_SHOWN = 60  # characters of a wrong number in a message
MAX_EFFECT_HU = 500.0  # of a mean; far larger ones are typing errors


def _step(position: Array, middle: float, width: float) -> Array:
    return np.asarray(1 / (1 + np.exp((middle - position) / width)), np.float32)


FACTORS: dict[str, Callable[[Anatomy], Array]] = {
    "uniform": lambda a: np.ones_like(a.height),
    "upper": lambda a: 0.1 + _step(a.height, 0.55, 0.09),
    "middle": lambda a: np.asarray(0.1 + np.exp(-(((a.height - 0.5) / 0.2) ** 2)), np.float32),
    "lower": lambda a: 0.1 + _step(-a.height, -0.40, 0.09),
    "ventral": lambda a: 0.1 + _step(a.front, 0.55, 0.12),
    "dorsal": lambda a: 0.1 + _step(-a.front, -0.45, 0.12),
    "central": lambda a: 0.1 + _step(a.depth, 18.0, 4.0),
    "subpleural": lambda a: 0.1 + _step(-a.depth, -14.0, 3.0),
}


@dataclass(frozen=True)
class EffectTerm:
    """One effect.

    Attributes:
        hu: Mean over the lungs' voxels.
        pattern: Names of `FACTORS` that are multiplied, joined by "_".
    """

    hu: float
    pattern: str

    def field(self, anatomy: Anatomy) -> Array:
        """Return the change in HU (X, Y, Z); 0 outside the parenchyma."""
        factors = [FACTORS[name](anatomy) for name in self.pattern.split("_")]
        weights = np.prod(factors, axis=0) * anatomy.share
        mean = float(weights.sum()) / max(int((anatomy.share > 0).sum()), 1)
        return np.asarray(weights * (self.hu / mean if mean > 0 else 0.0), np.float32)


@dataclass(frozen=True)
class Slope:
    """The effect of a number.

    Attributes:
        term: Effect per unit.
        reference: Number without an effect.
    """

    term: EffectTerm
    reference: float = 0.0

    def at(self, number: float) -> EffectTerm:
        """Return the effect of a number."""
        return EffectTerm(self.term.hu * (number - self.reference), self.term.pattern)


@dataclass(frozen=True)
class PlantedEffects:
    """All planted effects.

    Attributes:
        levels: Effects by column and value.
        slopes: Effects of numbers by column.
        null_column: A column meant to have no effect.
        raw: The table as it was read, for the cohort's record.
    """

    levels: Mapping[str, Mapping[str, EffectTerm]]
    slopes: Mapping[str, Slope]
    null_column: str | None
    raw: Mapping[str, Any]

    def terms(self, row: Mapping[str, str]) -> list[EffectTerm]:
        """Return the effects of a row; an empty cell has none."""
        terms = []
        for column, by_level in self.levels.items():
            if row.get(column) in by_level:
                terms.append(by_level[row[column]])
        for column, slope in self.slopes.items():
            if row.get(column):
                terms.append(slope.at(float(row[column])))
        return [term for term in terms if term.hu]


def load_effects(path: Path | None = None) -> PlantedEffects:
    """Read the effects of a YAML file, the project's own by default.

    Raises:
        UserError: The file cannot be read, or breaks the rules of `parse_effects`.
    """
    path = path or DEFAULT_FILE
    try:
        raw = parse_yaml(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"--effects {path} cannot be read: {error.strerror}. Give a YAML file."
        ) from None
    except ValueError as error:
        raise UserError(f"--effects {path} is not valid YAML: {error}. Correct it.") from None
    return parse_effects(raw, str(path))


def parse_effects(raw: Any, source: str) -> PlantedEffects:
    """Build effects from plain values; `source` names their file in messages.

    Raises:
        UserError: A column, level or pattern is unknown, a number is malformed, or `null_column`
            has an effect.
    """
    table = _check_mapping(raw, ("effects", "null_column"), source)
    columns = _check_mapping(table.get("effects", {}), COLUMNS, f"{source}: effects")
    levels: dict[str, dict[str, EffectTerm]] = {}
    slopes = {}
    for column, value in columns.items():
        where = f"{source}: effects of {column!r}"
        entry = _check_mapping(value, ("source", "levels", "per_unit"), where)
        if ("levels" in entry) == ("per_unit" in entry):
            has = format_list(list(entry)) or "nothing"
            raise UserError(f"{where} must have either `levels` or `per_unit`; it has {has}.")
        if "levels" in entry:
            terms = _check_mapping(entry["levels"], LEVELS.get(column, ()), f"{where}: levels")
            levels[column] = {}
            for level, term in terms.items():
                here = f"{where}, level {level!r}"
                term = _check_mapping(term, ("hu", "pattern"), here)
                levels[column][level] = _parse_term(term, here)
        elif column in NUMBERS:
            term = _check_mapping(entry["per_unit"], ("hu", "pattern", "reference"), where)
            slopes[column] = Slope(
                _parse_term(term, where), _parse_number(term, "reference", where)
            )
        else:
            raise UserError(
                f"{where}: `per_unit` is for numbers ({', '.join(NUMBERS)}); use `levels`."
            )
    null_column = table.get("null_column")
    if null_column is not None and null_column not in COLUMNS:
        raise UserError(
            f"{source}: null_column is {null_column!r}; it must be one of: "
            f"{format_list(COLUMNS, 20)}."
        )
    if null_column in columns:
        raise UserError(
            f"{source}: {null_column!r} is the null_column, so it must not have effects."
        )
    return PlantedEffects(levels, slopes, null_column, raw)


def _check_mapping(value: Any, allowed: tuple[str, ...], where: str) -> dict[str, Any]:
    """Return a mapping whose names are all allowed; raise `UserError` for another value."""
    if not isinstance(value, dict):
        raise UserError(
            f"{where} must be a table of names and values; it is {type_in_words(type(value))}."
        )
    for name in value:
        if name not in allowed:
            hint = "; put numbers in quotes" if isinstance(name, int) else ""
            choices = format_list([repr(a) for a in allowed], 20) or "nothing"
            shown = repr(str(name)[:MAX_SHOWN])
            raise UserError(f"{where}: {shown} is not known; allowed: {choices}{hint}.")
    return value


def _parse_number(entry: Mapping[str, Any], name: str, where: str) -> float:
    number: Any = entry.get(name)
    if fits(number, float) and abs(number) < MAX_NUMBER:
        return float(number)
    is_short = isinstance(number, str | float | None)
    shown = repr(number)[:MAX_SHOWN] if is_short else type_in_words(type(number))
    raise UserError(f"{where}: `{name}` must be a number between -1e9 and 1e9; it is {shown}.")


def _parse_term(entry: Mapping[str, Any], where: str) -> EffectTerm:
    hu = _parse_number(entry, "hu", where)
    if abs(hu) > MAX_EFFECT_HU:
        raise UserError(
            f"{where}: `hu` must lie between -{MAX_EFFECT_HU:g} and {MAX_EFFECT_HU:g}; it is "
            f"{hu:g}."
        )
    pattern = entry.get("pattern", "uniform")
    if not set(str(pattern).split("_")) <= set(FACTORS):
        raise UserError(
            f"{where}: pattern is {pattern!r}; use one or several, joined by _, of: "
            f"{', '.join(FACTORS)}."
        )
    return EffectTerm(hu, str(pattern))
