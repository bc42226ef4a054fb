"""Train a generator of chest CT from masks and clinical text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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
    from pipelines.training.components import make_loader
    from pipelines.training.dry_run import dry_run
    from pipelines.training.session import Session
    from pipelines.training.shutdown import finish, memory_advice

    session = Session.open(options, folder)
    options, trainer = session.options, session.trainer
    if options.run.dry_run:
        with memory_advice(options):
            dry_run(options, session.study, session.model, trainer, session.validation)
        return folder

    study, dataset, monitor = session.begin(notices)
    with memory_advice(options), trainer.until_stopped():
        loader = make_loader(options, dataset, trainer)
        for parts in trainer.iterate(loader, prepare=dataset.inputs):
            texts = [study.embed(part, trainer.accelerator.device) for part in parts]
            losses = trainer.step(list(zip(parts, texts, strict=True)))
            monitor(losses)
    finish(trainer, monitor)
    page, steps = folder / "web" / "index.html", counted(trainer.steps_done, "step")
    log.info("Trained %s for %s; see %s.", options.run.name, steps, page)
    return folder


def main() -> None:
    """Parse the command line and train."""
    options = read_options()
    if not options.run.continue_train:  # what a run has needed before may be gone
        check_inputs(options)
    train(options)


if __name__ == "__main__":
    cli.run_command(main)
