"""Flags of the checks of resuming and of several processes."""

from __future__ import annotations

from dataclasses import dataclass

from options.benchmarks import common
from options.parser import flag


@dataclass(frozen=True)
class ProcessCheckOptions:
    """Runs that the check of processes compares."""

    processes: int = flag(2, "Processes, each on one CPU core.", low=2)
    steps: int = flag(
        10, "Training steps; results are compared after the first and after the last.", low=1
    )
    batch_size: int = flag(4, "Patches per step, over all processes.", low=2)
    tolerance: float = flag(
        1e-5, "Largest relative L2 difference of a network's gradients or weights.", low=0
    )
    model: str = flag("pix2pixhd", "Kind of generative model.")
    at_output: bool = flag(
        False,
        "With --text_texture and --text_linear. Thresholds are discontinuous, and the first "
        "gradients of weights that start at 0 are as small as Adam's epsilon: once weights differ "
        "by rounding, both multiply it; compare one step then.",
    )
    out: str = common.figures_file()
    work: str = flag("", "Folder for cohort and measurements (empty: a temporary one).")
    record: str = flag(
        "", "Be one of the processes and write to this file; for the command's own use."
    )


@dataclass(frozen=True)
class ResumeCheckOptions:
    """Run and kills of the check of resuming."""

    max_steps: int = flag(20, "Steps of the run.", low=4)
    save_latest_freq: int = flag(5, "Steps between saves.", low=1)
    kill_step: int = flag(
        10,
        "Step whose save is interrupted; a run killed in a step dies two steps after it.",
        low=1,
    )
    random_kills: int = flag(
        3, "Kills at random moments of one run that saves after every step.", low=0
    )
    seed: int = flag(0, "Seed of the random moments.", low=0)
    model: str = flag("pix2pixhd", "Kind of generative model.")
    work: str = flag("", "Folder for cohort and runs (empty: a temporary one).")
