"""Compare the texture of generated lungs with that of scans that were not trained on.

Scanned chests are split into training and test chests. A generator is trained with the defaults,
and one with those of version 0.1. Detail, power by band, vessels and the correlation of two noises
stand beside the scans'; so do the distances of evaluate.py, which need no learned weights to rank
the two.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages
import test
from benchmarks.common import flag_words, train_run
from benchmarks.real_chests import find_chests, split_chests
from benchmarks.report.effects_tables import markdown_table
from data.cohort import IMAGES, MASKS
from options.benchmark_options import TextureBenchmarkCommand, TextureBenchmarkOptions
from options.evaluate_options import EvaluateOptions
from options.parser import parse
from options.test_options import TestOptions
from pipelines.evaluation.run import evaluate
from util.cli import UserError, run_command
from util.files import write_json

log = logging.getLogger(__name__)

# What the defaults were before volumes were drawn twice per sample.
OLD_FLAGS = (
    "--fusion additive --fusion_at output --no-text_effect --no-text_noise --noise_at decoder "
    "--noise_channels 1 --gan_mode lsgan --lambda_gan 0.5 --lambda_mean 0 --lambda_patch 0 "
    "--lambda_quantile 0 --lambda_l1 80 --batch_size 8"
)
MIN_CHESTS = 8  # a quarter of them is tested, and a distance needs two volumes
MODELS = {"version 0.1": OLD_FLAGS, "default": ""}
DISTANCES = ("2.5D FID", "2.5D KID", "Lung histogram")  # metrics of evaluate.py that begin so
MEASURES = ("detail_sd_hu", "vessel_share", "share_below_-950_hu", "percentile_99.5_hu")


def make_cohort(o: TextureBenchmarkOptions) -> Path:
    """Copy the chests into a cohort, whose table says the same of all; return its folder."""
    root = Path(o.OUT) / f"cohort_seed{o.seed}"
    if (root / "splits.json").is_file():
        return root
    chests = split_chests(find_chests(o.chests), o.seed)
    for part in (IMAGES, MASKS):
        (root / part).mkdir(parents=True, exist_ok=True)
    for chest in (chest for group in chests.values() for chest in group):
        shutil.copy(chest.image, root / IMAGES)
        shutil.copy(chest.mask, root / MASKS)
    names = {split: [chest.image.name for chest in group] for split, group in chests.items()}
    rows = [(name, "Chest") for group in names.values() for name in group]
    pd.DataFrame(rows, columns=["File Name", "SCAN"]).to_csv(root / "clinical.csv", index=False)
    write_json(root / "splits.json", {"train": names["train"], "val": [], "test": names["test"]})
    return root


def train_and_test(o: TextureBenchmarkOptions, cohort: Path, model: str) -> Path:
    """Train a model and generate the test chests; return the results folder."""
    name = f"{model.replace(' ', '_')}_seed{o.seed}"
    words = flag_words(dataroot=cohort, text_encoder="table", val_cases=0, seed=o.seed)
    words += flag_words(spacing=(o.spacing,) * 3, cache_dir=Path(o.OUT) / "cache")
    words += [*MODELS[model].split(), *o.train_flags.split()]
    if o.max_steps:
        words += flag_words(max_steps=o.max_steps)
    start = time.perf_counter()
    train_run(Path(o.OUT) / "runs" / name, words, ["--preset", "cpu"])
    log.info("%s: trained in %.0f s.", model, time.perf_counter() - start)
    words = flag_words(dataroot=cohort, name=name, checkpoints_dir=Path(o.OUT) / "runs", draws=2)
    words += flag_words(results_dir=Path(o.OUT) / "results", split="test", overwrite=True)
    words += flag_words(tile=(0, 0, 0))
    return test.generate_cohort(parse(TestOptions, "", words))


def compare(results: Path) -> dict[str, float]:
    """Return generated over real, averaged over test chests, and the correlation of two noises."""
    metrics = pd.read_csv(results / "metrics.csv")
    lungs = metrics[metrics["region"] == "lungs"].pivot_table(
        index="case", columns="metric", values="value"
    )
    power = [name for name in lungs.columns if name.startswith("power_")]
    figures: dict[str, float] = {}
    for name in (*MEASURES, *power):
        if f"real_{name}" in lungs:
            real, generated = lungs[f"real_{name}"].mean(), lungs[name].mean()
            figures[f"{name} real"] = float(real)
            figures[name] = float(generated)
            figures[f"{name} ratio"] = float(generated / real) if real else float("nan")
    figures["noise_correlation"] = float(lungs["noise_correlation"].mean())
    return figures


def measure_distances(o: TextureBenchmarkOptions, cohort: Path, results: Path) -> dict[str, float]:
    """Return FID, KID and Wasserstein-1 of held-out chests and their generated counterparts."""
    out = Path(o.OUT) / "evaluations" / results.parent.name
    words = flag_words(real=cohort, real_split="test", synthetic=results, out=out, match=True)
    evaluate(parse(EvaluateOptions, "", words))
    metrics = pd.read_csv(out / "figures.csv")
    return {
        str(name): float(value)
        for name, value in zip(metrics["name"], metrics["value"], strict=True)
        if str(name).startswith(DISTANCES)
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train both models unless that is done, and write table and figures."""
    o = parse(TextureBenchmarkCommand, __doc__ or "", argv).benchmark
    unknown = sorted(set(o.models) - set(MODELS))
    if unknown:
        raise UserError(f"--models is {unknown[0]!r}; it must be one of: {', '.join(MODELS)}.")
    chests = len(find_chests(o.chests))
    if chests < MIN_CHESTS:
        raise UserError(
            f"--chests hold {chests} chests; {MIN_CHESTS} are needed, of which two are tested."
        )
    cohort = make_cohort(o)
    figures = {}
    for model in o.models or MODELS:
        results = train_and_test(o, cohort, model)
        figures[model] = compare(results) | measure_distances(o, cohort, results)
    write_json(Path(o.OUT) / f"figures_seed{o.seed}.json", figures)
    table = pd.DataFrame(figures).rename_axis("metric").reset_index()
    text = markdown_table(table)
    (Path(o.OUT) / "tables.md").write_text(text + "\n")
    log.info("Held-out chests, lungs:\n\n%s", text)


if __name__ == "__main__":
    run_command(main)
