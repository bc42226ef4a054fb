"""The parts of a training: study, model, trainer, loader, validation and monitor from the options.

`train.py` puts them together.
"""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from data.body import BODY_FILE, BodyShape
from data.cache import CachedCase
from data.checks import check_labels_known
from data.cohort import Case, Cohort
from data.load_cohort import check_lungs, load_cohort, target_labels
from data.lung_density import lung_statistics
from data.patch_dataset import PatchDataset, PatchSettings, choose_workers, patch_loader
from data.resampling import patients_of
from data.splits import save_splits
from data.text.counterfactuals import (
    Intervention,
    case_text,
    check_intervention,
    counterfactual_variants,
    parse_intervention,
    values_by_column,
)
from data.text.free_text import TextReader
from data.text.paraphrases import load_paraphrases
from data.text.prompts import Prompt, Template, cohort_prompts, load_template
from data.volume_dataset import VolumeDataset
from models.base_model import BatchText, GenerativeModel
from models.diffusion.latent_space import LatentSpace
from models.inference import RUN_ENTRIES, TEXT_PART, VolumeGenerator, restore_encoder
from models.networks.label_embedding import mask_channels
from models.sliding_window import SlidingWindow, round_up
from models.text import relevance
from models.text.base_encoder import TextEncoder
from models.text.encoders import build_text_encoder
from models.text.phrase_encoder import PhraseEncoder
from options.clip_options import ClipCommand, ClipOptions
from options.parser import command_line, to_dict
from options.train_options import TrainOptions
from pipelines.autoencoder_check import check_reconstruction, report_check
from pipelines.clip_pretraining import pretrain_clip
from pipelines.evidence import EVIDENCE, contrast_key, training_evidence
from pipelines.power import describe_smallest_effect
from pipelines.run_cohort import run_splits
from pipelines.run_words import known_synonyms
from pipelines.validation import Validation, ValidationCase
from util.cli import UserError, format_list, is_main_process, is_out_of_memory
from util.files import write_frame
from util.notices import Notice
from util.training import checkpoint, runs
from util.training.devices import device_name, shutdown_distributed
from util.training.monitor import WEB, CheckpointExtra, Intervals, Monitor, PageContent
from util.training.stopping import StopSignals
from util.training.trainer import Trainer, TrainerConfig
from util.web.training_page import TrackedEffect

log = logging.getLogger(__name__)

DRY_RUN_CASES = 4
DRY_RUN_STEPS = 3  # the last is measured
CHECKED_RECONSTRUCTIONS = 2  # training scans that the autoencoder of latents is checked on
RECONSTRUCTION_FILE = "autoencoder.csv"  # in the run's folder


@dataclass(frozen=True)
class Study:
    """The data of a training: cohort, text, and the encoder fitted to the training prompts.

    Attributes:
        cohort: Cases, splits and labels.
        template: How rows become text.
        prompts: The prompt of each case.
        encoder: The frozen text encoder.
        case_weights: How much text may learn from each case; 1 where it is not named.
    """

    cohort: Cohort
    template: Template
    prompts: Mapping[str, Prompt]
    encoder: TextEncoder
    case_weights: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def phrases(self) -> dict[str, list[str]]:
        """The phrase texts of each case."""
        return {case: prompt.texts for case, prompt in self.prompts.items()}

    @property
    def training_cases(self) -> tuple[Case, ...]:
        """The cases of the training split; a resampled cohort repeats some."""
        return self.cohort.split("train")

    @property
    def training_values(self) -> dict[str, list[str]]:
        """The distinct values of each column in the training cases' rows."""
        return values_by_column(self.template, [case.row for case in self.training_cases])

    @property
    def reader(self) -> TextReader:
        """Reads texts that people wrote."""
        return TextReader(self.template, self.training_values, known_synonyms(self.encoder))

    def embed(self, batch: Mapping[str, Any], device: torch.device) -> BatchText:
        """Return the embeddings of a batch's prompts and of the mismatched ones."""
        weight = torch.tensor([self.case_weights.get(case, 1.0) for case in batch["cases"]])
        matched = replace(self.encoder.encode(batch["prompts"]), weight=weight)
        mismatched = self.encoder.encode(batch["mismatched_prompts"])
        return BatchText(matched.to(device), mismatched.to(device))


