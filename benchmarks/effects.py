"""Compare the effects that a trained run reveals with effects planted in phantom cohorts.

Each finished configuration (a cohort and a way to train) is kept in OUT/cells as JSON, so
that a stopped benchmark resumes. OUT/tables.md and OUT/index.html compare all finished ones.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.effects import CONFIGURATIONS, EffectsBenchmarkOptions
from options.parser import answer_early, parse

answer_early(__name__, EffectsBenchmarkOptions, __doc__ or "")  # the imports below are slow

import test
import train
from benchmarks.common import flag_words, minilm_folder
from benchmarks.report.effects_page import write_effects_page
from benchmarks.report.effects_tables import (
    control_frame,
    incomplete_frame,
    mean_over_seeds,
    pair_frame,
    slope_frame,
)
from benchmarks.report.planted_truth import NULL_COLUMN, VARIED, compare_with_truth, prompt_metrics
from data.phantom.cohort import PhantomCohort
from data.phantom.write import make_phantom_cohort
from options.clip_options import ClipCommand
from options.phantom_options import PhantomOptions
from options.test_options import TestOptions
from pipelines import clip_pretraining
from pipelines.generation.plan import open_plan, open_run
from util.cli import run_command
from util.files import read_json, write_json
from util.markdown import markdown_table

log = logging.getLogger(__name__)

REAL = [column for column in VARIED if column != NULL_COLUMN]


def cohort_suffix(o: EffectsBenchmarkOptions) -> str:
    """Return the part of a cohort's name that holds its settings."""
    tied = f"_tied{o.confounding:g}" if o.confounding else ""
    return f"n{o.cases}_sd{o.patient_sd:g}{tied}"


def make_cohort(o: EffectsBenchmarkOptions, seed: int) -> Path:
    """Make the phantom cohort of a seed; return its folder."""
    size = "x".join(map(str, o.size))
    out = Path(o.OUT) / "cohorts" / f"{cohort_suffix(o)}_{size}_seed{seed}"
    options = PhantomOptions(
        OUT=str(out),
        cases=o.cases + o.test_cases,
        size=o.size,
        seed=seed,
        test_cases=o.test_cases,
        val_cases=0,
        missing=o.missing,
        patient_sd=o.patient_sd,
        confounding=o.confounding,
    )
    return make_phantom_cohort(options)


def make_encoder(
    kind: str, o: EffectsBenchmarkOptions, cohort: Path, seed: int
) -> tuple[str, float]:
    """Return the value of --text_encoder, and the seconds of its training."""
    if kind == "table":
        return kind, 0.0
    if kind == "minilm":
        return minilm_folder(), 0.0
    out = Path(o.OUT) / "clip" / cohort.name
    words = flag_words(dataroot=cohort, out=out, template="aiib23", seed=seed)
    if o.clip_steps:
        words += flag_words(clip_steps=o.clip_steps)
    timing = out.with_name(f"{out.name}.seconds.json")
    start = time.perf_counter()
    clip_pretraining.pretrain_clip(parse(ClipCommand, "", words))
    if not timing.exists():
        write_json(timing, time.perf_counter() - start)
    return str(out), float(read_json(timing))


def train_configuration(
    name: str, o: EffectsBenchmarkOptions, seed: int, cohort: Path, encoder: str
) -> float:
    """Train the run of a configuration; return the seconds."""
    words = flag_words(
        dataroot=cohort,
        name=configuration_key(name, o, seed),
        checkpoints_dir=f"{o.OUT}/runs",
        overwrite=True,
        preset="cpu",
        template="aiib23",
        text_encoder=encoder,
        val_cases=0,
        cache_dir=f"{o.OUT}/cache",
        seed=seed,
    )
    words += [*CONFIGURATIONS[name][1], *o.train_flags.split()]
    if o.max_steps:
        words += flag_words(max_steps=o.max_steps)
    start = time.perf_counter()
    train.train(train.read_options(words))
    return time.perf_counter() - start


def generation_options(run: str, o: EffectsBenchmarkOptions, cohort: Path) -> TestOptions:
    """Return the options of test.py, which varies every column with a planted effect."""
    words = flag_words(
        dataroot=cohort,
        name=run,
        checkpoints_dir=f"{o.OUT}/runs",
        results_dir=f"{o.OUT}/results",
        overwrite=True,
    )
    words.append("--no-page")
    for column, values in VARIED.items():
        words += flag_words(vary=f"{column}={','.join(values)}")
    return parse(TestOptions, "", [*words, *o.test_flags.split()])


def run_configuration(name: str, o: EffectsBenchmarkOptions, seed: int) -> dict[str, Any]:
    """Return the figures of a configuration, from cohort and CLIP to training and test."""
    kind, flags = CONFIGURATIONS[name]
    cohort = make_cohort(o, seed)
    encoder, encoder_seconds = make_encoder(kind, o, cohort, seed)
    seconds = train_configuration(name, o, seed, cohort, encoder)
    options = generation_options(configuration_key(name, o, seed), o, cohort)
    results = test.generate_cohort(options)
    figures = {
        "cell": name,
        "seed": seed,
        "cases": o.cases,
        "patient_sd": o.patient_sd,
        "confounding": o.confounding,
        "size": o.size,
        "tag": o.tag,
        "flags": [*flags, *o.train_flags.split()],
        "train_seconds": seconds,
        "encoder_seconds": encoder_seconds,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    figures |= compare_with_truth(cohort, results)
    if o.text:
        figures["text"] = measure_text(options, cohort)
    return figures


def measure_text(options: TestOptions, cohort: Path) -> dict[str, Any]:
    """Return effects of phrase order, wording and unseen ages on the volumes of a run."""
    trained = open_run(options)
    opened = open_plan(options, trained)
    return prompt_metrics(
        opened.generate,
        opened.samples,
        opened.prompts,
        opened.template,
        PhantomCohort.from_folder(cohort),
    )


def configuration_key(name: str, o: EffectsBenchmarkOptions, seed: int) -> str:
    """Return the name of a configuration's run and figures."""
    return f"{name}_{cohort_suffix(o)}_seed{seed}{o.tag}".replace(" ", "-")


def summary_tables(configurations: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures of configurations, mean over seeds, as Markdown."""
    frames = (
        slope_frame(configurations, REAL),
        incomplete_frame(configurations, REAL),
        pair_frame(configurations),
        control_frame(configurations, NULL_COLUMN),
    )
    return "\n\n".join(markdown_table(mean_over_seeds(frame)) for frame in frames)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the configurations that are not finished, and write tables and page."""
    o = parse(EffectsBenchmarkOptions, __doc__ or "", argv)
    folder = Path(o.OUT) / "cells"
    for seed in o.seeds:
        for name in o.configurations or ("default",):
            path = folder / f"{configuration_key(name, o, seed)}.json"
            if path.exists():
                log.info("%s is finished; it is kept.", path)
                continue
            write_json(path, run_configuration(name, o, seed))
            log.info("%s\n%s", path, summary_tables([read_json(path)]))
    finished = [read_json(path) for path in sorted(folder.glob("*.json"))]
    text = summary_tables(finished)
    (Path(o.OUT) / "tables.md").write_text(text + "\n")
    page = write_effects_page(Path(o.OUT), finished, REAL, NULL_COLUMN)
    log.info("All finished configurations (%s):\n\n%s", page, text)


if __name__ == "__main__":
    run_command(main)
