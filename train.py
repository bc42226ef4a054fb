"""Trains a generator of chest CT from masks and clinical text: options, cohort, text encoder, model, fit."""

from __future__ import annotations

import logging
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from data.arms import check_change, parse_change, varied_arms
from data.cache import cache_folder
from data.cohort import Case, Cohort, load_cohort
from data.dataset import PatchDataset, loader
from data.prompts import Prompt, Template, cohort_prompts, load_template, sentence
from data.splits import save_splits
from data.volumes import to_hu
from data.whole import Whole, WholeVolumes
from models.base import MODELS, GenerativeModel
from models.sampler import TEXT_PART, Sampler
from models.text_base import TextEmbedding, TextEncoder
from models.text_encoder import build_text_encoder
from options.checks import check_train_options
from options.parser import from_dict, parse, to_dict
from options.train_options import PRESETS, TrainOptions
from util import checkpoint, cli, runs
from util.devices import make_accelerator
from util.inference import SlidingWindow
from util.monitor import WEB, Monitor
from util.trainer import Trainer
from util.validation import Validation, ValidationCase

log = logging.getLogger(__name__)

DRY_CASES = 4  # of the training cases, for the steps of --dry_run


def read_options(argv: list[str] | None = None) -> TrainOptions:
    """The options: those of the run that goes on, where `--continue_train` is given, with the flags given now on top."""
    options = parse(TrainOptions, __doc__ or "", argv, PRESETS)
    if options.run.continue_train:
        folder = runs.run_folder(options.run.checkpoints_dir, options.run.name)
        saved = from_dict(TrainOptions, runs.saved_options(folder), str(folder / runs.OPTIONS_FILE))
        options = parse(TrainOptions, __doc__ or "", argv, PRESETS, start=saved)
    check_train_options(options)
    return options


@dataclass(frozen=True)
class Study:
    """What training stands on: the cohort, its text, and the encoder fitted to the training prompts."""

    cohort: Cohort
    template: Template
    prompts: Mapping[str, Prompt]
    encoder: TextEncoder

    @property
    def phrases(self) -> dict[str, list[str]]:
        """The phrase texts of each case."""
        return {case: [p.text for p in prompt] for case, prompt in self.prompts.items()}


def open_study(options: TrainOptions, cache: Path | None) -> Study:
    """Checks everything that a user brings, before any long work; `cache` remembers what the checks found."""
    encoder = build_text_encoder(options.text)  # first: an encoder that cannot be had is known at once
    cohort = load_cohort(options.data, seed=options.run.seed, cache=cache)
    template = load_template(
        options.data.template, cohort.columns, options.data.key_column, options.data.patient_column)
    study = Study(cohort, template, cohort_prompts(cohort, template), encoder)
    encoder.fit([study.phrases[case.id] for case in cohort.split("train")])
    return study


def make_dataset(
    options: TrainOptions, study: Study, cases: Sequence[Case], cache: Path, model: GenerativeModel,
) -> PatchDataset:
    return PatchDataset(
        cases, study.phrases, study.cohort.labels, options.data, options.patch, options.text, cache,
        options.run.seed, model.noise_channels)


def validation_cases(options: TrainOptions, study: Study, sampler: Sampler) -> Iterator[ValidationCase]:
    """The first `--val_cases` cases of the validation split, or of the training split where there is none."""
    split = "val" if study.cohort.splits.get("val") else "train"
    if split == "train" and options.run.val_cases:
        log.warning("The cohort has no validation cases; training cases are looked at instead.")
    follow = [parse_change("--val_effect", text, 2) for text in options.run.val_effect[:1]]
    cases = study.cohort.split(split)[: options.run.val_cases]
    for change in follow:
        check_change("--val_effect", change, study.template, [case.row for case in study.cohort.cases])
    multiple = [sampler.model.size_multiple] * 3
    wholes = WholeVolumes(cases, study.cohort.labels, options.data, options.patch.patch_size, multiple)
    for whole in (wholes[i] for i in range(len(wholes))):
        assert whole.image is not None
        prompt = study.prompts[whole.case.id]
        arms = [arm for c in follow for arm in varied_arms(whole.case.row, study.template, c)[:2]]

        def generate(prompt: Prompt, whole: Whole = whole) -> NDArray[np.floating]:
            made = sampler(whole.mask, whole.coords, whole.case.id, [p.text for p in prompt])
            return to_hu(whole.unpad(made.numpy()), options.data.hu_window)

        yield ValidationCase(
            whole.case.id, to_hu(whole.unpad(whole.image[0].numpy()), options.data.hu_window), whole.labels,
            voxel_sizes(whole.affine), np.isin(whole.labels, options.data.lung_labels), sentence(prompt),
            partial(generate, prompt), [partial(generate, arm.prompt) for arm in arms])


