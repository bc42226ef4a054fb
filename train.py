"""Train a generator of chest CT from masks and clinical text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from options.checks import check_train_options
from options.parser import check_inputs, check_paths, from_dict, parse
from options.train_options import PRESETS, TrainOptions, model_presets
from util import cli
from util.cli import UserError, counted
from util.locks import locked_folder
from util.notices import Notice, collected_warnings
from util.training import runs

log = logging.getLogger(__name__)


def read_options(argv: list[str] | None = None) -> TrainOptions:
    """Parse the options; with `--continue_train` those of the run, changed by the flags given."""
    options = parse_flags(argv)
    if options.run.continue_train:
        check_paths(options)
        from models.inference import locate_text_encoder  # slow to import

        folder = runs.run_folder(options.run.checkpoints_dir, options.run.name)
        saved = from_dict(TrainOptions, runs.read_options(folder), str(folder / runs.OPTIONS_FILE))
        saved = replace(saved, run=replace(saved.run, accept_changes=False))  # holds for one call
        saved = replace(saved, text=locate_text_encoder(saved.text, folder))
        options = parse_flags(argv, start=saved)
    elif options.run.init_from:
        from pipelines.training.fine_tuning import SourceRun  # slow to import

        source = SourceRun.load(options.run.init_from, options.run.checkpoints_dir)
        try:
            options = parse_flags(argv, start=source.start_options())
        except UserError as error:
            raise UserError(
                f"{error} Flags that are not given are those of --init_from "
                f"{options.run.init_from}."
            ) from None
    check_train_options(options)
    return options


def parse_flags(argv: list[str] | None, start: TrainOptions | None = None) -> TrainOptions:
    """Parse the flags; a preset may hold other values for the model that they name."""
    options = parse(TrainOptions, __doc__ or "", argv, PRESETS, start=start)
    presets = model_presets(options.generator.model)
    if presets == PRESETS:
        return options
    return parse(TrainOptions, __doc__ or "", argv, presets, start=start)


def train(options: TrainOptions) -> Path:
    """Train a run to its end, or until a signal stops it; return its folder."""
    folder = runs.run_folder(options.run.checkpoints_dir, options.run.name)
    if options.run.dry_run:
        return train_run(options, folder)
    with locked_folder(folder, "--name"), collected_warnings() as notices:
        return train_run(options, folder, notices)


def train_run(options: TrainOptions, folder: Path, notices: Sequence[Notice] = ()) -> Path:
    """Train as `train` does, in a folder that no other process uses; the page shows `notices`."""
    # Slow to import: --help and mistakes in the command line are answered without it.
    import torch

    from data.cache import cache_folder
    from data.label_schemes import recognise_labels
    from models.base_model import MODELS
    from pipelines.evidence import EVIDENCE
    from pipelines.training.components import (
        make_dataset,
        make_loader,
        make_monitor,
        make_trainer,
        open_folder,
        save_body_shape,
    )
    from pipelines.training.data_record import check_unchanged, record_data
    from pipelines.training.dry_run import dry_run
    from pipelines.training.fine_tuning import start_model
    from pipelines.training.latent_check import check_latents
    from pipelines.training.shutdown import finish, memory_advice
    from pipelines.training.study import (
        ensure_cohort_clip,
        find_evidence,
        fix_labels,
        fix_text_texture,
        open_study,
        restore_study,
        warn_constant_text,
        weigh_by_relevance,
    )
    from pipelines.training.validation import make_validation
    from util.training import checkpoint
    from util.training.devices import make_accelerator

    options = replace(options, data=recognise_labels(options.data))
    run = options.run
    MODELS[options.generator.model].check_options(options)
    if not run.continue_train:
        runs.check_new_run(folder, run.overwrite)
    accelerator = make_accelerator(options.optim.precision, run.gpu_ids)
    with accelerator.main_process_first():
        options = ensure_cohort_clip(options, folder)
    torch.manual_seed(run.seed)

    # Everything that can be wrong is checked before anything is written.
    cache = cache_folder(options.data, folder)
    keep_checks = run.continue_train or options.data.cache_dir or cache.is_dir()
    study = open_study(options, cache if keep_checks else None)
    options = fix_labels(options, study)
    resumed = checkpoint.find(folder / "latest") if run.continue_train else None
    data_record: dict[str, Any] = {}
    if resumed:
        study = restore_study(options, study, resumed)
        with accelerator.main_process_first():  # the other processes find its checksums
            data_record = check_unchanged(options, study, resumed, cache)
    else:
        options = fix_text_texture(options, study)
    warn_constant_text(options, study)
    model = start_model(options, study, resumed is not None)
    trainer = make_trainer(options, model, accelerator, len(study.training_cases))
    if resumed:
        trainer.load(resumed)
    validation = None
    if accelerator.is_main_process and run.val_cases:
        validation = make_validation(options, study, model, trainer)
    if run.dry_run:
        with memory_advice(options):
            dry_run(options, study, model, trainer, validation)
        return folder

    if accelerator.is_main_process:
        open_folder(folder, options, study)
        study.encoder.attach_cache(folder)
        if not resumed:
            with memory_advice(options):
                check_latents(options, study, model, accelerator.device, folder)
        data_record = data_record or record_data(options, study, cache)
    accelerator.wait_for_everyone()
    with accelerator.main_process_first():  # the other processes find its prepared volumes
        dataset = make_dataset(options, study, model, study.training_cases, cache)
    save_body_shape(folder, options, dataset.volumes)
    if not resumed:
        study = weigh_by_relevance(options, study, cache)
    evidence = find_evidence(options, study, resumed, cache)
    records = {"data": data_record, EVIDENCE: evidence}
    monitor = make_monitor(options, study, trainer, folder, validation, records, notices)

    with memory_advice(options), trainer.until_stopped():
        loader = make_loader(options, dataset, trainer)
        for parts in trainer.iterate(loader, prepare=dataset.inputs):
            texts = [study.embed(part, accelerator.device) for part in parts]
            losses = trainer.step(list(zip(parts, texts, strict=True)))
            monitor(losses)
    finish(trainer, monitor)
    page = folder / "web" / "index.html"
    log.info("Trained %s for %s; see %s.", run.name, counted(trainer.steps_done, "step"), page)
    return folder


def main() -> None:
    """Parse the command line and train."""
    options = read_options()
    if not options.run.continue_train:  # what a run has needed before may be gone
        check_inputs(options)
    train(options)


if __name__ == "__main__":
    cli.run_command(main)
