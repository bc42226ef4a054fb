"""The folder of a run: its options, its log, and who may write to it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from util.cli import UserError
from util.files import claim_folder, read_json, write_json

log = logging.getLogger(__name__)

OPTIONS_FILE = "options.json"
LOG_FILE = "log.jsonl"
SPLITS_FILE = "splits.json"


def run_folder(checkpoints_dir: str, name: str) -> Path:
    """`checkpoints_dir`/`name`; raises `UserError` for a name that is empty or would lead
    elsewhere.
    """
    if not name:
        raise UserError("--name is not given; it names the run and its folder.")
    if Path(name).name != name or name.startswith(".") or "\\" in name:
        raise UserError(
            f"--name is {name!r}; it must be a plain name without path separators or a leading dot."
        )
    return Path(checkpoints_dir) / name


def check_new(folder: Path, overwrite: bool) -> None:
    """Raises `UserError` if something is there that must not be replaced."""
    advice = "--continue_train to resume it, or choose another name"
    claim_folder(folder, [OPTIONS_FILE], overwrite, "--name", advice)


def open_new(folder: Path, overwrite: bool, options: Mapping[str, Any]) -> None:
    """Makes a new run's folder with its options alone; see `check_new` for what it refuses."""
    check_new(folder, overwrite)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    save_options(folder, options)


def saved_options(folder: Path) -> dict[str, Any]:
    """The options of a run; raises `UserError` that lists the runs there are."""
    if not (folder / OPTIONS_FILE).is_file():
        there = sorted(p.parent.name for p in folder.parent.glob(f"*/{OPTIONS_FILE}"))
        raise UserError(
            f"--name: there is no run {folder}. Runs in {folder.parent}: "
            f"{', '.join(there) or 'none'}."
        )
    options: dict[str, Any] = read_json(folder / OPTIONS_FILE)
    return options


class RunLog:
    """`log.jsonl` of a run, one JSON object a line, and TensorBoard beside it.

    Args:
        folder: The run's folder.
        step: Where the run goes on; lines of later steps, left by a killed run, are dropped.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        from torch.utils.tensorboard import (
            SummaryWriter,  # slow to import, and not needed to read a log
        )

        self.path = folder / LOG_FILE
        kept = [r for r in read_log(folder) if r["step"] <= step] if step else []
        self.path.write_text("".join(json.dumps(r) + "\n" for r in kept))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(
                json.dumps({"step": step, **{k: round(float(v), 6) for k, v in values.items()}})
                + "\n"
            )
        for name, value in values.items():
            self._board.add_scalar(name.replace("_", "/", 1), value, step)

    def close(self) -> None:
        self._board.close()


def read_log(folder: Path) -> list[dict[str, float]]:
    """The records of a run's log; a last line cut off by a kill is left out."""
    return list(_records(folder / LOG_FILE))


def _records(path: Path) -> Iterator[dict[str, float]]:
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                log.warning("%s: a line that is no JSON is left out: %.60s", path, line)


def save_options(folder: Path, options: Mapping[str, Any]) -> None:
    """Writes options.json."""
    write_json(folder / OPTIONS_FILE, options)
