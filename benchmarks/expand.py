"""Is a rare diagnosis told better with synthetic volumes? Phantoms with one diagnosis at a tenth,
expanded to balance.

Each seed is a whole repetition: its own patients, generator (trained on the imbalanced cohort
alone), synthetic volumes and classifiers. OUT/figures.json and OUT/table.md hold the figures; what
is finished is kept, so a stopped benchmark goes on.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages
import train
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
from util.training import checkpoint
from util.training.runs import SPLITS_FILE

log = logging.getLogger(__name__)

RARE = "IPF"


def imbalanced_cohort(b: ExpandBenchmarkOptions, seed: int) -> Path:
    """A phantom cohort whose training split has few cases of the rare diagnosis."""
    levels = len(LEVELS[DIAGNOSIS])
    root = make_phantom_cohort(
        PhantomOptions(
            OUT=f"{b.OUT}/cohorts/seed{seed}",
            cases=levels * (b.common + b.tests),
            size=b.size,
            seed=seed,
            test_cases=b.tests,
            val_cases=0,
            missing=0.12,
            patient_sd=b.patient_sd,
        )
    )
    phantoms = PhantomCohort.from_folder(root)
    quota = {value: b.rare if value == RARE else b.common for value in LEVELS[DIAGNOSIS]}
    kept: list[str] = []
    for case in phantoms.splits["train"]:
        value = phantoms.rows[case][DIAGNOSIS]
        if quota[value]:
            quota[value] -= 1
            kept.append(case)
    save_splits(
        root / SPLITS_FILE, {"train": tuple(kept), "val": (), "test": phantoms.splits["test"]}
    )
    return root


def train_generator(b: ExpandBenchmarkOptions, root: Path, seed: int) -> ModelOptions:
    """A generator trained on the cohort; one that is there is used, or goes on where it stopped."""
    model = ModelOptions(name=f"seed{seed}", checkpoints_dir=f"{b.OUT}/runs")
    folder = Path(model.checkpoints_dir) / model.name
    words = [
        "--name",
        model.name,
        "--checkpoints_dir",
        model.checkpoints_dir,
        "--max_steps",
        str(b.max_steps),
    ]
    started = (folder / "latest" / checkpoint.STATE_FILE).is_file()
    if not started:
        train.train(
            train.read_options(
                [
                    *words,
                    "--dataroot",
                    str(root),
                    "--overwrite",
                    "--preset",
                    "cpu",
                    "--template",
                    "aiib23",
                    "--val_cases",
                    "0",
                    "--seed",
                    str(seed),
                    "--save_latest_freq",
                    "50",
                    *b.train_flags.split(),
                ]
            )
        )
    elif checkpoint.load_state(folder / "latest")["step"] < b.max_steps:
        train.train(train.read_options([*words, "--continue_train"]))
    return model


def run_repetition(o: ExpandBenchmarkCommand, seed: int) -> dict[str, Any]:
    """One seed: cohort, generator, expansion, classifiers."""
    b = o.benchmark
    root = imbalanced_cohort(b, seed)
    model = train_generator(b, root, seed)
    made = synthesis.synthesise_cohort(
        ExpandCommand(
            ExpandOptions(
                dataroot=str(root),
                balance=DIAGNOSIS,
                goal="together",
                rows=b.rows,
                n=b.n,
                seed=seed,
                out=f"{b.OUT}/synthetic/seed{seed}_{b.rows}_{b.n}",
            ),
            model,
            DeformOptions(),
        )
    )
    return utility.measure_utility(
        UtilityCommand(
            UtilityOptions(
                synthetic=str(made),
                column=DIAGNOSIS,
                seeds=tuple(10 * seed + k for k in range(b.classifiers)),
                out=f"{b.OUT}/utility/seed{seed}_{b.rows}_{b.n}",
            ),
            replace(DataOptions(), dataroot=str(root), template="aiib23"),
            o.classifier,
        )
    )


def accuracy_table(found: Mapping[int, Mapping[str, Any]]) -> str:
    """All repetitions in Markdown."""
    lines = [
        "| seed | trained on | volumes | balanced accuracy (95 % interval over test scans) | AUC |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {seed} | {r['arm']} | {r['volumes']} | {r['balanced_accuracy']:.3f} ({r['low']:.3f} to "
        f"{r['high']:.3f}) | {r['auc']:.3f} |"
        for seed, f in found.items()
        for r in f["rows"]
    ]
    lines += [
        "",
        "| seed | trained on | mean balanced accuracy | minus real alone (95 % interval) |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {seed} | {arm} | {m['mean']:.3f} | {m['minus_real']:+.3f} ({m['low']:+.3f} to "
        f"{m['high']:+.3f}) |"
        for seed, f in found.items()
        for arm, m in f["summary"].items()
    ]
    lines += [
        "",
        f"Real plus synthetic at least as good as real alone in {count_wins(found)} of {len(found)} "
        "seeds.",
    ]
    return "\n".join(lines)


def count_wins(found: Mapping[int, Mapping[str, Any]]) -> int:
    """In how many repetitions real plus synthetic is at least as good as real alone."""
    return sum(f["summary"]["both"]["minus_real"] >= 0 for f in found.values())


def main() -> None:
    o = parse(ExpandBenchmarkCommand, __doc__ or "")
    found = {seed: run_repetition(o, seed) for seed in o.benchmark.seeds}
    text = accuracy_table(found)
    write_json(Path(o.benchmark.OUT) / "figures.json", {"wins": count_wins(found), "seeds": found})
    (Path(o.benchmark.OUT) / "table.md").write_text(text + "\n", encoding="utf-8")
    log.info("%s", text)


if __name__ == "__main__":
    run_command(main)
