"""Kills training at the worst moments, lets it go on, and compares with a run that nobody
killed: equal to the last bit.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the project's packages

import train
from data.phantom.write import make_phantom_cohort
from options.benchmark_options import ResumeCheckCommand, ResumeCheckOptions
from options.parser import parse
from options.phantom_options import PhantomOptions
from util.cli import UserError, run_command
from util.training import checkpoint, runs
from util.training.monitor import Monitor
from util.training.trainer import Trainer

log = logging.getLogger(__name__)

# A network of a second: what is checked does not depend on its size.
SMALL = (
    "--template",
    "aiib23",
    "--patch_size",
    "16,16,8",
    "--ngf",
    "4",
    "--ndf",
    "4",
    "--n_blocks_global",
    "1",
    "--n_layers_D",
    "2",
    "--num_D",
    "1",
    "--text_hidden",
    "8",
    "--batch_size",
    "2",
    "--val_cases",
    "0",
    "--text_encoder",
    "table",
    "--log_freq",
    "5",
    "--gpu_ids",
    "-1",
    "--precision",
    "fp32",
)
MOMENTS = (
    "in a step",
    "in a file",
    "before the renames",
    "between the renames",
    "after the renames",
)


class DifferentCheckpoints(UserError):
    """The run that was killed ended elsewhere."""

    code = 1


def kill_self(*_: Any) -> None:
    """No handler, no clean-up, no flushing."""
    os.kill(os.getpid(), signal.SIGKILL)


def _after(owner: Any, name: str, condition: Callable[..., bool], before: bool = False) -> None:
    """Makes `owner.name` deadly: after (or before) a call for which the condition holds."""
    original = getattr(owner, name)

    def deadly(*args: Any, **kwargs: Any) -> Any:
        if before and condition(*args):
            kill_self()
        result = original(*args, **kwargs)
        if condition(*args):
            kill_self()
        return result

    setattr(owner, name, deadly)


def arm_kill(moment: str, step: int) -> None:
    """Arranges that this process kills itself at a moment: two steps after `step`, or within the
    save of `step`.
    """
    saving: list[int] = []  # of the step being saved, and then once for every file written
    original = Trainer.save

    def save(self: Trainer, *args: Any) -> None:
        if self.step == step:
            saving.append(0)
        original(self, *args)

    def half_written(tensors: Any, path: Path) -> bool:
        if saving:
            saving.append(1)
        if len(saving) == 3:
            os.truncate(path, path.stat().st_size // 2)
        return len(saving) == 3

    Trainer.save = save  # type: ignore[assignment, method-assign]
    if moment == "in a step":
        _after(Monitor, "__call__", lambda monitor, now, terms: now == step + 2)
    elif moment == "in a file":
        _after(checkpoint, "save_file", half_written)
    elif moment == "before the renames":
        _after(checkpoint, "write_json", lambda path, value: bool(saving))
    else:
        _after(
            Path,
            "rename",
            lambda path, to: bool(saving) and path.name == ".latest.writing",
            moment[:7] == "between",
        )


def train_until_killed(moment: str, step: int) -> None:
    """`train.py` with the words of this command line, armed; in a process of its own."""
    arm_kill(moment, step)
    run_command(train.main)


def train_words(work: Path, name: str, options: ResumeCheckOptions) -> list[str]:
    """The flags of `train.py` for one run."""
    return [
        "--dataroot",
        str(work / "cohort"),
        "--checkpoints_dir",
        str(work / "runs"),
        "--name",
        name,
        *SMALL,
        "--model",
        options.model,
        "--cache_dir",
        str(work / "cache"),
        "--max_steps",
        str(options.max_steps),
        "--save_latest_freq",
        str(options.save_latest_freq),
    ]


def start_training(flags: Sequence[str], program: Sequence[str] = ("train.py",)) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *program, *flags],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish_training(flags: Sequence[str]) -> None:
    """Trains to the end; raises `UserError` with what the run said if it fails."""
    process = start_training(flags)
    _, said = process.communicate()
    if process.returncode:
        raise UserError(f"train.py ended with code {process.returncode}:\n{said[-2000:]}")


def kill_at(moment: str, flags: Sequence[str], step: int) -> None:
    """Trains until the moment; raises `UserError` if the run did not die there."""
    code = f"from benchmarks.check_resume import train_until_killed; train_until_killed({moment!r}, {step})"
    process = start_training(flags, ("-c", code))
    _, said = process.communicate()
    if process.returncode != -signal.SIGKILL:
        raise UserError(
            f"Was not killed {moment}, but ended with code {process.returncode}:\n{said[-2000:]}"
        )


def kill_at_random(flags: Sequence[str], folder: Path, kills: int, seed: int) -> None:
    """Trains to the end, killed and started anew so many times."""
    draw = random.Random(seed)
    finish_training([*flags, "--overwrite", "--max_steps", "1"])
    for _ in range(kills):
        before = (folder / runs.LOG_FILE).stat().st_mtime_ns
        process = start_training([*flags, "--continue_train"])
        while (folder / runs.LOG_FILE).stat().st_mtime_ns == before and process.poll() is None:
            time.sleep(0.001)  # until it trains
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.communicate()
        step = checkpoint.load_state(checkpoint.find(folder / "latest"))["step"]
        log.info(
            "Killed at random after step %d; left: %s.",
            step,
            sorted(p.name for p in folder.glob("*latest*")),
        )
    finish_training([*flags, "--continue_train"])


def compare_checkpoints(one: Path, other: Path) -> dict[str, float]:
    """Largest absolute difference of each part of two checkpoints; infinity where tensors are
    missing.
    """
    found = {}
    places = [checkpoint.find(folder) for folder in (one, other)]
    states = [checkpoint.load_state(place) for place in places]
    for part in sorted({*states[0]["parts"], *states[1]["parts"]}):
        a, b = (checkpoint.load_part(place, part) for place in places)
        same = a.keys() == b.keys() and all(a[k].shape == b[k].shape for k in a)
        found[part] = (
            max([0.0, *((a[k] - b[k]).abs().max().item() for k in a)]) if same else float("inf")
        )
    found["step"] = abs(states[0]["step"] - states[1]["step"])
    return found


def report_difference(what: str, one: Path, other: Path) -> bool:
    """Says how two runs differ; whether they are equal."""
    found = compare_checkpoints(one / "latest", other / "latest")
    log.info(
        "Killed %s: largest difference %s.",
        what,
        ", ".join(f"{part} {value:g}" for part, value in found.items()),
    )
    return not any(found.values())


def check_resume(options: ResumeCheckOptions, work: Path, moments: Sequence[str] = MOMENTS) -> None:
    """Trains one run in peace and one for every moment; raises `NotEqual` if any of these ends
    elsewhere.
    """
    make_phantom_cohort(
        PhantomOptions(
            OUT=str(work / "cohort"), cases=6, size=(24, 24, 16), test_cases=1, val_cases=1
        )
    )
    peace, equal = work / "runs" / "peace", True
    finish_training([*train_words(work, "peace", options), "--overwrite"])
    for moment in moments:
        name = moment.replace(" ", "_")
        flags = train_words(work, name, options)
        kill_at(moment, [*flags, "--overwrite"], options.kill_step)
        finish_training([*flags, "--continue_train"])
        equal &= report_difference(moment, peace, work / "runs" / name)
    if options.random_kills:
        flags = [*train_words(work, "random", options), "--save_latest_freq", "1"]
        kill_at_random(flags, work / "runs" / "random", options.random_kills, options.seed)
        equal &= report_difference(f"{options.random_kills} times at random", peace, work / "runs" / "random")
    if not equal:
        raise DifferentCheckpoints("A run that was killed and went on is not the run that nobody killed.")
    log.info(
        "Every run that was killed and went on equals the one that nobody killed, to the last bit."
    )


def main() -> None:
    """Checks in a folder that is removed afterwards, or in `--work`."""
    options = parse(ResumeCheckCommand, __doc__ or "").check
    if options.kill_step % options.save_latest_freq or options.kill_step + 2 > options.max_steps:
        raise UserError(
            f"--kill_step is {options.kill_step}; it must be a multiple of --save_latest_freq "
            f"{options.save_latest_freq}, two steps before the end, --max_steps "
            f"{options.max_steps}, at the latest."
        )
    with ExitStack() as stack:
        work = Path(
            options.work or stack.enter_context(tempfile.TemporaryDirectory(prefix="resume_"))
        )
        check_resume(options, work)


if __name__ == "__main__":
    run_command(main)