def ensure_cohort_clip(options: TrainOptions, folder: Path) -> TrainOptions:
    """Return the options with the cohort's own CLIP as text encoder, for `--text_encoder cohort`.

    It is pre-trained beside the run unless it is there. All other input is checked before.
    """
    if options.text.text_encoder != "cohort":
        return options
    table = replace(options.text, text_encoder="table", text_mode="phrases")
    stand_in = replace(options, text=table)
    if options.run.dry_run:  # the time of a step hardly depends on the encoder
        log.info(
            "--text_encoder cohort: the dry run leaves its pre-training out and uses table instead."
        )
        return stand_in
    open_study(stand_in, None, check=False)
    clip = ClipOptions(out=f"{folder}.clip", seed=options.run.seed, overwrite=options.run.overwrite)
    encoder = pretrain_clip(ClipCommand(clip, options.data))
    return replace(options, text=replace(options.text, text_encoder=str(encoder)))


def fix_body_label(options: TrainOptions, study: Study) -> TrainOptions:
    """Return the options with the label that `--body_label` stands for in this cohort."""
    number, data = study.cohort.body_label, options.data
    is_chest = data.chest_labels.issuperset(study.cohort.labels)
    if data.body_label == "masks" and number is None and is_chest:
        log.warning(
            "The masks label lungs and airways alone, so where the body ends is left to chance: "
            "generated volumes fray there. --body_label auto finds the body in the scans."
        )
    text = "none" if number is None else str(number)
    return replace(options, data=replace(options.data, body_label=text))


def fix_target_labels(options: TrainOptions, study: Study) -> TrainOptions:
    """Return the options with the labels that effects are measured in."""
    labels = target_labels(study.cohort.labels, options.data)
    return replace(options, data=replace(options.data, lung_labels=labels))


def save_body_shape(folder: Path, options: TrainOptions, volumes: Sequence[CachedCase]) -> None:
    """Write the mean body of the training cases, for masks without a scan, unless it is there.

    Args:
        folder: The run's folder.
        options: The run's options.
        volumes: The training cases.
    """
    path = folder / BODY_FILE
    if options.data.body_number is None or path.is_file() or not is_main_process():
        return
    shape = BodyShape.from_masks([case.labelled() for case in volumes], options.data.lung_labels)
    if shape is not None:
        shape.save(path)


def tracked_interventions(options: TrainOptions) -> list[Intervention]:
    """Return the intervention of `--val_effect`, if there is one."""
    return [parse_intervention("--val_effect", text, 2) for text in options.run.val_effect]


def open_study(options: TrainOptions, cache: Path | None, check: bool = True) -> Study:
    """Load cohort and text, and check everything that a user gives before any long work.

    Args:
        options: The run's options.
        cache: Folder that remembers the checks of volumes.
        check: Whether to read every volume.

    Raises:
        UserError: Something in the cohort or the options cannot be used.
    """
    encoder = build_text_encoder(options.text)  # first, because a missing encoder is found at once
    data = options.data
    cohort = load_cohort(data, seed=options.run.seed, cache=cache, check=check)
    check_lungs(cohort, data)
    template = load_template(data.template, cohort.columns, data.key_column, data.patient_column)
    rows = [case.row for case in cohort.cases]
    study = Study(cohort, template, cohort_prompts(cohort, template), encoder)
    for intervention in tracked_interventions(options):
        trained = study.training_values
        check_intervention("--val_effect", intervention, template, rows, trained, must_occur=True)
    if data.paraphrases:
        if not isinstance(encoder, PhraseEncoder):
            raise UserError(
                "--paraphrases gives other words for phrases, and --text_encoder "
                f"{options.text.text_encoder} does not read phrases. Use another encoder."
            )
        paraphrases = load_paraphrases(data.paraphrases, template, cohort.columns)
        encoder.synonyms = paraphrases.synonyms
    encoder.fit([study.phrases[case.id] for case in study.training_cases])
    return study


