"""Measure whether synthetic volumes help to classify a rare diagnosis of phantoms.

One diagnosis has a tenth of the training cases; the cohort is expanded to balance. Each seed is a
whole repetition: its own patients, generator (trained on the imbalanced cohort alone), synthetic
volumes and classifiers. OUT/figures.json and OUT/table.md hold the figures. Finished parts are
kept, so that a stopped benchmark resumes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages
from benchmarks.common import flag_words, train_run
from data.phantom.cohort import PhantomCohort
from data.phantom.rows import DIAGNOSIS, LEVELS
from data.phantom.write import make_phantom_cohort
from data.splits import save_splits
from options.base_options import DataOptions
from options.benchmark_options import ExpandBenchmarkCommand, ExpandBenchmarkOptions
from options.expand_options import DeformOptions, ExpandCommand, ExpandOptions
from options.parser import parse
from options.phantom_options import PhantomOptions
from options.test_options import ModelOptions
from options.utility_options import UtilityCommand, UtilityOptions
from pipelines.synthesis import run as synthesis
from pipelines.synthesis import utility
from util.cli import run_command
from util.files import write_json
from util.training.runs import SPLITS_FILE

log = logging.getLogger(__name__)

RARE = "IPF"


def imbalanced_cohort(b: ExpandBenchmarkOptions, seed: int) -> Path:
    """Make a phantom cohort with few training cases of the rare diagnosis; return its folder."""
    options = PhantomOptions(
        OUT=f"{b.OUT}/cohorts/seed{seed}",
        cases=len(LEVELS[DIAGNOSIS]) * (b.common + b.tests),
        size=b.size,
        seed=seed,
        test_cases=b.tests,
        val_cases=0,
        missing=0.12,
        patient_sd=b.patient_sd,
    )
    root = make_phantom_cohort(options)
    phantoms = PhantomCohort.from_folder(root)
    quota = {value: b.rare if value == RARE else b.common for value in LEVELS[DIAGNOSIS]}
    training: list[str] = []
    for case in phantoms.splits["train"]:
        value = phantoms.rows[case][DIAGNOSIS]
        if quota[value]:
            quota[value] -= 1
            training.append(case)
    splits = {"train": tuple(training), "val": (), "test": phantoms.splits["test"]}
    save_splits(root / SPLITS_FILE, splits)
    return root


def train_generator(b: ExpandBenchmarkOptions, root: Path, seed: int) -> ModelOptions:
    """Train a generator on the cohort, unless it is finished; a stopped one is resumed."""
    model = ModelOptions(name=f"seed{seed}", checkpoints_dir=f"{b.OUT}/runs")
    first_words = flag_words(
        dataroot=root,
        preset="cpu",
        template="aiib23",
        val_cases=0,
        seed=seed,
        save_latest_freq=50,
    )
    folder = Path(model.checkpoints_dir) / model.name
    words = flag_words(max_steps=b.max_steps)
    train_run(folder, words, [*first_words, *b.train_flags.split()])
    return model


def run_repetition(o: ExpandBenchmarkCommand, seed: int) -> dict[str, Any]:
    """Return the figures of one seed, from cohort and generator to expansion and classifiers."""
    b = o.benchmark
    root = imbalanced_cohort(b, seed)
    model = train_generator(b, root, seed)
    name = f"seed{seed}_{b.rows}_{b.n}"
    expansion = ExpandOptions(
        dataroot=str(root),
        balance=(DIAGNOSIS,),
        goal="together",
        rows=b.rows,
        n=b.n,
        seed=seed,
        out=f"{b.OUT}/synthetic/{name}",
    )
    synthetic = synthesis.synthesise_cohort(ExpandCommand(expansion, model, deform=DeformOptions()))
    classification = UtilityOptions(
        synthetic=str(synthetic),
        column=DIAGNOSIS,
        seeds=tuple(10 * seed + k for k in range(b.classifiers)),
        out=f"{b.OUT}/utility/{name}",
    )
    data = DataOptions(dataroot=str(root), template="aiib23")
    return utility.measure_utility(UtilityCommand(classification, data, o.classifier))


def accuracy_table(figures: Mapping[int, Mapping[str, Any]]) -> str:
    """Return the figures of all repetitions as Markdown."""
    by_volume = [
        "| seed | trained on | volumes | balanced accuracy (95 % interval over test scans) | AUC |",
        "|---|---|---|---|---|",
    ]
    by_arm = [
        "| seed | trained on | mean balanced accuracy | minus real alone (95 % interval) |",
        "|---|---|---|---|",
    ]
    for seed, repetition in figures.items():
        for row in repetition["rows"]:
            accuracy = f"{row['balanced_accuracy']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
            cells = (seed, row["arm"], row["volumes"], accuracy, f"{row['auc']:.3f}")
            by_volume.append(f"| {' | '.join(map(str, cells))} |")
        for arm, mean in repetition["summary"].items():
            gain = f"{mean['minus_real']:+.3f} ({mean['low']:+.3f} to {mean['high']:+.3f})"
            by_arm.append(f"| {seed} | {arm} | {mean['mean']:.3f} | {gain} |")
    wins = f"{count_wins(figures)} of {len(figures)} seeds"
    result = f"Real plus synthetic at least as good as real alone in {wins}."
    return "\n".join([*by_volume, "", *by_arm, "", result])


def count_wins(figures: Mapping[int, Mapping[str, Any]]) -> int:
    """Count the repetitions in which real plus synthetic is at least as good as real alone."""
    return sum(f["summary"]["both"]["minus_real"] >= 0 for f in figures.values())


def main() -> None:
    """Run all repetitions and write figures and table."""
    o = parse(ExpandBenchmarkCommand, __doc__ or "")
    out = Path(o.benchmark.OUT)
    figures = {seed: run_repetition(o, seed) for seed in o.benchmark.seeds}
    text = accuracy_table(figures)
    write_json(out / "figures.json", {"wins": count_wins(figures), "seeds": figures})
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    log.info("%s", text)


if __name__ == "__main__":
    run_command(main)
