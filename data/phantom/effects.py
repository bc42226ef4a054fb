"""The table of planted effects: what a clinical row adds to lung parenchyma, in HU and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from data.phantom.anatomy import Anatomy
from data.phantom.rows import COLUMNS, LEVELS, NUMBERS
from util.cli import UserError, format_list

Array = NDArray[np.float32]
DEFAULT_FILE = Path(__file__).parents[1] / "effects" / "phantom.yaml"
LIMIT_HU = 500.0  # of a mean; far larger ones are typing errors


def _step(at: Array, middle: float, width: float) -> Array:
    return np.asarray(1 / (1 + np.exp((middle - at) / width)), np.float32)


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
    """`hu` on average over the lungs' voxels, spread as `pattern`."""

    hu: float
    pattern: str

    def field(self, anatomy: Anatomy) -> Array:
        """The change in HU, shape (X,Y,Z); 0 outside the parenchyma."""
        spread = (
            np.prod([FACTORS[f](anatomy) for f in self.pattern.split("_")], axis=0) * anatomy.share
        )
        mean = float(spread.sum()) / max(int((anatomy.share > 0).sum()), 1)
        return np.asarray(spread * (self.hu / mean if mean > 0 else 0.0), np.float32)


@dataclass(frozen=True)
class PlantedEffects:
    """Planted effects: `levels[column][value]`, `slopes[column] = (term per unit, reference)`."""

    levels: Mapping[str, Mapping[str, EffectTerm]]
    slopes: Mapping[str, tuple[EffectTerm, float]]
    null_column: str | None
    raw: Mapping[str, Any]  # the table as it was read, for the cohort's record

    def terms(self, row: Mapping[str, str]) -> list[EffectTerm]:
        """What a row adds; an empty cell adds nothing."""
        found = [by_level[row[c]] for c, by_level in self.levels.items() if row.get(c) in by_level]
        for column, (term, reference) in self.slopes.items():
            if row.get(column):
                found.append(EffectTerm(term.hu * (float(row[column]) - reference), term.pattern))
        return [t for t in found if t.hu]


def load_effects(path: Path | None = None) -> PlantedEffects:
    """The effects of a YAML file, the project's own by default; raises `UserError` where it breaks
    the rules.
    """
    path = path or DEFAULT_FILE
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"--effects {path} cannot be read: {error.strerror}. Give a YAML file."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--effects {path} is not valid YAML: {error}.") from None
    return parse_effects(raw, str(path))


def parse_effects(raw: Any, source: str) -> PlantedEffects:
    """Effects from plain values; `source` names their file in messages.

    Raises:
        UserError: An unknown column, level or pattern, a number that is none, or an effect on
            `null_column`.
    """
    known = _table(raw, ("effects", "null_column"), source)
    columns = _table(known.get("effects", {}), COLUMNS, f"{source}: effects")
    levels, slopes = {}, {}
    for column, entry in columns.items():
        where = f"{source}: effects of {column!r}"
        entry = _table(entry, ("source", "levels", "per_unit"), where)
        if ("levels" in entry) == ("per_unit" in entry):
            has = format_list(list(entry)) or "nothing"
            raise UserError(f"{where} must have either `levels` or `per_unit`; it has {has}.")
        if "levels" in entry:
            values = _table(entry["levels"], LEVELS.get(column, ()), f"{where}: levels")
            levels[column] = {
                v: _term(t, ("hu", "pattern"), f"{where}, level {v!r}")[0]
                for v, t in values.items()
            }
        elif column in NUMBERS:
            slopes[column] = _term(entry["per_unit"], ("hu", "pattern", "reference"), where)
        else:
            raise UserError(
                f"{where}: `per_unit` is for numbers ({', '.join(NUMBERS)}); use `levels`."
            )
    null = known.get("null_column")
    if null is not None and null not in COLUMNS:
        raise UserError(
            f"{source}: null_column is {null!r}; it must be one of: {format_list(list(COLUMNS), 20)}."
        )
    if null in columns:
        raise UserError(f"{source}: {null!r} is the null_column, so it must not have effects.")
    return PlantedEffects(levels, slopes, null, raw)


def _table(value: Any, allowed: tuple[str, ...], where: str) -> dict[str, Any]:
    """A mapping whose names are all allowed."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a table of names and values; it is {value!r}.")
    for name in value:
        if name not in allowed:
            hint = "; put numbers in quotes" if isinstance(name, int) else ""
            choices = format_list([repr(a) for a in allowed], 20) or "nothing"
            raise UserError(f"{where}: {name!r} is not known; allowed: {choices}{hint}.")
    return value


def _term(value: Any, names: tuple[str, ...], where: str) -> tuple[EffectTerm, float]:
    entry = _table(value, names, where)
    numbers = {"reference": 0.0}
    for name in names:
        if name == "pattern":
            continue
        number = entry.get(name)
        if (
            isinstance(number, bool)
            or not isinstance(number, (int, float))
            or not np.isfinite(number)
        ):
            raise UserError(f"{where}: `{name}` must be a number; it is {number!r}.")
        numbers[name] = float(number)
    if abs(numbers["hu"]) > LIMIT_HU:
        raise UserError(
            f"{where}: `hu` must lie between -{LIMIT_HU:g} and {LIMIT_HU:g}; it is "
            f"{numbers['hu']:g}."
        )
    pattern = entry.get("pattern", "uniform")
    for factor in str(pattern).split("_"):
        if factor not in FACTORS:
            allowed = ", ".join(FACTORS)
            raise UserError(
                f"{where}: pattern is {pattern!r}; use one or several, joined by _, of: {allowed}."
            )
    return EffectTerm(numbers["hu"], str(pattern)), numbers["reference"]