def has_constant_text(study: Study) -> bool:
    """Return whether all training cases have the same text."""
    return len({tuple(study.phrases[case.id]) for case in study.training_cases}) == 1


def fix_text_texture(options: TrainOptions, study: Study) -> TrainOptions:
    """Return the options without `--text_texture` where the text never varies.

    Its events would then make what all lungs have, such as vessels, out of balls of one density
    each; the network makes better ones of noise.
    """
    if options.run.init_from or not has_constant_text(study):
        return options
    return replace(options, generator=replace(options.generator, text_texture=False))


def warn_constant_text(options: TrainOptions, study: Study) -> None:
    """Warn where the training cases cannot show what text does: one text, or one patient."""
    if not is_main_process():
        return
    cases = study.training_cases
    if options.generator.fusion != "none" and has_constant_text(study):
        log.warning(
            "All %d training cases have the same text, so the run cannot learn what text does, and "
            "counterfactuals will hardly differ; --text_texture is left out. Check --template and "
            "the table, or train without text (--fusion none).",
            len(cases),
        )
    patients = patients_of(study.cohort, options.data.patient_column)
    if len({patients[case.id] for case in cases}) == 1:
        log.warning(
            "The training cases are of one patient, whose anatomy the run will repeat for every "
            "mask. Train on several patients."
        )


def restore_study(options: TrainOptions, study: Study, checkpoint_dir: Path) -> Study:
    """Return the study as it was when the run began: labels, splits, and the fitted encoder.

    Raises:
        UserError: The text encoder is not that of the run, a label is not known to the run, cases
            are missing, or the splits are others and `accept_changes` is not given.
    """
    state, cohort = checkpoint.load_state(checkpoint_dir, RUN_ENTRIES), study.cohort
    study.encoder.check_identity(state["encoder"])
    restore_encoder(study.encoder, checkpoint_dir, state)
    check_labels_known(cohort.labels, state["labels"], [case.mask for case in cohort.cases])
    splits = run_splits(checkpoint_dir.parent, cohort, options.data, options.run.accept_changes)
    missing = sorted(set(splits["train"]) - {case.id for case in cohort.cases})
    if missing:
        raise UserError(
            f"--dataroot {cohort.root} lacks cases that the run was trained on: "
            f"{format_list(missing)}."
        )
    cohort = replace(cohort, labels=tuple(state["labels"]), splits=splits)
    return replace(study, cohort=cohort, case_weights=state.get("weights", {}))


def weigh_by_relevance(options: TrainOptions, study: Study, cache: Path) -> Study:
    """Weigh phrases and cases by the evidence in the training scans, for `--text_relevance`.

    See `models.text.relevance`.
    """
    cases, encoder = study.training_cases, study.encoder
    if not options.text.text_relevance or not isinstance(encoder, PhraseEncoder):
        return study
    if len(cases) > relevance.MAX_SCANS:
        return study
    if len(cases) < relevance.MIN_SCANS and encoder.phrase_weights:
        return study  # those of the run that training started from
    prompts = [study.prompts[case.id].annotated for case in cases]
    statistics = lung_statistics(cases, options.data, cache)
    weights = relevance.estimate_relevance(encoder, prompts, statistics)
    encoder.set_phrase_weights(weights.phrase_weights, weights.terms)
    by_case = zip(cases, weights.case_weights, strict=True)
    return replace(study, case_weights={case.id: weight for case, weight in by_case})


def find_evidence(
    options: TrainOptions, study: Study, resumed: Path | None, cache: Path
) -> dict[str, Any]:
    """Return what the training cases can show (see `training_evidence`); a resumed run knows it."""
    if resumed is not None and EVIDENCE in (state := checkpoint.load_state(resumed)):
        return dict(state[EVIDENCE])
    if not is_main_process():
        return {}
    interventions = tracked_interventions(options)
    return training_evidence(study.cohort, study.template, options.data, interventions, cache)


