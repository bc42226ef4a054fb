"""Check that a killed and resumed training equals one that was not killed, to the last bit."""

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

from options.benchmarks.checks import ResumeCheckOptions
from options.parser import answer_early, parse

answer_early(__name__, ResumeCheckOptions, __doc__ or "")  # the imports below are slow

import train
from benchmarks.common import flag_words
from data.phantom.write import make_phantom_cohort
from options.phantom_options import PhantomOptions
from util.cli import UserError, run_command
from util.training import checkpoint, runs
from util.training.monitor import Monitor
from util.training.trainer import Trainer

log = logging.getLogger(__name__)

# Flags of a small network: the result of the check does not depend on its size.
SMALL_RUN: dict[str, Any] = {
    "template": "aiib23",
    "patch_size": (16, 16, 8),
    "ngf": 4,
    "ndf": 4,
    "n_blocks_global": 1,
    "n_layers_D": 2,
    "num_D": 1,
    "text_hidden": 8,
    "batch_size": 2,
    "val_cases": 0,
    "text_encoder": "table",
    "log_freq": 5,
    "gpu_ids": -1,
    "precision": "fp32",
}
MOMENTS = (
    "in a step",
    "in a file",
    "before the renames",
    "between the renames",
    "after the renames",
)


class DifferentCheckpoints(UserError):
    """A killed and resumed run ended in another state."""

    code = 1


