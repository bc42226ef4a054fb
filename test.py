"""Generate synthetic CT volumes with a trained run: masks and rows in, volumes and a page out."""

from __future__ import annotations

import logging
from pathlib import Path

from options.diffusion_options import EditOptions
from options.parser import parse_command
from options.test_options import TestOptions
from util import cli
from util.cli import UserError, counted
from util.locks import locked_folder
from util.notices import collected_warnings
from util.progress import progress_bar

log = logging.getLogger(__name__)


def generate_cohort(options: TestOptions) -> Path:
    """Generate every case of a split, or one mask; return the results folder."""
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.generation.case import generate_case
    from pipelines.generation.plan import open_plan, open_run, page_context
    from pipelines.generation.results import ResultsWriter, check_results_folder, results_folder
    from pipelines.pictures.picture_set import draw_animations
    from pipelines.run_cohort import warn_training_cases

    folder = results_folder(options)
    with locked_folder(folder, "--results_dir"), collected_warnings() as notices:
        check_results_folder(folder, options)
        run = open_run(options)
        plan = open_plan(options, run)
        warn_training_cases(run.folder, run.state, plan.cases)
        results = ResultsWriter(folder, options, run.options, run.state["step"])
        samples = plan.samples
        for sample in progress_bar(samples, "generating"):
            generate_case(plan, sample, results)
        log.info(
            "%s in %s", counted(len(samples), "case"), results.save(page_context(plan, notices))
        )
        if options.output.gif and cli.is_main_process():
            draw_animations(folder, options.source.dataroot)
    return folder


def generate_volume(options: TestOptions) -> Path:
    """Generate one volume from one mask and a text; return the file."""
    from pipelines.generation.plan import open_plan, open_run
    from pipelines.generation.single_file import check_single_file, generate_file

    out = check_single_file(options)
    generate_file(open_plan(options, open_run(options)), out)
    log.info("Wrote %s", out)
    return out


def main() -> None:
    """Parse the command line and generate."""
    options = parse_command(TestOptions, __doc__ or "")
    source = options.source
    if bool(source.mask) == bool(source.dataroot) or (source.mask and options.edit.edit_real):
        raise UserError(
            "Give either --dataroot, for a cohort (and for --edit_real), or --mask, for one volume."
        )
    if source.out and not source.mask:
        raise UserError(
            "--out names the volume of --mask. With --dataroot, name the folder of all results by "
            "--results_dir."
        )
    if not options.edit.edit_real and options.edit != EditOptions():
        raise UserError(
            "--edit_strength and --edit_cycles say how real scans are edited. Add --edit_real, or "
            "leave them out."
        )
    if source.out:
        generate_volume(options)
    else:
        generate_cohort(options)


if __name__ == "__main__":
    cli.run_command(main)
