"""Measure whether synthetic and edited scans help to classify a rare finding.

Few training scans have the finding. A classifier is trained on them alone, with a class-weighted
loss, with oversampling, and with scans of scripts/expand.py beside them: generated, residual and,
with --diffusion_run, edited ones. With --extractor_3d, linear probes on the features of a 3D
network are trained on the same scans. Each seed is a repetition with its own patients and synthetic
scans. Finished parts are kept, so that a stopped benchmark resumes; --part 1/4 to 4/4 divide the
repetitions among processes with one OUT. OUT/figures.json and OUT/table.md hold the figures of all
finished repetitions.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.synthesis import ExpandBenchmarkCommand, ExpandBenchmarkOptions
from options.parser import answer_early, parse

answer_early(__name__, ExpandBenchmarkCommand, __doc__ or "")  # the imports below are slow

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.common import encoder_flag, flag_words, part_of, train_run
from data.load_cohort import load_cohort
from data.phantom.kinds.cohort import (
    RECORD,
    KindsCohort,
    SourceChest,
    Variation,
    make_kinds_cohort,
    phantom_chests,
)
from data.phantom.kinds.columns import GROUPS
from data.phantom.rows import YES_NO
from data.text.prompts import load_template
from data.volumes import load_volume, to_unit
from options.base_options import DataOptions
from options.expand_options import ExpandCommand, ExpandOptions
from options.test_options import ModelOptions
from options.utility_options import UtilityCommand, UtilityOptions
from pipelines.evaluation.extractors import DEFAULT_WINDOW, Extractor, make_extractor
from pipelines.evaluation.text_effect import make_linear_predictor
from pipelines.synthesis import run as synthesis
from pipelines.synthesis.classifier import LabelledVolumes, predict, train_classifier
from pipelines.synthesis.utility import LabelledCases, labelled_cases, read_volumes
from util.cli import UserError, counted, run_command
from util.files import read_json, write_json
from util.markdown import markdown_table
from util.progress import progress_bar
from util.records import open_record

log = logging.getLogger(__name__)

WINDOW = (-1000.0, 100.0)  # HU that the classifier sees
BASELINES = ("real", "weighted", "oversampled")  # arms without synthetic scans
PROBE = "probe: "  # begins the names of linear probes
Reader = Callable[[LabelledCases], LabelledVolumes]
RESAMPLES = 2000
SETTINGS = "settings.json"  # of everything in OUT
PER_CALL = ("OUT", "group", "column", "rare", "seeds", "part")  # may differ between commands


@dataclass(frozen=True)
class Arm:
    """What a classifier is trained on.

    Attributes:
        kinds: Kinds of synthetic scans beside the real ones, as `--how` of scripts/expand.py.
        probe: Whether it is a linear probe, which draws no batches.
        weighted: Whether the loss weights the classes equally.
        oversampled: Whether the classes are drawn equally often.
    """

    kinds: tuple[str, ...] = ()
    weighted: bool = False
    oversampled: bool = False
    probe: bool = False


def arms_of(b: ExpandBenchmarkOptions) -> dict[str, Arm]:
    """Return the arms by name; edited scans need a diffusion run, and probes an extractor."""
    kinds: dict[str, tuple[str, ...]] = {"+ generated": ("generate",), "+ residual": ("residual",)}
    if b.diffusion_run:
        kinds["+ edited"] = ("edit",)
    kinds["+ generated + residual"] = ("generate", "residual")
    arms = {"real": Arm(), "weighted": Arm(weighted=True), "oversampled": Arm(oversampled=True)}
    arms |= {name: Arm(which, oversampled=True) for name, which in kinds.items()}
    if b.extractor_3d:
        probes = {"real": Arm(probe=True), "weighted": Arm(weighted=True, probe=True)}
        probes |= {name: Arm(which, weighted=True, probe=True) for name, which in kinds.items()}
        arms |= {f"{PROBE}{name}": arm for name, arm in probes.items()}
    return arms


def rare_cohort(b: ExpandBenchmarkOptions, seed: int) -> Path:
    """Make the cohort of a repetition; return its folder.

    All columns of a seed have the same patients.
    """
    names = tuple(f"case_{i + 1:03d}" for i in range(b.cases + b.tests))
    size = "x".join(map(str, b.size))
    cohorts = Path(b.OUT) / "cohorts"
    ending = f"n{len(names)}_{size}_seed{seed}"
    finished = [path.parent for path in sorted(cohorts.glob(f"*_{ending}/{RECORD}"))]
    chests: Iterable[SourceChest] = phantom_chests(names, seed, b.size)
    if finished:
        chests = KindsCohort.from_folder(finished[0]).chests()
    return make_kinds_cohort(
        cohorts / f"{b.group}_{b.column}_{b.rare}_{ending}".replace(" ", "-"),
        b.group,
        {"train": names[: b.cases], "test": names[b.cases :]},
        chests,
        seed,
        Variation(patient_sd=b.patient_sd, counts={b.column: b.rare}),
    )


def _key(b: ExpandBenchmarkOptions, seed: int) -> str:
    """Return the name of what belongs to a column and a seed."""
    return f"{b.column}_{b.rare}_seed{seed}".replace(" ", "-")


def open_model(b: ExpandBenchmarkOptions, root: Path, seed: int) -> ModelOptions:
    """Return the run that generates: the one given, or one trained on the cohort alone."""
    folder = Path(b.run) if b.run else Path(b.OUT) / "runs" / _key(b, seed)
    if not b.run:
        first_words = flag_words(
            dataroot=root,
            preset="cpu",
            template="auto",
            text_encoder=encoder_flag(b.text_encoder),
            val_cases=0,
            seed=seed,
        )
        words = flag_words(max_steps=b.max_steps)
        train_run(folder, words, [*first_words, *b.train_flags.split()])
    return _model(b, folder)


def _model(b: ExpandBenchmarkOptions, folder: Path) -> ModelOptions:
    return ModelOptions(
        name=folder.name,
        checkpoints_dir=str(folder.parent),
        text_encoder=encoder_flag(b.text_encoder),
        tile=(0, 0, 0),
    )


def expand(b: ExpandBenchmarkOptions, root: Path, seed: int, how: str) -> Path:
    """Make the synthetic scans of one kind, half of them with the finding; return their folder."""
    model = _model(b, Path(b.diffusion_run)) if how == "edit" else open_model(b, root, seed)
    options = ExpandOptions(
        dataroot=str(root),
        how=how,
        balance=(b.column,),
        n=b.n,
        seed=seed,
        check_copies=b.check_copies,
        out=f"{b.OUT}/synthetic/{_key(b, seed)}_{how}",
    )
    return synthesis.synthesise_cohort(ExpandCommand(options, model))


def read_labelled(b: ExpandBenchmarkOptions, root: Path, split: str = "") -> LabelledCases:
    """Return the cases of a cohort, or of a split; class 1 has the finding."""
    data = DataOptions(dataroot=str(root))
    cohort = load_cohort(data, check=bool(split))
    template = load_template("auto", cohort.columns, data.key_column)
    cases = cohort.split(split) if split else cohort.cases
    return labelled_cases(cases, template, b.column, YES_NO, root.name)


def read_cells(o: ExpandBenchmarkCommand, cases: LabelledCases) -> LabelledVolumes:
    """Return volumes as the DenseNet takes them."""
    utility = UtilityOptions(grid=o.benchmark.grid, lung_window=WINDOW)
    command = UtilityCommand(utility, DataOptions(), o.classifier)
    return read_volumes(cases, command, "reading scans")


def read_features(extractor: Extractor, cases: LabelledCases) -> LabelledVolumes:
    """Return features `(N, F)` of volumes."""
    features = []
    for case, _ in progress_bar(cases, "features", "scan"):
        assert case.image is not None
        unit = to_unit(load_volume(case.image).array, DEFAULT_WINDOW)
        features.append(torch.from_numpy(extractor(torch.from_numpy(unit)[None, None])))
    return LabelledVolumes(torch.cat(features), torch.tensor([label for _, label in cases]))


def predictions_path(b: ExpandBenchmarkOptions, seed: int, arm: str, number: int) -> Path:
    """Return the file of a classifier's probabilities of the finding in the test scans."""
    name = arm.replace("+ ", "with_").replace(": ", "_").replace(" ", "_")
    return Path(b.OUT) / "predictions" / f"{_key(b, seed)}_{name}_{number}.json"