def make_dataset(
    options: TrainOptions, study: Study, cases: Sequence[Case], cache: Path, noise_channels: int
) -> PatchDataset:
    """Return the patches of the training cases, whose volumes are prepared in `cache`."""
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


def make_validation(
    options: TrainOptions, study: Study, model: GenerativeModel, trainer: Trainer
) -> Validation:
    """Return the validation of `--val_cases` cases.

    They are the first of the validation split, or of the training split where there is none.

    Raises:
        UserError: A prompt cannot be encoded, or a file cannot be read.
    """
    split = "val" if study.cohort.splits.get("val") else "train"
    if split == "train" and options.run.val_cases:
        log.warning("The cohort has no validation cases; training cases are validated instead.")
    model.inference_network = trainer.generating_network()
    size, multiple = options.patch.patch_size, model.size_multiple
    cases = []
    samples = VolumeDataset(
        study.cohort.split(split)[: options.run.val_cases],
        study.cohort.labels,
        options.data,
        size,
        [multiple] * 3,
    )
    for sample in samples:
        prompts = [study.prompts[sample.name]]
        for intervention in tracked_interventions(options):
            text = case_text(sample.case, study.prompts[sample.name], study.reader)
            variants = counterfactual_variants(text, intervention)
            prompts += [variant.prompt for variant in variants[:2]]
        study.encoder.validate([prompt.texts for prompt in prompts])
        pairs = list(zip(prompts[1::2], prompts[2::2], strict=True))
        cases.append(ValidationCase(sample, prompts[0], pairs))
    generator = VolumeGenerator(
        model,
        study.encoder,
        validation_window(size, multiple, [case.sample.channels.shape for case in cases]),
        trainer.accelerator.device,
        options.run.seed,
    )
    folder = runs.run_folder(options.run.checkpoints_dir, options.run.name)
    tracked = tracked_effects(options)
    return Validation(cases, generator, options.data, folder / WEB, tracked)


def validation_window(
    patch: Sequence[int], multiple: int, shapes: Sequence[Sequence[int]]
) -> SlidingWindow:
    """Return tiles of twice the patch size along each axis, but not larger than the volumes.

    Overlapping tiles of the patch size generate a voxel up to eight times; larger ones fewer times.
    One tile at a time takes less memory than a training step. A model with exact tiles chooses
    them by the free memory.
    """
    longest = [max((shape[axis] for shape in shapes), default=0) for axis in range(3)]
    tile = []
    for side, length in zip(patch, longest, strict=True):
        largest = round_up(max(side, min(2 * side, length)), 2 * multiple)
        tile.append(largest)
    return SlidingWindow(tuple(tile), multiple, batch=1, by_memory=True)


def tracked_effects(
    options: TrainOptions, real: Mapping[str, Sequence[float]] | None = None
) -> list[TrackedEffect]:
    """Return the effects of `--val_effect`, with the regression of the real scans (see evidence).

    Args:
        options: The run's options.
        real: Difference and interval by intervention, as `training_evidence` returns them.
    """
    tracked = []
    for number, intervention in enumerate(tracked_interventions(options), start=1):
        start, end = intervention.values[:2]
        metric = "val_lung_effect_hu" + (f"_{number}" if number > 1 else "")
        title = f"{intervention.column}: {end} minus {start}"
        found = (real or {}).get(contrast_key(intervention))
        tracked.append(TrackedEffect(metric, title, *(found or ())))
    return tracked


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
        study: The study.
        trainer: The trainer.
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


