"""Compare true and generated effects of every kind, in phantoms and in real anatomy.

Groups of planted columns share a cohort: texture, sparse disease, interactions, rare values, and
fat outside the lungs. Each finished configuration (group, seed, model) is kept in OUT/cells as
JSON, so that a stopped benchmark resumes. OUT/tables.md compares all finished ones with the truth
and with baselines that need no network.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.effects import KindsBenchmarkOptions
from options.parser import answer_early, parse

answer_early(__name__, KindsBenchmarkOptions, __doc__ or "")  # the imports below are slow

from benchmarks.common import encoder_flag, flag_words, generate_row, train_run
from benchmarks.real_chests import deformed_chests, find_chests, split_chests
from benchmarks.report.kinds_baselines import BASELINE_NAMES, baselines
from benchmarks.report.kinds_measure import Generate, Hu, measure_effects, measure_texture
from benchmarks.report.kinds_tables import summary
from data.phantom.cohort import NOISE_HU
from data.phantom.kinds.cohort import (
    RECORD,
    KindsCohort,
    SourceChest,
    Variation,
    make_kinds_cohort,
    phantom_chests,
)
from data.phantom.kinds.columns import GROUPS
from data.phantom.rows import Row
from options.test_options import TestOptions
from pipelines.generation.plan import open_plan, open_run
from util.cli import UserError, run_command
from util.files import read_json, write_json

log = logging.getLogger(__name__)

MODELS: dict[str, tuple[str, ...]] = {
    "pix2pixhd": ("--model", "pix2pixhd"),
    "diffusion": ("--model", "diffusion"),
}
LOCKED_SEEDS = (101, 102, 103)  # not looked at while anything is tuned


def anatomy(o: KindsBenchmarkOptions) -> str:
    """Return the name of the cohorts' anatomy."""
    return "real" if o.chests else "phantom"


def cohort_folder(o: KindsBenchmarkOptions, group: str, seed: int) -> Path:
    """Return the folder of a cohort, whose name holds its settings."""
    grid = f"{o.spacing:g}mm" if o.chests else "x".join(map(str, o.size))
    settings = f"n{o.cases}_test{o.test_cases}_sd{o.patient_sd:g}_{grid}"
    return Path(o.OUT) / "cohorts" / f"{group}_{anatomy(o)}_{settings}_seed{seed}"


def make_cohort(o: KindsBenchmarkOptions, group: str, seed: int) -> KindsCohort:
    """Make the cohort of a group and a seed; all groups of a seed have the same patients."""
    if o.cases <= o.test_cases:
        raise UserError(
            f"--cases is {o.cases}, and --test_cases takes {o.test_cases} of them; none is left to "
            f"train on. Give at least {o.test_cases + 1}."
        )
    cases = tuple(f"case_{i + 1:03d}" for i in range(o.cases))
    splits = {"train": cases[: -o.test_cases], "test": cases[-o.test_cases :]}
    finished = [cohort_folder(o, name, seed) for name in GROUPS]
    finished = [folder for folder in finished if (folder / RECORD).is_file()]
    chests: Iterable[SourceChest]
    if finished:
        chests = KindsCohort.from_folder(finished[0]).chests()
    elif o.chests:
        sources = split_chests(find_chests(o.chests), seed)
        chests = deformed_chests(splits, sources, o.spacing, seed)
    else:
        chests = phantom_chests(cases, seed, o.size)
    root = make_kinds_cohort(
        cohort_folder(o, group, seed),
        group,
        splits,
        chests,
        seed,
        Variation(0.0 if o.chests else NOISE_HU, o.patient_sd),
    )
    return KindsCohort.from_folder(root)


def configuration_key(o: KindsBenchmarkOptions, group: str, seed: int, model: str) -> str:
    """Return the name of a configuration's run and figures."""
    tag = "" if model in BASELINE_NAMES else o.tag
    return f"{group}_{anatomy(o)}_seed{seed}_{model}{tag}".replace(" ", "-")