def prediction_paths(b: ExpandBenchmarkOptions, seed: int) -> dict[tuple[str, int], Path]:
    """Return the file of every arm and classifier of a seed; of a probe there is one."""
    return {
        (name, number): predictions_path(b, seed, name, number)
        for name, arm in arms_of(b).items()
        for number in range(1 if arm.probe else b.classifiers)
    }


def run_repetition(o: ExpandBenchmarkCommand, seed: int, readers: Mapping[bool, Reader]) -> None:
    """Train the classifiers of one seed that are not finished, and keep what they predict.

    Args:
        readers: How scans are read for the DenseNet (False) and for probes (True).
    """
    b, arms = o.benchmark, arms_of(o.benchmark)
    paths = {key: p for key, p in prediction_paths(b, seed).items() if not p.is_file()}
    if not paths:
        return
    root = rare_cohort(b, seed)
    cases = {split: read_labelled(b, root, split) for split in ("train", "test")}
    for kind in sorted({kind for arm in arms.values() for kind in arm.kinds}):
        cases[kind] = read_labelled(b, expand(b, root, seed, kind))
    for probe, read in readers.items():
        chosen = {key: path for key, path in paths.items() if arms[key[0]].probe == probe}
        if not chosen:
            continue
        volumes = {name: read(group) for name, group in cases.items()}
        for (name, number), path in chosen.items():
            found = predict_arm(o, name, volumes, 1000 * seed + number)
            truth = volumes["test"].targets.tolist()
            write_json(path, {"found": found.tolist(), "truth": truth})


