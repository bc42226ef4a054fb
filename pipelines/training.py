"""Training a run: cohort, text encoder, model, trainer and monitor from the options."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from data.checks import check_known
from data.cohort import Case, Cohort
from data.load_cohort import check_lungs, load_cohort
from data.lung_density import lung_means
from data.patch_dataset import PatchDataset, loader
from data.splits import run_splits, save_splits
from data.text.counterfactuals import (
    Intervention,
    check_intervention,
    counterfactual_variants,
    parse_intervention,
)
from data.text.prompts import (
    Prompt,
    Template,
    cohort_prompts,
    load_template,
    phrase_columns,
    sentence,
)
from data.volume_dataset import VolumeDataset, VolumeSample
from data.volumes import to_hu
from models.base_model import MODELS, GenerativeModel
from models.inference import TEXT_PART, VolumeGenerator
from models.sliding_window import SlidingWindow
from models.text import relevance
from models.text.base_encoder import TextEmbedding, TextEncoder
from models.text.encoders import build_text_encoder
from models.text.phrase_encoder import PhraseEncoder
from options.clip_options import ClipCommand as ClipTraining
from options.clip_options import ClipOptions
from options.parser import command_line, to_dict
from options.train_options import TrainOptions
from pipelines.clip_pretraining import pretrain
from util.cli import UserError, format_list
from util.training import checkpoint, runs
from util.training.monitor import WEB, Monitor
from util.training.trainer import Trainer
from util.training.validation import Validation, ValidationCase

log = logging.getLogger(__name__)

DRY_CASES = 4  # of the training cases, for the steps of --dry_run


def ensure_cohort_clip(options: TrainOptions, folder: Path) -> TrainOptions:
    """With `--text_encoder cohort`: the options with the cohort's own CLIP, pre-trained beside the
    run if need be.
    """
    if options.text.text_encoder != "cohort":
        return options
    stand_in = replace(options, text=replace(options.text, text_encoder="table"))
    if (
        options.run.dry_run
    ):  # what a step costs hardly depends on the encoder, for phrases are embedded once
        log.info(
            "--text_encoder cohort: its pre-training is left out of the dry run; table stands in."
        )
        return stand_in
    study = open_study(
        stand_in, None, check=False
    )  # a flag that is wrong is known before CLIP is trained
    MODELS[options.generator.model](stand_in, 2, study.encoder.width)
    clip = ClipOptions(out=f"{folder}.clip", seed=options.run.seed, overwrite=options.run.overwrite)
    return replace(
        options,
        text=replace(options.text, text_encoder=str(pretrain(ClipTraining(clip, options.data)))),
    )


@dataclass(frozen=True)
class Study:
    """What training stands on: the cohort, its text, and the encoder fitted to the training
    prompts.
    """

    cohort: Cohort
    template: Template
    prompts: Mapping[str, Prompt]
    encoder: TextEncoder
    weights: Mapping[str, float] = field(
        default_factory=dict
    )  # how much text may learn from a case; 1 where it is not

    @property
    def phrases(self) -> dict[str, list[str]]:
        """The phrase texts of each case."""
        return {case: [p.text for p in prompt] for case, prompt in self.prompts.items()}


def tracked_interventions(options: TrainOptions) -> list[Intervention]:
    """The attribute of `--val_effect`, if one is given."""
    return [parse_intervention("--val_effect", text, 2) for text in options.run.val_effect]


def open_study(options: TrainOptions, cache: Path | None, check: bool = True) -> Study:
    """Checks everything that a user brings, before any long work; `cache` remembers what the checks
    of volumes found.
    """
    encoder = build_text_encoder(
        options.text
    )  # first: an encoder that cannot be had is known at once
    cohort = load_cohort(options.data, seed=options.run.seed, cache=cache, check=check)
    check_lungs(cohort, options.data)
    template = load_template(
        options.data.template, cohort.columns, options.data.key_column, options.data.patient_column
    )
    study = Study(cohort, template, cohort_prompts(cohort, template), encoder)
    for change in tracked_interventions(options):
        check_intervention(
            "--val_effect", change, template, [case.row for case in cohort.cases], seen=True
        )
    encoder.fit([study.phrases[case.id] for case in cohort.split("train")])
    return study


def weigh_by_relevance(options: TrainOptions, study: Study, cache: Path) -> Study:
    """With `--text_relevance`: phrases and cases weighed by what the training scans can tell (see
    `models.text.relevance`).
    """
    cases = study.cohort.split("train")
    if (
        not options.text.text_relevance
        or not isinstance(study.encoder, PhraseEncoder)
        or len(cases) > relevance.MOST
    ):
        return study
    said = phrase_columns(study.prompts[case.id] for case in cases)
    weights = relevance.apply_relevance(study.encoder, said, lung_means(cases, options.data, cache))
    return replace(study, weights={case.id: w for case, w in zip(cases, weights, strict=True)})


def restore_study(study: Study, place: Path) -> Study:
    """The study as it was when the run began: labels, splits, and what the encoder learned from the
    training prompts.

    Raises:
        UserError: Another text encoder than that of the run, labels that the run does not know, or
            cases that are gone.
    """
    state, cohort = checkpoint.load_state(place), study.cohort
    study.encoder.check_identity(state["encoder"])
    study.encoder.load_state(checkpoint.load_part(place, TEXT_PART), state["encoder_values"])
    check_known(cohort.labels, state["labels"], [case.mask for case in cohort.cases])
    splits = run_splits(place.parent / runs.SPLITS_FILE, cohort.root) or cohort.splits
    if gone := sorted(set(splits["train"]) - {case.id for case in cohort.cases}):
        raise UserError(
            f"--dataroot {cohort.root} lacks cases that the run was trained on: {format_list(gone)}."
        )
    return replace(
        study,
        cohort=replace(cohort, labels=tuple(state["labels"]), splits=splits),
        weights=state.get("weights", {}),
    )


def make_dataset(
    options: TrainOptions,
    study: Study,
    cases: Sequence[Case],
    cache: Path,
    model: GenerativeModel,
) -> PatchDataset:
    return PatchDataset(
        cases,
        study.phrases,
        study.cohort.labels,
        options.data,
        options.patch,
        options.text,
        cache,
        options.run.seed,
        model.noise_channels,
    )


def validation_cases(
    options: TrainOptions, study: Study, sampler: VolumeGenerator
) -> Iterator[ValidationCase]:
    """The first `--val_cases` cases of the validation split, or of the training split where there
    is none.
    """
    split = "val" if study.cohort.splits.get("val") else "train"
    if split == "train" and options.run.val_cases:
        log.warning("The cohort has no validation cases; training cases are looked at instead.")
    cases = study.cohort.split(split)[: options.run.val_cases]
    multiple = [sampler.model.size_multiple] * 3
    wholes = VolumeDataset(
        cases, study.cohort.labels, options.data, options.patch.patch_size, multiple
    )
    for whole in (wholes[i] for i in range(len(wholes))):
        assert whole.image is not None
        prompt = study.prompts[whole.case.id]
        arms = [
            arm
            for c in tracked_interventions(options)
            for arm in counterfactual_variants(whole.case.row, study.template, c)[:2]
        ]
        study.encoder.encode(
            [[p.text for p in said] for said in (prompt, *(arm.prompt for arm in arms))]
        )  # or say why not

        def generate(prompt: Prompt, whole: VolumeSample = whole) -> NDArray[np.floating]:
            made = sampler(whole.mask, whole.coords, whole.case.id, [p.text for p in prompt])
            return to_hu(whole.unpad(made.numpy()), options.data.hu_window)

        yield ValidationCase(
            whole.case.id,
            to_hu(whole.unpad(whole.image[0].numpy()), options.data.hu_window),
            whole.labels,
            voxel_sizes(whole.affine),
            np.isin(whole.labels, options.data.lung_labels),
            sentence(prompt),
            partial(generate, prompt),
            [partial(generate, arm.prompt) for arm in arms],
        )


def make_validation(
    options: TrainOptions, study: Study, model: GenerativeModel, trainer: Trainer
) -> Validation:
    """What is measured and drawn at intervals; raises `UserError` for a `--val_effect` that cannot
    be followed.
    """
    window = SlidingWindow(options.patch.patch_size, model.size_multiple)
    sampler = VolumeGenerator(
        model,
        trainer.generating_network(),
        study.encoder,
        window,
        trainer.accelerator.device,
        options.run.seed,
    )
    folder = runs.run_folder(options.run.checkpoints_dir, options.run.name)
    return Validation(
        list(validation_cases(options, study, sampler)), options.data.hu_window, folder / WEB
    )


def make_trainer(
    options: TrainOptions, model: GenerativeModel, accelerator: Accelerator, cases: int
) -> Trainer:
    """The trainer, with epochs turned to steps."""
    optim = options.optim
    per_epoch = -(-cases // optim.batch_size)
    steps = optim.max_steps or (optim.niter + optim.niter_decay) * per_epoch
    constant = round(steps * optim.niter / max(1, optim.niter + optim.niter_decay))
    return Trainer(
        model,
        accelerator,
        steps=steps,
        constant_steps=constant,
        steps_per_epoch=per_epoch,
        betas=(optim.beta1, optim.beta2),
        grad_clip=optim.grad_clip,
        ema=optim.ema,
        gradient_accumulation=optim.gradient_accumulation,
        seed=options.run.seed,
        channels_last=optim.channels_last,
        compiled=optim.compile,
    )


def batches(options: TrainOptions, dataset: PatchDataset, trainer: Trainer) -> Any:
    """This process's batches from the trainer's step to its last."""
    optim, accelerator = options.optim, trainer.accelerator
    part = optim.batch_size // (accelerator.num_processes * optim.gradient_accumulation)
    return loader(
        dataset,
        trainer.step * optim.batch_size,
        trainer.steps * optim.batch_size,
        part,
        workers=options.patch.num_workers,
        seed=options.run.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )


def embed(
    study: Study, device: torch.device, batch: Mapping[str, Any]
) -> tuple[TextEmbedding, TextEmbedding]:
    """A batch's own and mismatched prompts as embeddings."""
    weight = torch.tensor([study.weights.get(case, 1.0) for case in batch["cases"]])
    own = replace(study.encoder.encode(batch["prompts"]), weight=weight)
    return own.to(device), study.encoder.encode(batch["other_prompts"]).to(device)


