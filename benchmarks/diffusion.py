"""Compare effects and edits of a diffusion run with the effects planted in phantoms.

Effects, texture and processor seconds are measured with few and with many sampling steps; edits are
made of real (phantom) scans.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.effects import DiffusionBenchmarkCommand
from options.parser import answer_early, parse

answer_early(__name__, DiffusionBenchmarkCommand, __doc__ or "")  # the imports below are slow


import pandas as pd

import test
from benchmarks.report.planted_truth import VARIED, effect_metrics, true_effects
from data.phantom.cohort import PhantomCohort
from options.diffusion_options import EditOptions, SamplingOptions
from options.test_options import InterventionOptions, OutputOptions, TestOptions
from pipelines.generation.plan import open_plan, open_run
from util.cli import UserError, run_command
from util.files import write_json

log = logging.getLogger(__name__)

SECONDS_ASKED = 3.0  # of processors, for a volume of 64x64x48


def generate_results(
    o: DiffusionBenchmarkCommand, name: str, sampling: SamplingOptions, edit: EditOptions
) -> Path:
    """Generate a folder of results as test.py does."""
    out = f"{o.benchmark.OUT}/{name}"
    columns = o.benchmark.columns or tuple(VARIED)
    varied = tuple(f"{column}={','.join(VARIED[column])}" for column in columns)
    output = OutputOptions(results_dir=out, overwrite=True, page=edit.edit_real)
    intervention = InterventionOptions(vary=varied, draws=1)  # the same noise for all steps
    return test.generate_cohort(
        TestOptions(o.source, o.model, intervention, sampling, edit, output)
    )


def measured_effects(folder: Path, phantoms: PhantomCohort) -> dict[str, Any]:
    """Return metrics of each column's effect by region, against the patient rendered again."""
    effects = pd.read_csv(folder / "effects.csv", dtype={"from": str, "to": str})
    return effect_metrics(true_effects(phantoms, effects))


def compare_steps(by_steps: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the relative difference of each column's lung effects from those of the last steps.

    Args:
        by_steps: Metrics of `measured_effects` by the number of sampling steps.
    """
    reference = by_steps[list(by_steps)[-1]]
    differences: dict[str, dict[str, float]] = {}
    for steps, effects in by_steps.items():
        for column in effects:
            pairs = effects[column]["lungs"]["pairs"]
            expected = reference[column]["lungs"]["pairs"]
            size = sum(abs(generated) for generated, _ in expected.values())
            change = sum(abs(pairs[key][0] - expected[key][0]) for key in expected)
            differences.setdefault(column, {})[str(steps)] = change / size if size else 0.0
    return differences


def compare_detail(folders: Mapping[int, Path]) -> dict[str, dict[str, float]]:
    """Return the detail SD of the lungs by steps: HU, over the last steps, and over the scans."""
    measured: dict[int, pd.Series] = {}
    for steps, folder in folders.items():
        metrics = pd.read_csv(folder / "metrics.csv")
        lungs = metrics[metrics["region"] == "lungs"]
        measured[steps] = lungs.groupby("metric")["value"].mean()
    last = measured[list(measured)[-1]]
    return {
        str(steps): {
            "hu": float(means["detail_sd_hu"]),
            "over_last": float(means["detail_sd_hu"] / last["detail_sd_hu"]),
            "over_scans": float(means["detail_sd_hu"] / means["real_detail_sd_hu"]),
        }
        for steps, means in measured.items()
    }


def sample_seconds(o: DiffusionBenchmarkCommand, sampling: SamplingOptions) -> dict[str, Any]:
    """Return the processor seconds of the second volume of the first case, and its size."""
    options = TestOptions(source=o.source, model=o.model, sampling=sampling)
    plan = open_plan(options, open_run(options))
    sample = plan.samples[0]
    prompt = plan.variants(sample.case).factual.prompt
    seconds = 0.0
    for draw in range(2):  # the first one also allocates memory
        start = time.process_time()
        plan.generate(sample, prompt, draw=draw)
        seconds = time.process_time() - start
    return {"seconds": seconds, "size": list(sample.channels.shape)}


def edit_metrics(folder: Path, phantoms: PhantomCohort) -> dict[str, Any]:
    """Return effects of edits against the truth, and means over cases of the other metrics."""
    metrics = pd.read_csv(folder / "metrics.csv")
    is_edit = metrics["metric"].str.startswith(("composition", "reversibility", "edit_change"))
    means = metrics[is_edit].groupby(["region", "metric"])["value"].mean()
    return {
        "effects": measured_effects(folder, phantoms),
        "means": {f"{region}: {metric}": float(value) for (region, metric), value in means.items()},
    }


def log_figures(figures: Mapping[str, Any]) -> None:
    """Log all figures, one line per column or mean."""
    for column, by_steps in figures["steps"].items():
        texts = [f"{100 * value:.0f} % ({steps})" for steps, value in by_steps.items()]
        message = "%s: lung effects differ from those of the last number of steps by %s."
        log.info(message, column, ", ".join(texts))
    for steps, detail in figures["detail"].items():
        message = "%s steps: detail SD in the lungs %.1f HU, %.2f of the last number of steps, "
        message += "%.2f of the scans."
        log.info(message, steps, detail["hu"], detail["over_last"], detail["over_scans"])
    for steps, volume in figures["time"].items():
        size = "x".join(map(str, volume["size"]))
        message = "%s steps: a volume of %s takes %.1f processor seconds (64x64x48: %g asked)."
        log.info(message, steps, size, volume["seconds"], SECONDS_ASKED)
    runs = {f"{steps} steps": effects for steps, effects in figures["effects"].items()}
    for name, effects in {**runs, "edits": figures["edits"]["effects"]}.items():
        for column, regions in effects.items():
            lungs = {"slope": float("nan"), "signs_right": float("nan"), **regions["lungs"]}
            message = "%s, %s: slope %.2f, signs right %.2f, mean absolute %.1f HU"
            values = (lungs["slope"], lungs["signs_right"], lungs["mean_abs"])
            log.info(message, name, column, *values)
    for name, value in figures["edits"]["means"].items():
        log.info("%s: %.2f", name, value)


def main(argv: Sequence[str] | None = None) -> None:
    """Generate, measure and write the figures."""
    o = parse(DiffusionBenchmarkCommand, __doc__ or "", argv)
    if not o.benchmark.OUT:
        raise UserError("--OUT is not given; it is the folder for results and figures.")
    phantoms = PhantomCohort.from_folder(Path(o.source.dataroot))
    effects: dict[int, Any] = {}
    folders: dict[int, Path] = {}
    seconds: dict[str, Any] = {}
    for steps in o.benchmark.steps:
        sampling = replace(o.sampling, sampling_steps=steps)
        seconds[str(steps)] = sample_seconds(o, sampling)
        folders[steps] = generate_results(o, f"steps_{steps}", sampling, EditOptions())
        effects[steps] = measured_effects(folders[steps], phantoms)
    edits = generate_results(o, "edits", o.sampling, replace(o.edit, edit_real=True))
    figures = {
        "effects": effects,
        "steps": compare_steps(effects),
        "detail": compare_detail(folders),
        "time": seconds,
        "edits": edit_metrics(edits, phantoms),
    }
    write_json(Path(o.benchmark.OUT) / "figures.json", figures)
    log_figures(figures)


if __name__ == "__main__":
    run_command(main)