def predict_arm(
    o: ExpandBenchmarkCommand, name: str, volumes: Mapping[str, LabelledVolumes], seed: int
) -> NDArray[np.float64]:
    """Return the probability `(N,)` of the finding in the test scans by an arm's classifier."""
    arm = arms_of(o.benchmark)[name]
    real, test = volumes["train"], volumes["test"]
    data = real
    for kind in arm.kinds:
        data = data + volumes[kind]
    if arm.probe:
        probe = make_linear_predictor(number=False, balanced=arm.weighted)
        probe.fit(data.volumes.numpy(), data.targets.numpy())
        return np.asarray(probe.predict_proba(test.volumes.numpy())[:, 1], float)
    options = replace(
        o.classifier, class_weights=arm.weighted, oversample=arm.oversampled, augment=True
    )
    network = train_classifier(
        data,
        len(YES_NO),
        options,
        seed,
        torch.device("cpu"),
        f"seed {seed}, {name}",
        real=len(real) if arm.kinds else 0,
    )
    return predict(network, test.volumes, torch.device("cpu"))[:, 1].numpy().astype(float)


Predictions = dict[int, NDArray[np.float64]]  # (classifiers, test scans) by seed


def read_predictions(
    b: ExpandBenchmarkOptions,
) -> tuple[dict[str, Predictions], dict[int, NDArray[np.int64]]]:
    """Return the probabilities of all arms of every finished seed, and the true classes."""
    found: dict[str, Predictions] = {arm: {} for arm in arms_of(b)}
    truth: dict[int, NDArray[np.int64]] = {}
    for seed in b.seeds:
        paths = prediction_paths(b, seed)
        if not all(path.is_file() for path in paths.values()):
            continue
        for arm in found:
            records = [read_json(path) for (name, _), path in paths.items() if name == arm]
            found[arm][seed] = np.array([record["found"] for record in records])
            truth[seed] = np.array(records[0]["truth"])
    return found, truth


