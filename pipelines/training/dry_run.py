"""The dry run of a training: options, sizes, memory and time, without a run's folder."""

from __future__ import annotations

import logging
import math
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from models.base_model import GenerativeModel
from models.networks.label_embedding import mask_channels
from options.parser import command_line
from options.train_options import TrainOptions
from pipelines.power import describe_smallest_effect
from pipelines.training.components import make_dataset, make_loader
from pipelines.training.study import Study
from pipelines.training.validation import Validation
from util.cli import counted
from util.progress import format_duration
from util.training.devices import device_name
from util.training.monitor import Validator
from util.training.trainer import Trainer

log = logging.getLogger(__name__)

DRY_RUN_CASES = 4
DRY_RUN_STEPS = 3
WARM_UP_STEPS = 2  # not measured


def dry_run(
    options: TrainOptions,
    study: Study,
    model: GenerativeModel,
    trainer: Trainer,
    validation: Validation | None,
) -> None:
    """Take steps that are not saved, and report options, sizes, memory and time.

    Args:
        options: The run's options.
        validation: Of which one tile is generated; None where nothing is validated.
    """
    for name, flags in command_line(options).items():
        log.info("%s: %s", name, flags)
    for name, network in model.raw.items():
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        log.info("Network %s: %.2f M parameters.", name, millions)
    log.info("%s", describe_mask(options, len(study.cohort.labels)))
    smallest = describe_smallest_effect(study.training_cases, options.data)
    log.info("%s", options.data.terms.text(smallest))
    config, device = trainer.config, trainer.accelerator.device
    if trainer.steps_done >= config.steps:
        log.info("No step of %d is left to take (--max_steps, --niter).", config.steps)
        return
    step = time_steps(options, study, model, trainer)
    log.info(
        "On %s, a step takes %.2f s, %.3f s without its data, and up to %.1f GiB. %s about "
        "%s%s. Nothing was written.",
        device_name(device),
        step.seconds,
        step.seconds - step.waiting,
        step.memory_gib,
        counted(config.steps, "step takes", "steps take"),
        format_duration(step.seconds * config.steps),
        describe_validations(options, step.seconds * config.steps, config.steps, validation),
    )


@dataclass(frozen=True)
class StepTime:
    """Time of a training step, and memory.

    Attributes:
        seconds: Of a step with its data.
        waiting: Seconds of those in which the networks wait for data.
        memory_gib: The most that was held so far: of the GPU, or by the process on a CPU.
    """

    seconds: float
    waiting: float
    memory_gib: float


def time_steps(
    options: TrainOptions,
    study: Study,
    model: GenerativeModel,
    trainer: Trainer,
    steps: int = DRY_RUN_STEPS,
) -> StepTime:
    """Take steps on a few cases, and return the mean time of all but the first ones.

    Of a training with fewer steps left, it is the time of the last one.
    """
    device = trainer.accelerator.device
    seconds, waiting = [], []
    with tempfile.TemporaryDirectory() as cache:
        cases = study.training_cases[:DRY_RUN_CASES]
        dataset = make_dataset(options, study, model, cases, Path(cache))
        loader = make_loader(options, dataset, trainer)
        until = trainer.steps_done + steps
        start = time.perf_counter()
        for parts in trainer.iterate(loader, until, dataset.inputs):
            waiting.append(time.perf_counter() - start)
            losses = trainer.step([(part, study.embed(part, device)) for part in parts])
            [value.item() for value in losses.values()]  # a GPU is waited for
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    first = min(WARM_UP_STEPS, len(seconds) - 1)
    return StepTime(statistics.fmean(seconds[first:]), statistics.fmean(waiting[first:]), memory)


def describe_mask(options: TrainOptions, n_labels: int) -> str:
    """Return how masks enter the networks, and what memory that takes in a step."""
    voxels = options.optim.batch_size * math.prod(options.patch.patch_size)
    mib = 4 * voxels / 2**20  # of a channel, float32
    channels = mask_channels(n_labels)
    text = (
        f"The masks hold {n_labels} labels, which take {channels} channels and {channels * mib:.1f}"
    )
    if channels == n_labels:
        return f"{text} MiB of each step, one-hot."
    return f"{text} MiB of each step, by a learned embedding (one-hot: {n_labels * mib:.1f} MiB)."


def describe_validations(
    options: TrainOptions, training_seconds: float, steps: int, validation: Validator | None
) -> str:
    """Return the time of all validations as the end of a sentence, by the time of a tile."""
    if validation is None:
        return ", without validation"
    count = math.ceil(steps / (options.run.val_freq or max(1, steps // 10)))
    seconds = validation.estimate_seconds() * count
    times = counted(count, "time")
    share = options.run.val_share
    if seconds <= share * (training_seconds + seconds):
        return f", and validation ({times}) about {format_duration(seconds)} more"
    return (
        f". Validation ({times}) would take about {format_duration(seconds)} more; it is "
        f"postponed beyond {share:.0%} of the time (--val_share), but for the last one"
    )
