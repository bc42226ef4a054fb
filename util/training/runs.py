"""The folder of a run: its options, its log, and checks before it is written."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.cli import UserError, format_list, suggestion
from util.files import atomic_path, claim_folder, read_json, write_json
from util.schema import check_record, fits, misfit
from util.training.shared_runs import is_shared, open_shared

log = logging.getLogger(__name__)

OPTIONS_FILE = "options.json"
LOG_FILE = "log.jsonl"
SPLITS_FILE = "splits.json"


def run_folder(checkpoints_dir: str, name: str) -> Path:
    """Return `checkpoints_dir/name`; raise `UserError` for an empty name or one with separators."""
    if not name:
        raise UserError("--name is not given; it names the run and its folder.")
    if Path(name).name != name or name.startswith(".") or "\\" in name:
        raise UserError(
            f"--name is {name!r}; it must be a plain name without path separators or a leading dot."
        )
    return Path(checkpoints_dir) / name


def find_run(checkpoints_dir: str, name: str) -> Path:
    """Return the folder of a trained run: by its name, or a shared one by its file or folder.

    Raises:
        UserError: See `run_folder` and `util.training.shared_runs`.
    """
    return open_shared(name) if is_shared(name) else run_folder(checkpoints_dir, name)


def find_source(checkpoints_dir: str, name: str) -> Path:
    """Return the folder of the run that a training starts from; it may also be given by its path.

    Raises:
        UserError: See `find_run`.
    """
    is_path = len(Path(name).parts) > 1
    return Path(name) if is_path and not is_shared(name) else find_run(checkpoints_dir, name)


def check_new_run(folder: Path, overwrite: bool) -> None:
    """Raise `UserError` if something is there that must not be replaced."""
    advice = "--continue_train to resume it, or choose another name"
    claim_folder(folder, [OPTIONS_FILE], overwrite, "--name", advice)


def create_run_folder(folder: Path, overwrite: bool, options: Mapping[str, Any]) -> None:
    """Make a new run's folder with its options alone; see `check_new_run` for what it refuses."""
    check_new_run(folder, overwrite)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    save_options(folder, options)


def read_options(folder: Path) -> dict[str, Any]:
    """Return the options of a run; raise `UserError` that lists the runs if there is none."""
    if not (folder / OPTIONS_FILE).is_file():
        names = sorted(path.parent.name for path in folder.parent.glob(f"*/{OPTIONS_FILE}"))
        raise UserError(
            f"--name: there is no run {folder}. Runs in {folder.parent}: "
            f"{', '.join(names) or 'none'}.{suggestion(folder.name, names)} Train it first "
            f"(train.py --name {folder.name}), or name the folder of your runs by "
            "--checkpoints_dir."
        )
    fix = "Restore it from a copy, or train again."
    return check_record(read_json(folder / OPTIONS_FILE), {}, folder / OPTIONS_FILE, fix)


class RunLog:
    """`log.jsonl` of a run, one JSON object per line, and TensorBoard's files beside it.

    Args:
        folder: The run's folder.
        step: Step at which the run is resumed. Lines of later steps, left by a killed run, are
            dropped.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        # Slow to import, and not needed to read a log.
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / LOG_FILE
        earlier = [record for record in read_log(folder) if record["step"] <= step] if step else []
        with atomic_path(self.path, keep_suffix=False) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in earlier))
        purged = step + 1 if step else None  # TensorBoard drops the steps from this one on
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purged)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step; those that are not finite have no number in JSON."""
        values = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        rounded = {name: round(value, 6) for name, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **rounded}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name.replace("_", "/", 1), value, step)

    def add_image(self, step: int, name: str, file: Path) -> None:
        """Add a picture to TensorBoard."""
        import matplotlib.image

        pixels = matplotlib.image.imread(file)[..., :3]
        self._board.add_image(f"val/{name}", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Close TensorBoard's file."""
        self._board.close()


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the records of a run's log; lines that are damaged are left out with a warning."""
    path = folder / LOG_FILE
    records: list[dict[str, float]] = []
    if not path.is_file():
        return records
    damaged = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # also a last line that was cut off by a kill
            record = None
        if misfit(record, {"step": int}) or not fits(record, dict[str, float]):
            damaged.append(str(number))
        else:
            records.append(record)
    if damaged:
        log.warning("%s: lines that are damaged are left out: %s.", path, format_list(damaged))
    return records


def save_options(folder: Path, options: Mapping[str, Any]) -> None:
    """Write options.json."""
    write_json(folder / OPTIONS_FILE, options)
