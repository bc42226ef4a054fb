"""Folders that a stopped command goes on in: a record says which settings their content belongs
to.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.cli import UserError, format_list
from util.training.checkpoint import read_json, write_json

PATIENCE_S = 600.0


def wait_for(folder: Path, record: str, settings: Mapping[str, Any]) -> None:
    """Waits until another process has opened a folder with these settings; raises `UserError` when
    it never does.
    """
    wanted, end = json.loads(json.dumps(settings)), time.monotonic() + PATIENCE_S
    while not (folder / record).is_file() or read_json(folder / record) != wanted:
        if time.monotonic() > end:
            raise UserError(
                f"{folder / record} was not written by the first process. See its message."
            )
        time.sleep(0.2)


def open_record(
    folder: Path, record: str, settings: Mapping[str, Any], overwrite: bool, flag: str = "--out"
) -> bool:
    """Makes a folder with a record of its settings, or finds it made with the same ones.

    Args:
        folder: The folder.
        record: Name of the record in it.
        settings: What decides the folder's content; plain values.
        overwrite: Empty a folder whose record holds other settings.
        flag: The flag that names the folder, for messages.

    Returns:
        Whether work done before is there.

    Raises:
        UserError: It holds something else, or was made with other settings and `overwrite` is off.
    """
    path, wanted = folder / record, json.loads(json.dumps(settings))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not path.is_file():
            raise UserError(
                f"{flag} {folder} is not empty and holds no {record}, so it is not replaced. Give "
                "another one."
            )
        kept = read_json(path)
        if kept == wanted:
            return True
        if not overwrite:
            differ = [k for k in wanted if not isinstance(kept, dict) or kept.get(k) != wanted[k]]
            raise UserError(
                f"{flag} {folder} was made with other settings ({format_list(differ)}). Use "
                "--overwrite to replace it, or give another folder."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)
    return False
