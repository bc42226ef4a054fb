"""Help and messages of a command line: near misses, removed flags, presets, examples, inputs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from util.cli import UserError, shorten, suggestion
from util.training import runs

# What a flag's value names on disk: a folder, a file, a run in --checkpoints_dir, or a built-in
# name in whose place a path may be given (as KIND:PATH where there are several kinds of files).
Input = Literal["folder", "file", "run", "source", "name or path"]
DOWNLOADED = "hub"  # the kind whose values are no paths
PATH_SUFFIXES = (".yaml", ".yml", ".pt", ".pth", ".bin", ".safetensors")
WIDTH = 110  # columns of the help


def unknown_words(
    words: Sequence[str], flags: Sequence[str], removed: Mapping[str, str], program: str
) -> str:
    """Return what is wrong with words of a command line that are not known.

    Args:
        flags: Names of the command's flags.
        removed: Flags of earlier versions, with what takes their place, as a sentence.
        program: Name of the command.
    """
    unknown = [word for word in words if word.startswith("--")]
    if not unknown:
        return f"{program} does not take {shorten(repr(' '.join(words)))}. See {program} --help."
    messages = []
    for name in dict.fromkeys(word[2:].partition("=")[0] for word in unknown):
        if name in removed:
            messages.append(f"--{name} was removed. {removed[name]}")
        else:
            near = suggestion(name, flags, "--")
            messages.append(f"--{shorten(name)} is not a flag of {program}.{near}")
    return f"{' '.join(messages)} See {program} --help."


def epilog(example: str, presets: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Return the end of a command's help: what presets contain, and an example."""
    parts = []
    for name, values in (presets or {}).items():
        words = []
        for flag, value in values.items():
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{flag} {text}")
        parts.append(_wrapped(f"--preset {name}: {' '.join(words)}"))
    if example:
        parts.append(_wrapped(f"Example: {example}"))
    return "\n".join(parts)


def _wrapped(text: str) -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def check_input(flag: str, kind: Input, value: str, checkpoints_dir: str) -> None:
    """Raise `UserError` where the folder, file or run that a flag names does not exist.

    Args:
        flag: The flag, for messages.
        kind: What it names.
        value: Its value; the empty text passes.
        checkpoints_dir: Folder of all runs.
    """
    if not value:
        return
    if kind in ("run", "source"):
        find = runs.find_run if kind == "run" else runs.find_source
        try:
            runs.read_options(find(checkpoints_dir, value))
        except UserError as error:
            raise UserError(f"{'' if flag == '--name' else f'{flag} {value}: '}{error}") from None
    elif kind == "folder" and not Path(value).is_dir():
        raise UserError(f"{flag} {value} does not exist or is not a folder. Check the path.")
    elif kind == "file" and not Path(value).is_file():
        raise UserError(f"{flag} {value} does not exist or is not a file. Check the path.")
    elif kind == "name or path":
        prefix, _, path = value.rpartition(":")
        is_path = "/" in path or path.endswith(PATH_SUFFIXES)
        if prefix != DOWNLOADED and is_path and not Path(path).exists():
            raise UserError(f"{flag} {value} is not a folder or a file. Check the path.")
