"""A run on a few cases that starts from another run, beside one that starts from nothing.

The source is trained on many phantoms; the small cohort has other patients. Both small runs have
the same cases, steps and seed. Reported over the test cases, which no run has seen: error in the
lungs against the true scan, and the effect of smoking against the planted one (HU).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.effects import FineTuningBenchmarkOptions
from options.parser import answer_early, parse_command

answer_early(__name__, FineTuningBenchmarkOptions, __doc__ or "")  # the imports below are slow


import numpy as np

from benchmarks.common import flag_words, train_run
from data.phantom.cohort import PhantomCohort
from data.phantom.write import make_phantom_cohort
from data.volumes import load_volume
from options.phantom_options import PhantomOptions
from options.test_options import CaseOptions, InterventionOptions, ModelOptions, TestOptions
from pipelines.generation.plan import open_plan, open_run
from util.cli import run_command
from util.files import write_json

log = logging.getLogger(__name__)

EFFECT = "SMOKING HISTORY=Never smoker,Current smoker"
TEST_CASES = 6
EMA = 0.95  # decay of the moving average


def make_cohort(o: FineTuningBenchmarkOptions, name: str, cases: int, seed: int) -> Path:
    """Make a phantom cohort, unless it is there."""
    folder = Path(o.work) / name
    total = cases + TEST_CASES
    make_phantom_cohort(
        PhantomOptions(str(folder), total, o.size, seed=seed, test_cases=TEST_CASES, val_cases=0)
    )
    return folder


def train_all(o: FineTuningBenchmarkOptions, source: Path, small: Path) -> dict[str, Path]:
    """Train the source, and the small cohort from it and from nothing."""
    runs = Path(o.work) / "runs"
    # Few steps: with the default decay, the average would still be of the first weights.
    common = flag_words(template="aiib23", text_encoder="table", val_cases=0, seed=o.seed, ema=EMA)
    preset = ["--preset", "cpu"]
    data = flag_words(dataroot=source, max_steps=o.source_steps)
    train_run(runs / "source", [*common, *data], preset)
    data = flag_words(dataroot=small, max_steps=o.steps)
    start = flag_words(init_from="source")
    train_run(runs / "from_source", [*common, *data], [*preset, *start])
    train_run(runs / "from_nothing", [*common, *data], preset)
    return {name: runs / name for name in ("source", "from_source", "from_nothing")}


def measure(run: Path, dataroot: Path) -> dict[str, float]:
    """Return the errors of a run on the test cases, HU."""
    options = TestOptions(
        source=CaseOptions(dataroot=str(dataroot)),
        model=ModelOptions(name=run.name, checkpoints_dir=str(run.parent)),
        arms=InterventionOptions(vary=(EFFECT,)),
    )
    plan = open_plan(options, open_run(options))
    phantoms = PhantomCohort.from_folder(dataroot)
    errors, effects, planted = [], [], []
    for sample in plan.samples:
        variants = plan.variants(sample.case)
        first, second = variants.counterfactual[0]
        prompts = [variants.factual.prompt, first.prompt, second.prompt]
        own, before, after = plan.generate_all(sample, prompts)
        lungs = np.isin(sample.labels, plan.data.lung_labels)
        assert sample.case.image is not None
        real = load_volume(sample.case.image).array
        errors.append(float(np.abs(own - real)[lungs].mean()))
        effects.append(float((after - before)[lungs].mean()))
        low, high = (
            phantoms.render(sample.case.id, {first.column: v}, noise=False).hu[lungs].mean()
            for v in (first.value, second.value)
        )
        planted.append(float(high - low))
    return {
        "error_hu": float(np.mean(errors)),
        "effect_hu": float(np.mean(effects)),
        "planted_hu": float(np.mean(planted)),
        "effect_error_hu": float(np.mean(np.abs(np.subtract(effects, planted)))),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train and compare."""
    o = parse_command(FineTuningBenchmarkOptions, __doc__ or "", argv)
    source = make_cohort(o, "many", o.source_cases, o.seed + 1)
    small = make_cohort(o, "few", o.cases, o.seed + 2)
    figures = {}
    for name, run in train_all(o, source, small).items():
        figures[name] = measure(run, small)
        log.info(
            "%s: %.1f HU error in the lungs, effect of smoking %+.1f HU (planted %+.1f), off by "
            "%.1f HU per case.",
            name,
            *figures[name].values(),
        )
    if o.json:
        write_json(Path(o.json), figures)


if __name__ == "__main__":
    run_command(main)