def class_errors(found: NDArray[np.float64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return `(N,)` the share of classifiers that are wrong about each test scan."""
    wrong: NDArray[np.bool_] = (found > 0.5) != (truth == 1)
    return np.asarray(wrong.mean(0), float)


def summarise(
    found: Mapping[str, Predictions], truth: Mapping[int, NDArray[np.int64]]
) -> list[dict[str, Any]]:
    """Return a row per arm: errors, AUC, and the paired difference from the best baseline.

    The best baseline is the arm without synthetic scans whose balanced error is lowest, among
    probes for a probe. The interval is a bootstrap over seeds and, within each, over the test scans
    of a class.
    """
    wrong = {
        arm: {seed: class_errors(by_seed[seed], truth[seed]) for seed in truth}
        for arm, by_seed in found.items()
    }

    def error(arm: str, label: int) -> float:
        return float(np.mean([wrong[arm][s][truth[s] == label].mean() for s in truth]))

    rows = []
    for arm, by_seed in found.items():
        family = PROBE if arm.startswith(PROBE) else ""
        baselines = [name for name in (family + name for name in BASELINES) if name in found]
        best = min(baselines, key=lambda name: error(name, 0) + error(name, 1))
        aucs = [roc_auc_score(truth[s], one) for s in truth for one in by_seed[s]]
        change = {s: wrong[arm][s] - wrong[best][s] for s in truth}
        rare, balanced = paired_intervals(change, truth)
        rows.append(
            {
                "arm": arm,
                "rare_error": error(arm, 1),
                "common_error": error(arm, 0),
                "auc": float(np.mean(aucs)),
                "best_baseline": best,
                "rare_change": error(arm, 1) - error(best, 1),
                "rare_interval": rare,
                "balanced_change": (error(arm, 0) + error(arm, 1) - error(best, 0) - error(best, 1))
                / 2,
                "balanced_interval": balanced,
            }
        )
    return rows


def paired_intervals(
    change: Mapping[int, NDArray[np.float64]], truth: Mapping[int, NDArray[np.int64]]
) -> tuple[list[float], list[float]]:
    """Return 95 % intervals of the change of the rare class's and of the balanced error."""
    rng = np.random.default_rng(0)
    seeds = list(change)
    values = []
    for _ in range(RESAMPLES):
        drawn = []
        for seed in rng.choice(seeds, len(seeds)):
            classes = [change[seed][truth[seed] == label] for label in (0, 1)]
            drawn.append([rng.choice(part, len(part)).mean() for part in classes])
        common, rare = np.mean(drawn, 0)
        values.append((rare, (common + rare) / 2))
    low, high = np.percentile(values, (2.5, 97.5), axis=0)
    return [float(low[0]), float(high[0])], [float(low[1]), float(high[1])]


def figures_table(rows: Sequence[Mapping[str, Any]], repetitions: int) -> str:
    """Return the figures as Markdown."""
    best = " and ".join(dict.fromkeys(row["best_baseline"] for row in rows))
    table = []
    for row in rows:
        rare, balanced = row["rare_interval"], row["balanced_interval"]
        table.append(
            {
                "trained on": row["arm"],
                "error, rare class": f"{row['rare_error']:.3f}",
                "error, common class": f"{row['common_error']:.3f}",
                "AUC": f"{row['auc']:.3f}",
                "rare class minus best baseline (95 %)": (
                    f"{row['rare_change']:+.3f} ({rare[0]:+.3f} to {rare[1]:+.3f})"
                ),
                "balanced error minus best baseline (95 %)": (
                    f"{row['balanced_change']:+.3f} ({balanced[0]:+.3f} to {balanced[1]:+.3f})"
                ),
            }
        )
    return (
        f"{markdown_table(pd.DataFrame(table))}\n\n{counted(repetitions, 'repetition')}; the best "
        f"arm without synthetic scans is {best}."
    )


def check_options(b: ExpandBenchmarkOptions) -> None:
    """Raise `UserError` for a column that is not planted, or more rare scans than scans."""
    columns = [c.name for c in GROUPS[b.group].all_columns if c.values == YES_NO]
    if b.column not in columns:
        raise UserError(f"--column is {b.column!r}; the group {b.group} has: {', '.join(columns)}.")
    if b.rare >= b.cases:
        raise UserError(f"--rare is {b.rare}; it must be below --cases, which is {b.cases}.")


def main(argv: Sequence[str] | None = None) -> None:
    """Run this part's repetitions, and write the figures of all finished ones."""
    o = parse(ExpandBenchmarkCommand, __doc__ or "", argv)
    b = o.benchmark
    check_options(b)
    readers: dict[bool, Reader] = {False: partial(read_cells, o)}
    if b.extractor_3d:
        extractor = make_extractor(b.extractor_3d, torch.device("cpu"), 3, DEFAULT_WINDOW)
        log.info("Linear probes on features of: %s.", extractor.about)
        readers[True] = partial(read_features, extractor)
    settings = {name: value for name, value in asdict(b).items() if name not in PER_CALL}
    open_record(Path(b.OUT), SETTINGS, settings | {"classifier": asdict(o.classifier)}, False)
    for seed in part_of(b.seeds, b.part):
        run_repetition(o, seed, readers)
    found, truth = read_predictions(b)
    if not truth:
        log.info("No repetition is finished in all arms; the last part writes the table.")
        return
    rows = summarise(found, truth)
    text = figures_table(rows, len(truth))
    write_json(Path(b.OUT) / "figures.json", {"seeds": list(truth), "arms": rows})
    (Path(b.OUT) / "table.md").write_text(text + "\n", encoding="utf-8")
    log.info("%s", text)


if __name__ == "__main__":
    run_command(main)
