"""The parts of a training: dataset, trainer, loader, monitor and folder, from the options.

`pipelines.training.session` puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from data.body import BODY_FILE, BodyShape
from data.cache import CachedCase
from data.cohort import Case
from data.patch_dataset import PatchDataset, PatchSettings, choose_workers, patch_loader
from data.splits import save_splits
from models.base_model import GenerativeModel
from models.inference import TEXT_PART
from options.parser import to_dict
from options.train_options import TrainOptions
from pipelines.evidence import EVIDENCE
from pipelines.training.study import Study
from pipelines.training.validation import Validation, tracked_effects
from util.cli import is_main_process
from util.notices import Notice
from util.training import runs
from util.training.monitor import CheckpointExtra, Intervals, Monitor, PageContent
from util.training.trainer import Trainer, TrainerConfig


def save_body_shape(folder: Path, options: TrainOptions, volumes: Sequence[CachedCase]) -> None:
    """Write the mean body of the training cases, for masks without a scan, unless it is there."""
    path = folder / BODY_FILE
    if options.data.body_number is None or path.is_file() or not is_main_process():
        return
    shape = BodyShape.from_masks([case.labelled() for case in volumes], options.data.lung_labels)
    if shape is not None:
        shape.save(path)


def make_dataset(
    options: TrainOptions, study: Study, model: GenerativeModel, cases: Sequence[Case], cache: Path
) -> PatchDataset:
    """Return the patches of training cases, whose volumes are prepared in `cache`."""
    noise_channels = model.draws * model.noise_channels
    settings = PatchSettings(
        options.data, options.patch, options.text, options.run.seed, noise_channels
    )
    return PatchDataset(cases, study.phrases, study.cohort.labels, settings, cache)


def make_trainer(
    options: TrainOptions, model: GenerativeModel, accelerator: Accelerator, cases: int
) -> Trainer:
    """Return the trainer, with epochs converted to steps."""
    optim = options.optim
    steps_per_epoch = -(-cases // optim.batch_size)
    epochs = optim.niter + optim.niter_decay
    steps = optim.max_steps or epochs * steps_per_epoch
    config = TrainerConfig(
        steps=steps,
        constant_steps=round(steps * optim.niter / max(1, epochs)),
        steps_per_epoch=steps_per_epoch,
        betas=(optim.beta1, optim.beta2),
        grad_clip=optim.grad_clip,
        ema=optim.ema,
        gradient_accumulation=optim.gradient_accumulation,
        seed=options.run.seed,
        channels_last=optim.channels_last,
        compiled=optim.compile,
    )
    return Trainer(model, accelerator, config)


def make_loader(options: TrainOptions, dataset: PatchDataset, trainer: Trainer) -> DataLoader[Any]:
    """Return this process's batches from the trainer's present step to its last."""
    optim, accelerator = options.optim, trainer.accelerator
    return patch_loader(
        dataset,
        trainer.steps_done * optim.batch_size,
        trainer.config.steps * optim.batch_size,
        optim.batch_size // (accelerator.num_processes * optim.gradient_accumulation),
        workers=choose_workers(options.patch.num_workers, accelerator.device),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )


def make_monitor(
    options: TrainOptions,
    study: Study,
    trainer: Trainer,
    folder: Path,
    validation: Validation | None,
    records: Mapping[str, Any],
    notices: Sequence[Notice] = (),
) -> Monitor:
    """Return the monitor, which logs, validates and saves at intervals.

    Args:
        options: The run's options.
        folder: The run's folder.
        validation: Generates validation cases; None where nothing is validated.
        records: Further entries of the checkpoints, such as that of `record_data`.
        notices: Warnings of the command, for the page.
    """
    data = records["data"]
    tensors, values = study.encoder.state()
    extra = CheckpointExtra(
        state={
            "labels": list(study.cohort.labels),
            "columns": list(study.cohort.columns),
            "left_out": list(study.cohort.left_out),
            "encoder": study.encoder.identity,
            "encoder_values": values,
            "weights": study.case_weights,
            "steps": trainer.config.steps,
            **records,
        },
        tensors={TEXT_PART: tensors},
    )
    run, config = options.run, trainer.config
    intervals = Intervals(
        log=run.log_freq,
        save=run.save_latest_freq,
        validate=run.val_freq or max(1, config.steps // 10),
        checkpoint=run.save_epoch_freq * config.steps_per_epoch,
        validation_share=run.val_share,
    )
    shown = to_dict(options)
    if data.get("accepted"):
        shown["accepted changes of data and options"] = dict(data["accepted"])
    if study.cohort.warnings:
        shown["warnings of the data"] = {
            str(number): text for number, text in enumerate(study.cohort.warnings, start=1)
        }
    real = records.get(EVIDENCE, {}).get("effects", {})
    content = PageContent(shown, notices, tracked_effects(options, real), options.data.terms)
    return Monitor(folder, trainer, content, extra, validation, intervals)


def open_folder(folder: Path, options: TrainOptions, study: Study) -> None:
    """Make a new run's folder, or update that of a resumed one, with options and splits in it."""
    if options.run.continue_train:
        runs.save_options(folder, to_dict(options))
    else:
        runs.create_run_folder(folder, options.run.overwrite, to_dict(options))
    save_splits(folder / runs.SPLITS_FILE, study.cohort.splits)
