"""Proof of a diffusion run on planted truth: effects with few and with many steps, and edits of
real (phantom) scans.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

import pandas as pd

import test
from benchmarks.report.planted_truth import VARIED, effect_figures, true_effects
from data.phantom.cohort import PhantomCohort
from options.benchmark_options import DiffusionBenchmarkCommand
from options.diffusion_options import EditOptions, SamplingOptions
from options.parser import parse
from options.test_options import InterventionOptions, OutputOptions, TestOptions
from util.cli import UserError, run_command
from util.files import write_json

log = logging.getLogger(__name__)


def generate_results(
    o: DiffusionBenchmarkCommand, name: str, sampling: SamplingOptions, edit: EditOptions
) -> Path:
    """A folder of results, as test.py makes them."""
    varied = tuple(f"{c}={','.join(VARIED[c])}" for c in o.benchmark.columns or VARIED)
    output = OutputOptions(results_dir=f"{o.benchmark.OUT}/{name}", overwrite=True, page=edit.edit_real)
    return test.generate_cohort(
        TestOptions(o.source, o.model, InterventionOptions(vary=varied), sampling, edit, output)
    )


def measured_effects(folder: Path, phantoms: PhantomCohort) -> dict[str, Any]:
    """Figures of each column's effect, by region, against the same patient rendered again."""
    return effect_figures(
        true_effects(phantoms, pd.read_csv(folder / "effects.csv", dtype={"from": str, "to": str}))
    )


def compare_steps(found: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """For each number of steps the largest relative difference of a column's lung effects from
    those of the last.
    """
    last = list(found)[-1]
    differences: dict[str, dict[str, float]] = {}
    for steps, effects in found.items():
        for column in effects:
            pairs, reference = (e[column]["lungs"]["pairs"] for e in (effects, found[last]))
            size = sum(abs(made) for made, _ in reference.values())
            change = sum(abs(pairs[k][0] - reference[k][0]) for k in reference)
            differences.setdefault(column, {})[str(steps)] = change / size if size else 0.0
    return differences


def edit_metrics(folder: Path, phantoms: PhantomCohort) -> dict[str, Any]:
    """Effects of edits against the truth, and means over cases of the rest, HU."""
    metrics = pd.read_csv(folder / "metrics.csv")
    mine = metrics[
        metrics["metric"].str.startswith(("composition", "reversibility", "edit_change"))
    ]
    means = mine.groupby(["region", "metric"])["value"].mean()
    return {
        "effects": measured_effects(folder, phantoms),
        "means": {f"{region}: {metric}": float(value) for (region, metric), value in means.items()},
    }


def main(argv: Sequence[str] | None = None) -> None:
    o = parse(DiffusionBenchmarkCommand, __doc__ or "", argv)
    if not o.benchmark.OUT:
        raise UserError("--OUT is not given; it is the folder for results and figures.")
    if unknown := sorted(set(o.benchmark.columns) - set(VARIED)):
        raise UserError(f"--columns is {unknown[0]!r}; it must be one of: {', '.join(VARIED)}.")
    phantoms = PhantomCohort.from_folder(Path(o.source.dataroot))
    found: dict[int, Any] = {}
    for steps in o.benchmark.steps:
        folder = generate_results(
            o, f"steps_{steps}", replace(o.sampling, sampling_steps=steps), EditOptions()
        )
        found[steps] = measured_effects(folder, phantoms)
    edits = edit_metrics(generate_results(o, "edits", o.sampling, replace(o.edit, edit_real=True)), phantoms)
    figures: dict[str, Any] = {"effects": found, "steps": compare_steps(found), "edits": edits}
    write_json(Path(o.benchmark.OUT) / "figures.json", figures)
    for column, by_steps in figures["steps"].items():
        log.info(
            "%s: lung effects differ from those of %d steps by %s.",
            column,
            o.benchmark.steps[-1],
            ", ".join(f"{100 * v:.0f} %% (%s)" % k for k, v in by_steps.items()),
        )
    for what, effects in (
        *((f"{steps} steps", e) for steps, e in found.items()),
        ("edits", edits["effects"]),
    ):
        for column, regions in effects.items():
            lungs = regions["lungs"]
            log.info(
                "%s, %s: slope %.2f, signs right %.2f, mean absolute %.1f HU",
                what,
                column,
                lungs.get("slope", float("nan")),
                lungs.get("signs_right", float("nan")),
                lungs["mean_abs"],
            )
    for name, value in edits["means"].items():
        log.info("%s: %.2f", name, value)


if __name__ == "__main__":
    run_command(main)
