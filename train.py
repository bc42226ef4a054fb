"""Trains a generator of chest CT from masks and clinical text: options, cohort, text encoder,
model, fit.
"""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.cache import cache_folder
from models.base_model import MODELS
from options.checks import check_train_options
from options.parser import from_dict, parse
from options.train_options import PRESETS, TrainOptions
from pipelines.coarse_to_fine import load_global_generator
from pipelines.power import smallest_effect
from pipelines.training import (
    DRY_CASES,
    batches,
    dry_run,
    embed,
    ensure_cohort_clip,
    make_dataset,
    make_monitor,
    make_trainer,
    make_validation,
    open_folder,
    open_study,
    restore_study,
    weigh_by_relevance,
)
from util import cli
from util.cli import UserError
from util.training import checkpoint, runs
from util.training.devices import make_accelerator, shutdown_distributed
from util.training.monitor import Monitor
from util.training.trainer import Trainer

log = logging.getLogger(__name__)


def read_options(argv: list[str] | None = None) -> TrainOptions:
    """The options: those of the run that goes on, where `--continue_train` is given, with the flags
    given now on top.
    """
    options = parse(TrainOptions, __doc__ or "", argv, PRESETS)
    if options.run.continue_train:
        folder = runs.run_folder(options.run.checkpoints_dir, options.run.name)
        saved = from_dict(TrainOptions, runs.saved_options(folder), str(folder / runs.OPTIONS_FILE))
        options = parse(TrainOptions, __doc__ or "", argv, PRESETS, start=saved)
    check_train_options(options)
    return options


def train(options: TrainOptions) -> Path:
    """Trains a run from its options to its end, or to the signal that stops it; returns its
    folder.
    """
    folder = runs.run_folder(options.run.checkpoints_dir, options.run.name)
    if not (going_on := options.run.continue_train):
        runs.check_new(folder, options.run.overwrite)
    accelerator = make_accelerator(options.optim.precision, options.run.gpu_ids)
    with accelerator.main_process_first():
        options = ensure_cohort_clip(options, folder)
    torch.manual_seed(options.run.seed)
    cache = cache_folder(options.data, folder)
    study = open_study(options, cache if going_on or options.data.cache_dir else None)
    place = checkpoint.find(folder / "latest") if going_on else None
    study = restore_study(study, place) if place else study
    model = MODELS[options.generator.model](options, len(study.cohort.labels), study.encoder.width)
    if options.optim.load_global and not going_on:
        load_global_generator(options, model)
    cases = study.cohort.split("train")
    trainer = make_trainer(options, model, accelerator, len(cases))
    if place:
        trainer.load(place)
    speaks = accelerator.is_main_process and options.run.val_cases
    validation = make_validation(options, study, model, trainer) if speaks else None
    if options.run.dry_run:
        with tempfile.TemporaryDirectory() as empty:
            few = make_dataset(options, study, cases[:DRY_CASES], Path(empty), model)
            log.info("%s", smallest_effect(cases, options.data))
            dry_run(
                options,
                model,
                trainer,
                batches(options, few, trainer),
                partial(embed, study, accelerator.device),
            )
        return folder
    if (
        accelerator.is_main_process
    ):  # all that can be wrong has been looked at; from here on files are written
        open_folder(folder, options, study)
        study.encoder.attach_cache(folder)
    accelerator.wait_for_everyone()
    with accelerator.main_process_first():  # the others find its prepared volumes
        dataset = make_dataset(options, study, cases, cache, model)
    if not place:
        study = weigh_by_relevance(options, study, cache)
    monitor = make_monitor(options, study, trainer, folder, validation)
    fit(
        options,
        trainer,
        batches(options, dataset, trainer),
        partial(embed, study, accelerator.device),
        monitor,
    )
    log.info(
        "Trained %s for %d steps; see %s.",
        options.run.name,
        trainer.step,
        folder / "web" / "index.html",
    )
    return folder


def fit(
    options: TrainOptions, trainer: Trainer, feed: Any, embedder: Any, monitor: Monitor
) -> None:
    """Trains to the end; a signal saves and leaves with exit code 128 + its number."""
    try:
        received = trainer.fit(feed, embedder, monitor)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--patch_size {','.join(map(str, options.patch.patch_size))} with --batch_size "
            f"{options.optim.batch_size} does not fit into the GPU "
            f"({str(error).splitlines()[0][:120]}). Use less of either, --gradient_accumulation, --precision "
            "bf16, --checkpoint_activations or a smaller --preset; --dry_run tells what a step "
            "takes."
        ) from None
    if received is not None:
        monitor.save("latest")
        log.warning(
            "Stopped by %s after step %d; saved. Go on with --continue_train.",
            signal.Signals(received).name,
            trainer.step,
        )
    monitor.close()
    shutdown_distributed(trainer.accelerator)
    if received is not None:
        sys.exit(128 + received)


def main() -> None:
    train(read_options())


if __name__ == "__main__":
    cli.run(main)