def kill_self(*_: Any) -> None:
    """End this process without any handler or clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_after(
    owner: Any, name: str, condition: Callable[..., bool], before: bool = False
) -> None:
    """Replace `owner.name` so that a call that meets the condition kills this process."""
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
    """Make this process kill itself two steps after `step`, or within the save of `step`."""
    events: list[str] = []  # of the save of `step`
    original = Trainer.save

    def save(self: Trainer, *args: Any) -> None:
        if self.steps_done == step:
            events.append("save")
        original(self, *args)

    def half_written(tensors: Any, path: Path) -> bool:
        if events:
            events.append("file")
        second_file = len(events) == 3
        if second_file:
            os.truncate(path, path.stat().st_size // 2)
        return second_file

    def renamed(path: Path, to: Path) -> bool:
        return bool(events) and path.name == ".latest.writing"

    Trainer.save = save  # type: ignore[assignment, method-assign]
    if moment == "in a step":
        _kill_after(
            Monitor, "__call__", lambda monitor, losses: monitor.trainer.steps_done == step + 2
        )
    elif moment == "in a file":
        _kill_after(checkpoint, "save_file", half_written)
    elif moment == "before the renames":
        _kill_after(checkpoint, "write_json", lambda path, value: bool(events))
    else:
        _kill_after(Path, "rename", renamed, before=moment == "between the renames")


def train_until_killed(moment: str, step: int) -> None:
    """Run train.py with the words of this command line until it kills itself."""
    arm_kill(moment, step)
    run_command(train.main)


def train_words(work: Path, name: str, options: ResumeCheckOptions) -> list[str]:
    """Return the flags of train.py for one run."""
    flags = SMALL_RUN | {
        "dataroot": work / "cohort",
        "checkpoints_dir": work / "runs",
        "name": name,
        "model": options.model,
        "cache_dir": work / "cache",
        "max_steps": options.max_steps,
        "save_latest_freq": options.save_latest_freq,
    }
    return flag_words(**flags)


def start_training(
    flags: Sequence[str], program: Sequence[str] = ("train.py",)
) -> subprocess.Popen[str]:
    """Start a training in its own process."""
    return subprocess.Popen(
        [sys.executable, *program, *flags],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish_training(flags: Sequence[str]) -> None:
    """Train to the end; raise `UserError` with the last messages if that fails."""
    process = start_training(flags)
    _, messages = process.communicate()
    if process.returncode:
        raise UserError(f"train.py ended with code {process.returncode}:\n{messages[-2000:]}")


def kill_at(moment: str, flags: Sequence[str], step: int) -> None:
    """Train until the moment of the kill; raise `UserError` if the run was not killed there."""
    call = f"train_until_killed({moment!r}, {step})"
    code = f"from benchmarks.check_resume import train_until_killed; {call}"
    process = start_training(flags, ("-c", code))
    _, messages = process.communicate()
    if process.returncode != -signal.SIGKILL:
        raise UserError(
            f"The run was not killed {moment}, but ended with code {process.returncode}:\n"
            f"{messages[-2000:]}"
        )


def kill_at_random(flags: Sequence[str], folder: Path, kills: int, seed: int) -> None:
    """Train to the end, killed and resumed this many times."""
    draw = random.Random(seed)
    log_file = folder / runs.LOG_FILE
    finish_training([*flags, "--overwrite", "--max_steps", "1"])
    for _ in range(kills):
        before = log_file.stat().st_mtime_ns
        process = start_training([*flags, "--continue_train"])
        while log_file.stat().st_mtime_ns == before and process.poll() is None:
            time.sleep(0.001)  # until the first step
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.communicate()
        step = checkpoint.load_state(checkpoint.find(folder / "latest"))["step"]
        folders = sorted(path.name for path in folder.glob("*latest*"))
        log.info("Killed at random after step %d; left: %s.", step, folders)
    finish_training([*flags, "--continue_train"])


def compare_checkpoints(one: Path, other: Path) -> dict[str, float]:
    """Return the largest absolute difference of each part; infinity where tensors are missing."""
    places = [checkpoint.find(folder) for folder in (one, other)]
    states = [checkpoint.load_state(place) for place in places]
    differences = {}
    for part in sorted({*states[0]["parts"], *states[1]["parts"]}):
        first, second = (checkpoint.load_part(place, part) for place in places)
        if checkpoint.weight_differences(first, second):
            differences[part] = float("inf")
            continue
        largest = [(first[name] - second[name]).abs().max().item() for name in first]
        differences[part] = max([0.0, *largest])
    differences["step"] = abs(states[0]["step"] - states[1]["step"])
    return differences


def report_difference(kill: str, one: Path, other: Path) -> bool:
    """Log the differences of two runs; return whether they are equal."""
    differences = compare_checkpoints(one / "latest", other / "latest")
    texts = [f"{part} {value:g}" for part, value in differences.items()]
    log.info("Killed %s: largest difference %s.", kill, ", ".join(texts))
    return not any(differences.values())


def check_resume(options: ResumeCheckOptions, work: Path, moments: Sequence[str] = MOMENTS) -> None:
    """Train one run without a kill and one for each moment.

    Raises:
        DifferentCheckpoints: A killed run ended in another state.
    """
    cohort = PhantomOptions(
        OUT=str(work / "cohort"), cases=6, size=(24, 24, 16), test_cases=1, val_cases=1
    )
    make_phantom_cohort(cohort)
    reference = work / "runs" / "uninterrupted"
    equal = True
    finish_training([*train_words(work, "uninterrupted", options), "--overwrite"])
    for moment in moments:
        name = moment.replace(" ", "_")
        flags = train_words(work, name, options)
        kill_at(moment, [*flags, "--overwrite"], options.kill_step)
        finish_training([*flags, "--continue_train"])
        equal &= report_difference(moment, reference, work / "runs" / name)
    if options.random_kills:
        folder = work / "runs" / "random"
        flags = [*train_words(work, "random", options), "--save_latest_freq", "1"]
        kill_at_random(flags, folder, options.random_kills, options.seed)
        equal &= report_difference(f"{options.random_kills} times at random", reference, folder)
    if not equal:
        raise DifferentCheckpoints("A killed and resumed run differs from the run without a kill.")
    log.info("Every killed and resumed run equals the one without a kill, to the last bit.")


def main() -> None:
    """Check in a temporary folder, or in `--work`."""
    options = parse(ResumeCheckOptions, __doc__ or "")
    if options.kill_step % options.save_latest_freq or options.kill_step + 2 > options.max_steps:
        raise UserError(
            f"--kill_step is {options.kill_step}; it must be a multiple of --save_latest_freq "
            f"{options.save_latest_freq}, and at least two steps before --max_steps "
            f"{options.max_steps}."
        )
    with ExitStack() as stack:
        work = options.work or stack.enter_context(tempfile.TemporaryDirectory(prefix="resume_"))
        check_resume(options, Path(work))


if __name__ == "__main__":
    run_command(main)