def make_trainer(options: TrainOptions, model: GenerativeModel, accelerator: Accelerator, cases: int) -> Trainer:
    """The trainer, with epochs turned to steps."""
    optim = options.optim
    per_epoch = -(-cases // optim.batch_size)
    steps = optim.max_steps or (optim.niter + optim.niter_decay) * per_epoch
    constant = round(steps * optim.niter / max(1, optim.niter + optim.niter_decay))
    return Trainer(
        model, accelerator, steps=steps, constant_steps=constant, steps_per_epoch=per_epoch,
        betas=(optim.beta1, optim.beta2), clip=optim.clip, ema=optim.ema, accumulate=optim.accumulate,
        seed=options.run.seed, channels_last=optim.channels_last, compiled=optim.compile)


def batches(options: TrainOptions, dataset: PatchDataset, trainer: Trainer) -> Any:
    """This process's batches from the trainer's step to its last."""
    optim, accelerator = options.optim, trainer.accelerator
    part = optim.batch_size // (accelerator.num_processes * optim.accumulate)
    return loader(
        dataset, trainer.step * optim.batch_size, trainer.steps * optim.batch_size, part,
        workers=options.patch.num_workers, seed=options.run.seed, rank=accelerator.process_index,
        world=accelerator.num_processes)


def embed(encoder: TextEncoder, device: torch.device, batch: Mapping[str, Any]) -> tuple[TextEmbedding, TextEmbedding]:
    """A batch's own and mismatched prompts as embeddings."""
    return encoder.encode(batch["prompts"]).to(device), encoder.encode(batch["other_prompts"]).to(device)


def load_global_generator(options: TrainOptions, model: GenerativeModel) -> None:
    """Starts the local enhancers from another run's global generator (coarse to fine)."""
    folder = runs.run_folder(options.run.checkpoints_dir, options.optim.load_global)
    place = checkpoint.find(folder / "latest")
    part = "average" if "average" in checkpoint.load_state(place)["parts"] else "G"
    network = model.raw["G"].get_submodule("global_generator")
    checkpoint.load_network(network, place, part, prefix="global_generator.")


def dry_run(options: TrainOptions, model: GenerativeModel, trainer: Trainer, feed: Any, embedder: Any) -> None:
    """Takes two steps that are not saved, and reports options, sizes, memory and time."""
    for name, group in to_dict(options).items():
        log.info("%s: %s", name, ", ".join(f"--{k} {v}" for k, v in group.items()))
    for name, network in model.raw.items():
        log.info("Network %s: %.2f M parameters.", name, sum(p.numel() for p in network.parameters()) / 1e6)
    times: list[float] = [time.perf_counter()]
    trainer.fit(feed, embedder, lambda step, terms: times.append(time.perf_counter()), until=trainer.step + 2)
    if trainer.accelerator.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = times[-1] - times[-2]
    log.info("A step takes %.2f s and up to %.1f GiB; %d steps take about %.1f hours. Nothing was written.",
             seconds, memory, trainer.steps, seconds * trainer.steps / 3600)


def train(options: TrainOptions) -> Path:
    """Trains a run from its options to its end, or to the signal that stops it; returns its folder."""
    folder = runs.run_folder(options.run.checkpoints_dir, options.run.name)
    going_on = options.run.continue_train
    if not (going_on or options.run.dry_run):
        runs.check_new(folder, options.run.overwrite)
    accelerator = make_accelerator(options.optim.precision, options.run.gpu_ids)
    torch.manual_seed(options.run.seed)
    cache = cache_folder(options.data, folder)
    study = open_study(options, cache if going_on or options.data.cache_dir else None)
    model = MODELS[options.generator.model](options, len(study.cohort.labels), study.encoder.width)
    if options.optim.load_global and not going_on:
        load_global_generator(options, model)
    trainer = make_trainer(options, model, accelerator, len(study.cohort.split("train")))
    if accelerator.is_main_process and not (going_on or options.run.dry_run):
        runs.open_new(folder, options.run.overwrite)
    accelerator.wait_for_everyone()
    if going_on:
        trainer.load(checkpoint.find(folder / "latest"))
    embedder = partial(embed, study.encoder, accelerator.device)
    cases = study.cohort.split("train")
    if options.run.dry_run:
        with tempfile.TemporaryDirectory() as empty:
            few = make_dataset(options, study, cases[:DRY_CASES], Path(empty), model)
            dry_run(options, model, trainer, batches(options, few, trainer), embedder)
        return folder
    with accelerator.main_process_first():  # the others find its prepared volumes
        dataset = make_dataset(options, study, cases, cache, model)
    feed = batches(options, dataset, trainer)
    if accelerator.is_main_process:
        runs.save_options(folder, to_dict(options))
        save_splits(folder / runs.SPLITS_FILE, study.cohort.splits)
    monitor = make_monitor(options, study, model, trainer, folder)
    received = trainer.fit(feed, embedder, monitor)
    if received is not None:
        monitor.save("latest")
        log.warning("Stopped by %s after step %d; saved. Go on with --continue_train.",
                    signal.Signals(received).name, trainer.step)
        monitor.close()
        sys.exit(128 + received)
    monitor.close()
    log.info("Trained %s for %d steps; see %s.", options.run.name, trainer.step, folder / "web" / "index.html")
    return folder


def make_monitor(options: TrainOptions, study: Study, model: GenerativeModel, trainer: Trainer, folder: Path) -> Monitor:
    run, encoder = options.run, study.encoder
    tensors, values = encoder.state()
    window = SlidingWindow(options.patch.patch_size, model.size_multiple)
    sampler = Sampler(model, trainer.generating_network(), encoder, window, trainer.accelerator.device, run.seed)
    cases = list(validation_cases(options, study, sampler)) if trainer.accelerator.is_main_process else []
    validation = Validation(cases, options.data.hu_window, folder / WEB)
    return Monitor(
        folder, trainer, to_dict(options),
        state={"labels": list(study.cohort.labels), "columns": list(study.cohort.columns),
               "encoder": encoder.identity, "encoder_values": values},
        extra={TEXT_PART: tensors}, validate=validation if run.val_cases else None, log_freq=run.log_freq,
        save_freq=run.save_latest_freq, val_freq=run.val_freq or max(1, trainer.steps // 10),
        epoch_steps=run.save_epoch_freq * trainer.steps_per_epoch, steps_per_epoch=trainer.steps_per_epoch)


def main() -> None:
    train(read_options())


if __name__ == "__main__":
    cli.run(main)
