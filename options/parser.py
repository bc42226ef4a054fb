"""Flags declared as fields of frozen dataclasses, and their conversion to `argparse` and JSON."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import shlex
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from options.usage import WIDTH, Input, check_input, epilog, unknown_words
from util.cli import UserError, format_list, run_command, shorten, suggestion
from util.schema import misfit

T = TypeVar("T")
MAX_INTEGER = 2**53  # of any option; larger ones are typing errors or damage
NEGATIVE = re.compile(r"^-[\d.]")
COLUMN_FORM = re.compile(r'"(COLUMN=[A-Z,]+)')  # of a flag's values, as its help shows it


def flag(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    old_names: Sequence[str] = (),
    old_values: Mapping[str, str] | None = None,
) -> Any:
    """Declare a field that is a flag.

    Args:
        default: Default value. The flag of a `tuple[str, ...]` field is repeated; other tuples are
            written with commas.
        help: One sentence for `--help`; the default is added to it.
        choices: Values allowed.
        low: Smallest value allowed (of every element of a tuple).
        high: Largest value allowed.
        old_names: Earlier spellings: hidden flags, and names in the options of earlier runs.
        old_values: Earlier spellings of values, with today's.
    """
    return _field(
        help,
        default=default,
        choices=choices,
        low=low,
        high=high,
        old_names=tuple(old_names),
        old_values=dict(old_values or {}),
    )


def path_flag(default: Any, help: str, *, kind: Input, old_names: Sequence[str] = ()) -> Any:
    """Declare a flag that names something on disk, which must exist (see `check_inputs`)."""
    return _field(help, default=default, input=kind, old_names=tuple(old_names))


def argument(help: str, *, kind: Input | None = None) -> Any:
    """Declare a field that is a required word without a flag; `kind` as for `path_flag`."""
    return _field(help, positional=True, input=kind)


def _field(help: str, *, default: Any = dataclasses.MISSING, **metadata: Any) -> Any:
    empty: dict[str, Any] = {"choices": None, "low": None, "high": None, "old_names": ()}
    return dataclasses.field(default=default, metadata={**empty, "help": help, **metadata})


def group(cls: type[T], title: str) -> Any:
    """Declare a field that holds a group of flags, shown under `title` in `--help`."""
    return dataclasses.field(default_factory=cls, metadata={"title": title})


def is_group(cls: type) -> bool:
    """Return whether an option class holds flags itself, and not groups of them."""
    return not any("title" in field.metadata for field in dataclasses.fields(cls))


def groups_of(cls: type) -> list[tuple[dataclasses.Field[Any], type]]:
    """Return the groups of an option class, with their types."""
    hints = typing.get_type_hints(cls)
    return [(f, hints[f.name]) for f in dataclasses.fields(cls)]


def _unwrap(hint: Any) -> Any:
    """Return `X` of `X | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return hint


def _repeats(hint: Any) -> bool:
    return _unwrap(hint) == tuple[str, ...]


def convert_word(hint: Any, text: str) -> Any:
    """Return a command-line word as a value of the annotated type.

    Raises:
        ValueError: The word does not fit; the message holds the rule.
    """
    hint = _unwrap(hint)
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        parts = [p.strip() for p in text.split(",")]
        if kinds[-1] is Ellipsis:
            return tuple(convert_word(kinds[0], p) for p in parts)
        if len(parts) != len(kinds):
            raise ValueError(f"takes {len(kinds)} values separated by commas, got {text!r}")
        return tuple(convert_word(k, p) for k, p in zip(kinds, parts, strict=True))
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(
                f"takes {'a whole number' if hint is int else 'a number'}, got {text!r}"
            ) from None
    return text


def check_value(field: dataclasses.Field[Any], value: Any) -> None:
    """Raise `UserError` where a value breaks the choices or bounds of its flag."""
    meta = field.metadata
    name = f"--{field.name}"
    if value is None:
        return
    for v in value if isinstance(value, tuple) else (value,):
        if meta["choices"] is not None and v not in meta["choices"]:
            choices = ", ".join(map(str, meta["choices"]))
            near = suggestion(str(v), map(str, meta["choices"]))
            raise UserError(f"{name} is {shorten(repr(v))}; it must be one of: {choices}.{near}")
        if isinstance(v, float) and not math.isfinite(v):
            raise UserError(f"{name} is {v}; it must be a finite number.")
        if isinstance(v, int) and abs(v) > MAX_INTEGER:
            raise UserError(f"{name} is too large a number; it must be at most {MAX_INTEGER}.")
        if meta["low"] is not None and v < meta["low"]:
            raise UserError(f"{name} is {v}; it must be at least {meta['low']}.")
        if meta["high"] is not None and v > meta["high"]:
            raise UserError(f"{name} is {v}; it must be at most {meta['high']}.")


def check_window(name: str, window: tuple[float, float]) -> None:
    """Raise `UserError` where the two ends of a range are equal or exchanged."""
    low, high = window
    if low >= high:
        raise UserError(f"--{name} is {low:g},{high:g}; the first must be below the second.")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) if value else "none"
    return "none" if value is None or value == "" else str(value)


class _Parser(argparse.ArgumentParser):
    """An `argparse` parser whose errors are for users.

    Attributes:
        removed: Flags of earlier versions, with what takes their place.
        visible: Names of the flags that the help shows.
    """

    removed: Mapping[str, str]
    visible: Sequence[str]

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}. See {self.prog} --help.")

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the values of the flags that are given; raise `UserError` for unknown words."""
        values, unknown = self.parse_known_args(argv)
        if unknown:
            raise UserError(unknown_words(unknown, self.visible, self.removed, self.prog))
        return vars(values)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=WIDTH)


Presets = Mapping[str, Mapping[str, Any]]


def build_parser(cls: type, description: str, presets: Presets | None = None) -> _Parser:
    """Return the `argparse` parser of an option class; its result holds only given flags.

    A class may have the attributes REQUIRED (flags that must be given, see `check_inputs`) and
    EXAMPLE (a command line); it and its groups may have REMOVED (flags of earlier versions, with a
    sentence on what takes their place).
    """
    parser = _Parser(
        description=description,
        epilog=epilog(getattr(cls, "EXAMPLE", ""), presets),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=_HelpFormatter,
    )
    visible, removed = ["help"], dict(getattr(cls, "REMOVED", {}))
    if presets:
        text = "Settings for a memory size; options given beside it take precedence. See the end."
        parser.add_argument("--preset", choices=sorted(presets), help=text)
        visible.append("preset")
    sections: list[tuple[Any, type]] = [(parser, cls)]
    if not is_group(cls):
        sections = [(parser.add_argument_group(f.metadata["title"]), g) for f, g in groups_of(cls)]
    for section, group_cls in sections:
        removed.update(getattr(group_cls, "REMOVED", {}))
        hints = typing.get_type_hints(group_cls)
        for field in dataclasses.fields(group_cls):
            if field.metadata.get("positional"):
                section.add_argument(field.name, help=field.metadata["help"])
                continue
            visible += [field.name, *([f"no-{field.name}"] if hints[field.name] is bool else [])]
            is_required = field.name in getattr(cls, "REQUIRED", ())
            _add_flag(section, field, hints[field.name], is_required)
    parser.visible, parser.removed = visible, removed
    return parser


def _add_flag(section: Any, field: dataclasses.Field[Any], hint: Any, is_required: bool) -> None:
    """Add a flag with its earlier spellings to a section of the help."""
    meta = field.metadata
    end = "required" if is_required else _shown(field.default)
    text = f"{meta['help']} [{end}]".replace("%", "%%")
    settings: dict[str, Any] = {"metavar": _metavar(hint, meta)}
    if _unwrap(hint) is bool:
        settings = {"action": argparse.BooleanOptionalAction}
    elif _repeats(hint):
        settings["action"] = "append"
    section.add_argument(f"--{field.name}", help=text, **settings)
    for old in meta["old_names"]:
        section.add_argument(f"--{old}", dest=field.name, help=argparse.SUPPRESS, **settings)


def _metavar(hint: Any, meta: Mapping[str, Any]) -> str:
    """Return what stands for a value in `--help`, such as N, {a,b}, or COLUMN=A,B."""
    if meta["choices"]:
        return "{" + ",".join(map(str, meta["choices"])) + "}"
    if _repeats(hint):
        form = COLUMN_FORM.search(meta["help"])
        return form[1] if form else "TEXT"
    return _type_metavar(hint)


def _type_metavar(hint: Any) -> str:
    hint = _unwrap(hint)
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        one = _type_metavar(kinds[0])
        return f"{one},..." if kinds[-1] is Ellipsis else ",".join([one] * len(kinds))
    return {int: "N", float: "X"}.get(hint, "TEXT")


def join_negative(argv: Sequence[str]) -> list[str]:
    """Join `--flag -1000,400` to `--flag=-1000,400`; argparse would read two flags."""
    joined: list[str] = []
    for word in argv:
        if (
            joined
            and NEGATIVE.match(word)
            and joined[-1].startswith("--")
            and "=" not in joined[-1]
        ):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def parse(
    cls: type[T],
    description: str,
    argv: Sequence[str] | None = None,
    presets: Presets | None = None,
    start: T | None = None,
) -> T:
    """Parse a command line into an option class: defaults, then the preset, then the flags.

    Args:
        cls: A frozen dataclass of flags (see `flag`), or of groups of them (see `group`).
        description: Purpose of the command, for `--help`.
        argv: Words after the command's name; None reads `sys.argv`.
        presets: Named sets of flag values for `--preset`.
        start: Values in place of the defaults, such as those of a run that is resumed.

    Raises:
        UserError: An unknown flag, or a value of the wrong type or outside its bounds.
    """
    parser = build_parser(cls, description, presets)
    words = parser.read(join_negative(sys.argv[1:] if argv is None else argv))
    preset = (presets or {}).get(words.pop("preset", ""), {})

    def parse_group(group_cls: type, start: Any) -> Any:
        hints = typing.get_type_hints(group_cls)
        values = vars(start).copy() if start is not None else {}
        for field in dataclasses.fields(group_cls):
            if field.name in words:
                value = _from_word(field.name, hints[field.name], words[field.name])
                values[field.name] = _current_value(field, value)
            elif field.name in preset:
                values[field.name] = preset[field.name]
            if field.name in values:
                check_value(field, values[field.name])
        return group_cls(**values)

    if is_group(cls):
        return parse_group(cls, start)
    return cls(**{f.name: parse_group(g, getattr(start, f.name, None)) for f, g in groups_of(cls)})


def check_inputs(options: Any) -> None:
    """Raise `UserError` where a required flag is not given, or what a flag names does not exist.

    Commands call this before anything long, in which the same is found later.

    Args:
        options: An option class, see `build_parser`.
    """
    required = getattr(options, "REQUIRED", ())
    for group_values, field in _flags_of(options):
        if field.name in required and not getattr(group_values, field.name):
            raise UserError(f"--{field.name} is not given. It is needed: {field.metadata['help']}")
    check_paths(options)


def check_paths(options: Any) -> None:
    """Raise `UserError` where what a flag names on disk does not exist (see `path_flag`)."""
    flags = _flags_of(options)
    folders = (getattr(group_values, "checkpoints_dir", "") for group_values, _ in flags)
    checkpoints_dir = next(filter(None, folders), "")
    for group_values, field in flags:
        value, kind = getattr(group_values, field.name), field.metadata.get("input")
        label = field.name if field.metadata.get("positional") else f"--{field.name}"
        for name in value if isinstance(value, tuple) else (value,):
            if kind:
                check_input(label, kind, name, checkpoints_dir)


def _flags_of(options: Any) -> list[tuple[Any, dataclasses.Field[Any]]]:
    """Return every flag of an option class, with the group that holds its value."""
    groups = [options]
    if not is_group(type(options)):
        groups = [getattr(options, outer.name) for outer, _ in groups_of(type(options))]
    return [(values, field) for values in groups for field in dataclasses.fields(values)]


def parse_command(
    cls: type[T],
    description: str,
    argv: Sequence[str] | None = None,
    presets: Presets | None = None,
) -> T:
    """Parse as `parse` does, and check as `check_inputs` does."""
    options = parse(cls, description, argv, presets)
    check_inputs(options)
    return options


def answer_early(name: str, cls: type, description: str) -> None:
    """Answer `--help` and mistakes of a command line before a module's slow imports.

    Args:
        name: The module's `__name__`; nothing is done where it is imported.
        cls: See `parse`.
        description: Purpose of the command, for `--help`.
    """
    if name == "__main__":
        run_command(lambda: check_inputs(parse(cls, description)))


def _from_word(name: str, hint: Any, word: Any) -> Any:
    if isinstance(word, bool):
        return word
    if isinstance(word, list):
        return tuple(word)
    try:
        return convert_word(hint, word)
    except ValueError as error:
        raise UserError(f"--{name} {error}.") from None


def _current_value(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return today's spelling of a value."""
    old_values = field.metadata.get("old_values", {})
    return old_values.get(value, value) if isinstance(value, str) else value


def to_dict(options: Any) -> dict[str, Any]:
    """Return an option class as nested plain values, for JSON."""
    return dataclasses.asdict(options)


def command_line(options: Any) -> dict[str, str]:
    """Return the flags of an option class as one would type them, by group.

    None and empty lists, which no word stands for, are left out.
    """
    lines = {}
    for outer, group_cls in groups_of(type(options)):
        words: list[str] = []
        hints = typing.get_type_hints(group_cls)
        for name, value in vars(getattr(options, outer.name)).items():
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            elif _repeats(hints[name]):
                words += [f"--{name} {shlex.quote(v)}" for v in value]
            elif value not in (None, ()):
                words.append(f"--{name} {shlex.quote('' if value == '' else _shown(value))}")
        lines[outer.name] = " ".join(words)
    return lines


def from_dict(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Return the option class that `to_dict` wrote, JSON's lists made tuples again.

    Raises:
        UserError: `source` holds an option that is unknown, also among earlier spellings, or a
            value of another type or outside its bounds.
    """
    groups = {}
    known = {outer.name: group_cls for outer, group_cls in groups_of(cls)}
    if not isinstance(values, Mapping):
        raise UserError(f"{source} is damaged: it holds no options. Restore it from a copy.")
    _check_known(sorted(set(values) - set(known)), source)
    for name, group_cls in known.items():
        groups[name] = group_from_dict(group_cls, values.get(name, {}), source)
    return cls(**groups)


def _check_known(unknown: Sequence[str], source: str) -> None:
    if unknown:
        raise UserError(
            f"{source} holds options this version does not know: {format_list(unknown)}. Use the "
            "version that wrote it."
        )


def group_from_dict(group_cls: type, values: Any, source: str) -> Any:
    """Return a group of options from stored values; for errors see `from_dict`.

    An option that is not stored has the value in the class's `ABSENT`, else its default.
    """
    fields: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(group_cls)}
    hints = typing.get_type_hints(group_cls)
    if not isinstance(values, Mapping):
        raise UserError(f"{source} is damaged: {values!r:.60} is no group of options.")
    renamed: dict[str, str] = {}
    for name, field in fields.items():
        renamed.update(dict.fromkeys(field.metadata.get("old_names", ()), name))
    stored: dict[str, Any] = {}
    for key, value in values.items():
        stored[renamed.get(str(key), str(key))] = value
    _check_known(sorted(set(stored) - set(fields)), source)
    for name, value in stored.items():
        value = tuple(value) if isinstance(value, list) else _current_value(fields[name], value)
        if problem := misfit({name: value}, {name: hints[name]}):
            raise UserError(f"{source} is damaged: {problem}. Restore it from a copy.")
        try:
            check_value(fields[name], value)
        except UserError as error:
            raise UserError(f"{source}: {error} Restore the file from a copy.") from None
        stored[name] = value
    return group_cls(**{**getattr(group_cls, "ABSENT", {}), **stored})