def check_latents(
    options: TrainOptions, study: Study, model: GenerativeModel, device: torch.device, folder: Path
) -> None:
    """Reconstruct training scans by the autoencoder of a latent diffusion, and report the loss.

    No later step restores what the autoencoder loses. The numbers are written to the run's folder.
    """
    space = getattr(model, "space", None)
    if not isinstance(space, LatentSpace):
        return
    size, multiple = options.patch.patch_size, model.size_multiple
    cases = study.training_cases[:CHECKED_RECONSTRUCTIONS]
    samples = list(VolumeDataset(cases, study.cohort.labels, options.data, size, [multiple] * 3))
    window = validation_window(size, multiple, [sample.channels.shape for sample in samples])
    check = check_reconstruction(space, samples, window, options.data, device)
    terms = options.data.terms
    write_frame(folder / RECONSTRUCTION_FILE, pd.DataFrame(terms.rows(check.rows)))
    report_check(check, terms)


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
        study: The study.
        model: The model.
        trainer: The trainer.
        validation: Of which one tile is generated; None where nothing is validated.
    """
    for name, flags in command_line(options).items():
        log.info("%s: %s", name, flags)
    for name, network in model.raw.items():
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        log.info("Network %s: %.2f M parameters.", name, millions)
    log.info("%s", describe_mask(options, len(study.cohort.labels)))
    cases, device = study.training_cases, trainer.accelerator.device
    log.info("%s", options.data.terms.text(describe_smallest_effect(cases, options.data)))
    with tempfile.TemporaryDirectory() as cache:
        dataset = make_dataset(
            options, study, cases[:DRY_RUN_CASES], Path(cache), model.draws * model.noise_channels
        )
        loader = make_loader(options, dataset, trainer)
        until = trainer.steps_done + DRY_RUN_STEPS
        waiting = seconds = 0.0
        start = time.perf_counter()
        for parts in trainer.iterate(loader, until, dataset.inputs):
            waiting = time.perf_counter() - start
            losses = trainer.step([(part, study.embed(part, device)) for part in parts])
            [value.item() for value in losses.values()]  # a GPU is waited for
            seconds = time.perf_counter() - start
            start = time.perf_counter()
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    config = trainer.config
    log.info(
        "On %s, a step takes %.2f s, %.3f s without its data, and up to %.1f GiB. %d steps take "
        "about %.1f hours%s. Nothing was written.",
        device_name(device),
        seconds,
        seconds - waiting,
        memory,
        config.steps,
        seconds * config.steps / 3600,
        _validation_time(options, config.steps, validation),
    )


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


def _validation_time(options: TrainOptions, steps: int, validation: Validation | None) -> str:
    """Return the time of all validations as text, by the time of a tile."""
    if validation is None:
        return ", without validation"
    count = math.ceil(steps / (options.run.val_freq or max(1, steps // 10)))
    hours = validation.estimate_seconds() * count / 3600
    share = options.run.val_share
    return (
        f", and {count} validations {hours:.1f} hours more, postponed beyond --val_share {share:g}"
    )


@contextlib.contextmanager
def memory_advice(options: TrainOptions) -> Iterator[None]:
    """Turn memory that runs out, of the CPU or a GPU, into a `UserError` with advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = ",".join(map(str, options.patch.patch_size))
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"--patch_size {size} with --batch_size {options.optim.batch_size} does not fit into "
            f"the memory ({reason}). Use less of either, "
            "--gradient_accumulation, --precision bf16, --checkpoint_activations or a smaller "
            "--preset; --dry_run reports the memory of a step."
        ) from None


def finish(trainer: Trainer, monitor: Monitor) -> None:
    """Close a training; one that a signal stopped is saved, and exits with 128 + its number."""
    received = trainer.stop_signal
    if received is not None:
        signals = StopSignals(received)  # only a second Ctrl-C prevents the save
        try:
            monitor.save("latest")
        finally:
            signals.restore()
        log.warning(
            "Stopped by %s after step %d; saved. Continue with --continue_train.",
            signal.Signals(received).name,
            trainer.steps_done,
        )
    monitor.close()
    shutdown_distributed(trainer.accelerator)
    if received is not None:
        sys.exit(128 + received)