def train_configuration(
    o: KindsBenchmarkOptions, cohort: KindsCohort, seed: int, model: str
) -> float:
    """Train the run of a configuration; return the seconds."""
    first = flag_words(
        dataroot=cohort.root,
        preset="cpu",
        template="auto",
        text_encoder=encoder_flag(o.text_encoder),
        val_cases=0,
        cache_dir=f"{o.OUT}/cache",
        seed=seed,
    )
    first += [*MODELS[model], *cohort.columns.train_flags]
    if o.max_steps:
        first += flag_words(max_steps=o.max_steps)
    first += o.train_flags.split()
    run = Path(o.OUT) / "runs" / configuration_key(o, cohort.group, seed, model)
    start = time.perf_counter()
    train_run(run, (), first)
    return time.perf_counter() - start


def open_generator(
    o: KindsBenchmarkOptions, cohort: KindsCohort, seed: int, model: str
) -> Generate:
    """Return the generation of a test case's volume for a row, by the trained run."""
    words = flag_words(
        dataroot=cohort.root,
        name=configuration_key(o, cohort.group, seed, model),
        checkpoints_dir=f"{o.OUT}/runs",
        tile=(0, 0, 0),
    )
    options = parse(TestOptions, "", [*words, *o.test_flags.split()])
    plan = open_plan(options, open_run(options))
    samples = {sample.name: sample for sample in plan.samples}

    def generate(case: str, row: Row, draw: int) -> Hu:
        return generate_row(plan, samples[case], row, draw)

    return generate


def run_configuration(
    o: KindsBenchmarkOptions, group: str, seed: int, model: str
) -> dict[str, Any]:
    """Return the figures of a configuration, from cohort and training to measurement."""
    cohort = make_cohort(o, group, seed)
    train_seconds = 0.0
    if model in MODELS:
        train_seconds = train_configuration(o, cohort, seed, model)
        generate = open_generator(o, cohort, seed, model)
    else:
        generate = baselines(cohort, seed)[model]
    start = time.perf_counter()
    effects = measure_effects(cohort, generate, o.draws)
    texture = measure_texture(cohort, generate)
    is_trained = model in MODELS
    return {
        "group": group,
        "anatomy": anatomy(o),
        "seed": seed,
        "model": model + (o.tag if is_trained else ""),
        "flags": o.train_flags.split() if is_trained else [],
        "draws": o.draws,
        "train_seconds": train_seconds,
        "generation_seconds": time.perf_counter() - start,
        "effects": effects,
        "texture": texture,
    }


def check_seeds(o: KindsBenchmarkOptions) -> None:
    """Raise `UserError` for a locked seed."""
    locked = sorted(set(o.seeds) & set(LOCKED_SEEDS))
    if locked and not o.locked:
        raise UserError(
            f"--seeds holds {locked[0]}, which is kept for the final measurement: what was tuned "
            "on it proves nothing. Use other seeds, or add --locked once tuning is over."
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the configurations that are not finished, and write the tables."""
    o = parse(KindsBenchmarkOptions, __doc__ or "", argv)
    check_seeds(o)
    folder = Path(o.OUT) / "cells"
    for seed in o.seeds:
        for group in o.groups or tuple(GROUPS):
            for model in (*BASELINE_NAMES, *(o.models or tuple(MODELS))):
                path = folder / f"{configuration_key(o, group, seed, model)}.json"
                if path.exists():
                    log.info("%s is finished; it is kept.", path)
                    continue
                write_json(path, run_configuration(o, group, seed, model))
                log.info("%s is finished.", path)
    text = summary([read_json(path) for path in sorted(folder.glob("*.json"))])
    (Path(o.OUT) / "tables.md").write_text(text + "\n")
    log.info("All finished configurations:\n\n%s", text)


if __name__ == "__main__":
    run_command(main)
