"""Types of values that were read from a file: one check for every record of the project."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from util.cli import UserError

WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    type(None): "null",
}
MAX_SHOWN = 60  # characters of a wrong value


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of an annotated type; lists and tuples are not told apart.

    Args:
        value: A value as JSON or YAML holds it.
        hint: `int`, `float`, `str`, `bool`, `None`, a class, or `list`, `tuple`, `dict`, `Literal`
            and unions of them.
    """
    origin = typing.get_origin(hint) or hint
    parts = typing.get_args(hint)
    if origin is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and _fits_elements(value, origin, parts)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            return False
        key, element = parts or (Any, Any)
        return all(fits(k, key) and fits(v, element) for k, v in value.items())
    return _fits_plain(value, origin)


def _fits_elements(value: Sequence[Any], origin: Any, parts: Sequence[Any]) -> bool:
    if not parts:
        return True
    if origin is not tuple or parts[-1] is Ellipsis:
        return all(fits(element, parts[0]) for element in value)
    return len(value) == len(parts) and all(map(fits, value, parts))


def _fits_plain(value: Any, kind: Any) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, type(None) if kind is None else kind)


def type_in_words(hint: Any) -> str:
    """Return what a type takes, for messages."""
    origin = typing.get_origin(hint) or hint
    parts = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_in_words(part) for part in parts)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin in (list, tuple, Sequence) and parts:
        count = "" if origin is not tuple or parts[-1] is Ellipsis else f"{len(parts)} "
        return f"a list of {count}({type_in_words(parts[0])})"
    if origin in (dict, Mapping) and parts:
        return f"a mapping to {type_in_words(parts[1])}"
    return WORDS.get(type(None) if origin is None else origin, str(origin))


def misfit(values: Any, hints: Mapping[str, Any]) -> str:
    """Return what is wrong with a mapping, in words, or "".

    Args:
        values: The mapping.
        hints: Type of each entry that is needed; a type that takes None marks one that may lack.
            Further entries are not looked at.
    """
    if not isinstance(values, dict):
        return f"it holds {_shorten(values)} instead of a mapping"
    for name, hint in hints.items():
        if name not in values and not fits(None, hint):
            return f"{name} is missing"
        if not fits(values.get(name), hint):
            return f"{name} is {_shorten(values[name])}; it must be {type_in_words(hint)}"
    return ""


def check_record(values: Any, hints: Mapping[str, Any], path: Path, fix: str) -> dict[str, Any]:
    """Return a mapping whose entries have the types that are asked for (see `misfit`).

    Raises:
        UserError: They have not; the message names `path` and the entry, and ends with `fix`.
    """
    if problem := misfit(values, hints):
        raise UserError(f"{path} is damaged: {problem}. {fix}")
    return dict(values)


def _shorten(value: Any) -> str:
    if isinstance(value, int) and not -(10**20) < value < 10**20:
        return "a number of too many digits"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
