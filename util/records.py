"""Folders in which a stopped command resumes: a record holds the settings of their content."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.cli import UserError, format_list
from util.files import claim_folder, plain_json, read_json, write_json
from util.schema import fits, misfit, type_in_words

log = logging.getLogger(__name__)

MAX_WAIT_S = 600.0


def read_record(path: Path, hint: Any, consequence: str) -> Any:
    """Read a record that can be made again; return None, with a warning, where it is damaged.

    Args:
        path: The JSON file.
        hint: Type of its content, or types by entry for a mapping (see `util.schema`).
        consequence: What happens without it, for the warning.
    """
    try:
        value = read_json(path)
    except UserError as error:
        log.warning("%s %s.", error, consequence)
        return None
    if isinstance(hint, Mapping):
        problem = misfit(value, hint)
    else:
        problem = "" if fits(value, hint) else f"it must hold {type_in_words(hint)}"
    if problem:
        log.warning("%s is damaged: %s. %s.", path, problem, consequence)
        return None
    return value


def wait_for_record(folder: Path, record: str, settings: Mapping[str, Any]) -> None:
    """Wait until another process has opened a folder; raise `UserError` when it never does."""
    wanted = json.loads(json.dumps(plain_json(settings)))
    end = time.monotonic() + MAX_WAIT_S
    while not (folder / record).is_file() or read_json(folder / record) != wanted:
        if time.monotonic() > end:
            raise UserError(
                f"{folder / record} was not written by the first process. See its message."
            )
        time.sleep(0.2)


def open_record(
    folder: Path,
    record: str,
    settings: Mapping[str, Any],
    overwrite: bool | None,
    flag: str = "--out",
) -> bool:
    """Make a folder with a record of its settings, or check that it was made with the same ones.

    Args:
        record: Name of the record in it.
        settings: Plain values that decide the folder's content.
        overwrite: Empty a folder whose record holds other settings; None where the command has no
            such flag.
        flag: Flag that names the folder, for messages.

    Returns:
        Whether earlier work is there.

    Raises:
        UserError: It holds something else, or was made with other settings and `overwrite` is off.
    """
    wanted = json.loads(json.dumps(plain_json(settings)))
    if claim_folder(folder, [record], overwrite=True, flag=flag):
        if same_settings(read_json(folder / record), wanted, folder, overwrite, flag):
            return True
        shutil.rmtree(folder)
    write_json(folder / record, wanted)
    return False


def same_settings(
    stored: Any,
    wanted: Mapping[str, Any],
    folder: Path,
    overwrite: bool | None,
    flag: str = "--out",
) -> bool:
    """Compare the settings that a folder was made with; raise `UserError` for others.

    Args:
        stored: Settings of the folder.
        wanted: Settings of this call.
        folder: The folder, for messages.
        overwrite: Return False for other settings, instead of raising; None where the command has
            no such flag.
        flag: Flag that names the folder, for messages.
    """
    if stored == wanted:
        return True
    if overwrite:
        return False
    known = stored if isinstance(stored, dict) else {}
    differences = [
        _difference(name, known.get(name), value)
        for name, value in wanted.items()
        if name not in known or known[name] != value
    ]
    fix = "Choose" if overwrite is None else "Use --overwrite to replace it, or choose"
    raise UserError(
        f"{flag}: {folder} was made with other settings ({format_list(differences)}). {fix} "
        "another folder."
    )


def _difference(name: str, before: Any, now: Any) -> str:
    plain = all(isinstance(value, bool | int | float | str) for value in (before, now))
    return f"{name} {before} there, {now} now" if plain else name
