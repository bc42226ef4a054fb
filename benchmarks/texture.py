"""Compare the texture of generated lungs with that of scans that were not trained on.

Scanned chests are split into training and test chests, once for each seed. A generator is trained
with the defaults, one with those of version 0.1, and a diffusion model. Detail, power by band,
vessels and the correlation of two noises stand beside the scans'; so do the distances of
evaluate.py, which need no learned weights to rank them.

Scanners differ: a chest may hold several times the fine power of another. No text here tells the
test chests' scanners, so no generator can do better than the training chests' own texture, whose
ratio to the test chests' stands beside the generated one, as "scans trained on".
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.effects import TextureBenchmarkOptions
from options.parser import answer_early, parse

answer_early(__name__, TextureBenchmarkOptions, __doc__ or "")  # the imports below are slow

import numpy as np
import pandas as pd

import test
from benchmarks.common import flag_words, train_run
from benchmarks.real_chests import find_chests, split_chests
from data.cohort import IMAGES, MASKS
from data.load_cohort import load_cohort
from data.volume_dataset import VolumeDataset
from options.base_options import DataOptions
from options.evaluate_options import EvaluateOptions
from options.test_options import TestOptions
from pipelines.evaluation.run import evaluate
from util.cli import UserError, run_command
from util.files import read_json, write_json
from util.markdown import markdown_table
from util.metrics.fidelity import lung_metrics

log = logging.getLogger(__name__)

# What the defaults were before volumes were drawn twice per sample.
OLD_FLAGS = (
    "--fusion additive --fusion_at output --no-text_effect --no-text_noise --noise_at decoder "
    "--noise_channels 1 --gan_mode lsgan --lambda_gan 0.5 --lambda_mean 0 --lambda_patch 0 "
    "--lambda_quantile 0 --lambda_l1 80 --batch_size 8"
)
MIN_CHESTS = 8  # a quarter of them is tested, and a distance needs two volumes
MODELS = {"version 0.1": OLD_FLAGS, "default": "", "diffusion": "--model diffusion"}
DISTANCES = ("2.5D FID", "2.5D KID", "Lung histogram")  # metrics of evaluate.py that begin so
TRAINED_ON = " ratio of scans trained on"
MEASURES = ("detail_sd_hu", "vessel_share", "share_below_-950_hu", "percentile_99.5_hu")


def make_cohort(o: TextureBenchmarkOptions, seed: int) -> Path:
    """Copy the chests into a cohort, whose table says the same of all; return its folder."""
    root = Path(o.OUT) / f"cohort_seed{seed}"
    if (root / "splits.json").is_file():
        return root
    chests = split_chests(find_chests(o.chests), seed)
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


def train_and_test(o: TextureBenchmarkOptions, cohort: Path, model: str, seed: int) -> Path:
    """Train a model and generate the test chests; return the results folder."""
    name = f"{model.replace(' ', '_')}_seed{seed}"
    words = flag_words(dataroot=cohort, text_encoder="table", val_cases=0, seed=seed)
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


def training_scans(o: TextureBenchmarkOptions, cohort: Path) -> dict[str, float]:
    """Return the metrics of the lungs of the training chests' scans, averaged over chests."""
    data = DataOptions(dataroot=str(cohort), spacing=(o.spacing,) * 3)
    loaded = load_cohort(data)
    cases = [case for case in loaded.cases if case.id in loaded.splits["train"]]
    measured = []
    for sample in VolumeDataset(cases, loaded.labels, data):
        assert sample.image is not None
        lungs = np.isin(sample.labels, data.lung_labels)
        hu = sample.to_hu(sample.image[0])
        measured.append(lung_metrics(hu, lungs, sample.spacing))
    return {str(name): float(value) for name, value in pd.DataFrame(measured).mean().items()}


def compare(results: Path, trained_on: Mapping[str, float]) -> dict[str, float]:
    """Return generated over real, averaged over test chests, and the correlation of two noises.

    Args:
        results: Folder of the generated test chests.
        trained_on: Metrics of the training chests' scans.
    """
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
            figures[f"{name} ratio"] = _ratio(generated, real)
            figures[name + TRAINED_ON] = _ratio(trained_on[name], real)
    figures["noise_correlation"] = float(lungs["noise_correlation"].mean())
    return figures


def _ratio(value: float, real: float) -> float:
    return float(value / real) if real else float("nan")


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
    """Train the models on each split unless that is done, and write table and figures."""
    o = parse(TextureBenchmarkOptions, __doc__ or "", argv)
    chests = len(find_chests(o.chests))
    if chests < MIN_CHESTS:
        raise UserError(
            f"--chests hold {chests} chests; {MIN_CHESTS} are needed, of which two are tested."
        )
    for seed in o.seeds:
        cohort = make_cohort(o, seed)
        trained_on = training_scans(o, cohort)
        figures = {}
        for model in o.models or MODELS:
            results = train_and_test(o, cohort, model, seed)
            distances = measure_distances(o, cohort, results)
            figures[model] = compare(results, trained_on) | distances
        write_json(Path(o.OUT) / f"figures_seed{seed}.json", figures)
    log.info("Held-out chests, lungs:\n\n%s", write_table(o))


def write_table(o: TextureBenchmarkOptions) -> str:
    """Write OUT/tables.md: a column for each model and seed, and one for the mean over seeds.

    A mean ratio is the ratio of means, because every chest weighs the same.
    """
    columns: dict[str, pd.Series] = {}
    for model in o.models or MODELS:
        found = {
            f"{model}, seed {seed}": read_json(Path(o.OUT) / f"figures_seed{seed}.json")[model]
            for seed in o.seeds
        }
        frame = pd.DataFrame(found)
        mean = frame.mean(axis=1)
        for name in [name for name in mean.index if name.endswith((" ratio", TRAINED_ON))]:
            real = frame.loc[name.partition(" ratio")[0] + " real"]
            mean[name] = _ratio((frame.loc[name] * real).sum(), real.sum())
        columns |= dict(frame.items()) if len(found) > 1 else {}
        columns[f"{model}, mean" if len(found) > 1 else model] = mean
    text = markdown_table(pd.DataFrame(columns).rename_axis("metric").reset_index())
    (Path(o.OUT) / "tables.md").write_text(text + "\n", encoding="utf-8")
    return text


if __name__ == "__main__":
    run_command(main)