def dry_run(
    options: TrainOptions, model: GenerativeModel, trainer: Trainer, feed: Any, embedder: Any
) -> None:
    """Takes two steps that are not saved, and reports options, sizes, memory and time."""
    for name, flags in command_line(options).items():
        log.info("%s: %s", name, flags)
    for name, network in model.raw.items():
        log.info(
            "Network %s: %.2f M parameters.",
            name,
            sum(p.numel() for p in network.parameters()) / 1e6,
        )
    times: list[float] = [time.perf_counter()]
    trainer.fit(
        feed,
        embedder,
        lambda step, terms: times.append(time.perf_counter()),
        until=trainer.step + 2,
    )
    if trainer.accelerator.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = times[-1] - times[-2]
    log.info(
        "A step takes %.2f s and up to %.1f GiB; %d steps take about %.1f hours. Nothing was "
        "written.",
        seconds,
        memory,
        trainer.steps,
        seconds * trainer.steps / 3600,
    )


def open_folder(folder: Path, options: TrainOptions, study: Study) -> None:
    """Makes a new run's folder, or takes up that of a run that goes on, with options and splits in
    it.
    """
    if options.run.continue_train:
        runs.save_options(folder, to_dict(options))
    else:
        runs.open_new(folder, options.run.overwrite, to_dict(options))
    save_splits(folder / runs.SPLITS_FILE, study.cohort.splits)


def make_monitor(
    options: TrainOptions,
    study: Study,
    trainer: Trainer,
    folder: Path,
    validation: Validation | None,
) -> Monitor:
    run, encoder = options.run, study.encoder
    tensors, values = encoder.state()
    return Monitor(
        folder,
        trainer,
        to_dict(options),
        state={
            "labels": list(study.cohort.labels),
            "columns": list(study.cohort.columns),
            "encoder": encoder.identity,
            "encoder_values": values,
            "weights": study.weights,
        },
        extra={TEXT_PART: tensors},
        validate=validation,
        log_freq=run.log_freq,
        save_freq=run.save_latest_freq,
        val_freq=run.val_freq or max(1, trainer.steps // 10),
        epoch_steps=run.save_epoch_freq * trainer.steps_per_epoch,
        steps_per_epoch=trainer.steps_per_epoch,
    )
