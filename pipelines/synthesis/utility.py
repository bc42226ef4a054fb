"""Utility of synthetic volumes: a classifier trained on real, synthetic and both."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from data.cohort import Case, Cohort
from data.fingerprints import volume_digest
from data.load_cohort import check_root, load_cohort
from data.provenance import SOURCE
from data.text.prompts import Template, load_template
from data.volumes import load_volume
from options.checks import check_chest_ct
from options.utility_options import UtilityCommand
from pipelines.synthesis.classifier import LabelledVolumes, predict, train_classifier
from pipelines.synthesis.lung_grid import lung_grid
from pipelines.synthesis.planning.balance import cases_by_value
from util.cli import UserError, counted, format_list
from util.files import json_digest, write_csv, write_json
from util.markdown import markdown_table
from util.progress import progress_bar
from util.records import open_record, read_record
from util.training.devices import make_device

log = logging.getLogger(__name__)

RECORD = "utility.settings.json"
COLUMNS = ("arm", "seed", "volumes", "balanced_accuracy", "low", "high", "auc")
BOOTSTRAPS = 2000

LabelledCases = list[tuple[Case, int]]  # with the number of the class


def labelled_cases(
    cases: Sequence[Case], template: Template, column: str, classes: Sequence[str], title: str
) -> LabelledCases:
    """Return the cases whose value is one of the classes, with the number of the class.

    Args:
        template: How rows become text.
        classes: Values of the column.
        title: The cases in words, for a warning.
    """
    labelled = []
    unknown = set()
    for case in cases:
        value = template.format_value(template.consistent(case.row).row, column)
        if value in classes:
            labelled.append((case, classes.index(value)))
        elif value:
            unknown.add(value)
    if unknown:
        log.warning(
            "%s have values of %s that the real training scans do not have; they are left out: %s.",
            title,
            column,
            format_list(sorted(unknown)),
        )
    return labelled


def missing_classes(cases: LabelledCases, classes: Sequence[str]) -> list[str]:
    """Return the values that no case has."""
    return sorted(set(classes) - {classes[number] for _, number in cases})


def read_volumes(cases: LabelledCases, command: UtilityCommand, name: str) -> LabelledVolumes:
    """Read the volumes of cases as cells."""
    cells = []
    for case, _ in progress_bar(cases, name, "scan"):
        if case.image is None:
            raise UserError(
                f"{case.id} has no scan; a classifier needs one for every case. Add it to img/."
            )
        cells.append(
            lung_grid(
                load_volume(case.image).array,
                load_volume(case.mask).array,
                command.data.lung_labels,
                command.utility.grid,
                command.utility.lung_window,
                case.mask,
            )
        )
    return LabelledVolumes(torch.stack(cells), torch.tensor([number for _, number in cases]))


def classifier_scores(
    probabilities: NDArray[np.floating], targets: NDArray[np.integer]
) -> dict[str, float]:
    """Return balanced accuracy with its 95 % interval over test scans, and AUC (one against rest).

    Args:
        probabilities: `(N, classes)`.
        targets: `(N,)`.
    """
    correct = (probabilities.argmax(1) == targets).astype(float)
    low, high = class_mean_interval(correct, targets)
    is_binary = probabilities.shape[1] == 2
    scores = probabilities[:, 1] if is_binary else probabilities
    return {
        "balanced_accuracy": mean_over_classes(correct, targets),
        "low": low,
        "high": high,
        "auc": float(roc_auc_score(targets, scores, multi_class="ovr")),
    }


def mean_over_classes(values: NDArray[np.floating], targets: NDArray[np.integer]) -> float:
    """Return the mean over classes of the mean over the class's scans."""
    return float(np.mean([values[targets == k].mean() for k in np.unique(targets)]))


def class_mean_interval(
    values: NDArray[np.floating], targets: NDArray[np.integer]
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of `mean_over_classes`.

    Scans are resampled within classes. The interval is NaN where a class has fewer than two scans.
    """
    parts = [values[targets == k] for k in np.unique(targets)]
    if min(map(len, parts)) < 2:
        return float("nan"), float("nan")
    interval = stats.bootstrap(
        parts,
        lambda *samples, axis: np.mean([part.mean(axis) for part in samples], axis=0),
        method="percentile",
        n_resamples=BOOTSTRAPS,
        rng=np.random.default_rng(0),
        vectorized=True,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summarise_arms(
    rows: Sequence[Mapping[str, Any]],
    predicted: Mapping[tuple[str, int], NDArray[np.floating]],
    targets: NDArray[np.integer],
) -> dict[str, Any]:
    """Return every arm's mean over seeds, and its difference from real scans alone.

    Args:
        rows: Rows of utility.csv.
        predicted: Probabilities `(N, classes)` by arm and seed.
        targets: `(N,)` classes of the test scans.
    """
    seeds = sorted({row["seed"] for row in rows})
    correct = {key: (p.argmax(1) == targets).astype(float) for key, p in predicted.items()}
    summary: dict[str, Any] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        values = [row["balanced_accuracy"] for row in rows if row["arm"] == arm]
        change = np.mean([correct[arm, s] - correct["real", s] for s in seeds], axis=0)
        low, high = class_mean_interval(change, targets)
        at_least = 0
        for seed in seeds:
            accuracy = mean_over_classes(correct[arm, seed], targets)
            at_least += accuracy >= mean_over_classes(correct["real", seed], targets)
        summary[arm] = {
            "mean": float(np.mean(values)),
            "sd_over_seeds": float(np.std(values, ddof=1)) if len(seeds) > 1 else None,
            "minus_real": mean_over_classes(change, targets),
            "low": low,
            "high": high,
            "seeds_at_least_as_good_as_real": f"{at_least} of {len(seeds)}",
        }
    return summary


def markdown_report(results: Mapping[str, Any]) -> str:
    """Return the results of `compare_arms` in Markdown."""
    classes = results["classes"]
    rows = [
        {
            "trained on": row["arm"],
            "volumes": row["volumes"],
            "seed": row["seed"],
            "balanced accuracy (95 % interval over test scans)": (
                f"{row['balanced_accuracy']:.3f} ({_interval(row, '.3f')})"
            ),
            "AUC": f"{row['auc']:.3f}",
        }
        for row in results["rows"]
    ]
    means = [
        {
            "trained on": arm,
            "mean over seeds": f"{values['mean']:.3f}",
            "minus real alone (95 % interval)": (
                f"{values['minus_real']:+.3f} ({_interval(values, '+.3f')})"
            ),
            "seeds at least as good as real alone": values["seeds_at_least_as_good_as_real"],
        }
        for arm, values in results["summary"].items()
    ]
    return (
        f"{markdown_table(pd.DataFrame(rows))}\n\n{markdown_table(pd.DataFrame(means))}\n\n"
        f"{counted(results['test_scans'], 'real test scan')}, {len(classes)} classes "
        f"({', '.join(classes)}): chance is {1 / len(classes):.3f}. One generator made all "
        "synthetic volumes: the intervals do not contain the uncertainty of its training.\n"
    )


def _interval(values: Mapping[str, Any], number: str) -> str:
    """Return an interval for a table, or why there is none."""
    if np.isnan(values["low"]):
        return "no interval: a class has fewer than two test scans"
    return f"{values['low']:{number}} to {values['high']:{number}}"


def measure_utility(command: UtilityCommand) -> dict[str, Any]:
    """Train and test the classifiers, and write the results; return them.

    Raises:
        UserError: Something that the user gave does not fit.
    """
    u = command.utility
    device = make_device(u.gpu_ids)
    data = command.data
    check_chest_ct(data, "the classifier of lungs")
    check_root(u.synthetic, data.mask_folder, "--synthetic")
    real = load_cohort(data)
    synthetic = load_cohort(data.for_other_cohort(u.synthetic))
    template = load_template(data.template, real.columns, data.key_column, data.patient_column)
    by_value = cases_by_value(real.split("train"), template, u.column, "--column")
    classes = tuple(sorted(by_value))
    _check_apart(real, synthetic)
    cases = {
        "real": labelled_cases(
            real.split("train"), template, u.column, classes, "real train scans"
        ),
        "synthetic": labelled_cases(
            synthetic.cases, template, u.column, classes, "synthetic scans"
        ),
        "test": labelled_cases(real.split("test"), template, u.column, classes, "real test scans"),
    }
    if missing := missing_classes(cases["test"], classes):
        raise UserError(
            f"--column {u.column}: no test scan has the value {format_list(missing)}; every value "
            "of the training scans must occur there. Draw other splits, or choose another column."
        )
    if not cases["synthetic"]:
        raise UserError(
            f"--synthetic {u.synthetic}: no case has a value of {u.column} that the training scans "
            "have. Choose another column, or another cohort."
        )
    settings = {
        "column": u.column,
        "grid": u.grid,
        "lung_window": u.lung_window,
        "classifier": asdict(command.classifier),
        "scans": _scans_digest(list(chain(*cases.values()))),
    }
    open_record(Path(u.out), RECORD, settings, u.overwrite)
    volumes = {name: read_volumes(group, command, name) for name, group in cases.items()}
    arms = {"real": volumes["real"], "both": volumes["real"] + volumes["synthetic"]}
    if missing := missing_classes(cases["synthetic"], classes):
        log.warning(
            "No synthetic scan has the value %s. Nothing is trained on synthetic scans alone, and "
            "on both a classifier may learn that synthetic means the other values. Make cases of "
            "every value.",
            format_list(missing),
        )
    else:
        arms["synthetic"] = volumes["synthetic"]
    return compare_arms(arms, volumes["test"], classes, command, device)


def _scans_digest(cases: LabelledCases) -> str:
    """Return a digest of scans, masks and values; the place of the files does not count."""
    scans = []
    for case, number in cases:
        scans.append([case.id, number, _file_digests(case)])
    return json_digest(sorted(scans, key=str))


def _file_digests(case: Case) -> list[dict[str, str]]:
    """Return the digests of a case's scan and mask."""
    return [volume_digest(path) for path in (case.image, case.mask) if path is not None]


def _check_apart(real: Cohort, synthetic: Cohort) -> None:
    """Raise `UserError` where test patients are part of the training."""
    tests = set(real.splits["test"])
    if leaks := sorted(c.row[SOURCE] for c in synthetic.cases if c.row.get(SOURCE, "") in tests):
        raise UserError(
            f"--synthetic {synthetic.root}: volumes were made from masks or scans of test cases "
            f"({format_list(leaks)}), so the test would not be independent. Make the cohort from "
            "the training split."
        )
    tested = [digest for case in real.split("test") for digest in _file_digests(case)]
    if copies := [c.id for c in synthetic.cases if any(d in tested for d in _file_digests(c))]:
        raise UserError(
            f"--synthetic {synthetic.root} holds scans or masks of test cases "
            f"({format_list(copies)}), so the test would not be independent. Make the cohort from "
            "the training split."
        )
    if tests & set(real.splits["train"]):
        raise UserError(
            f"{real.root}: test cases are training cases too; give it a splits.json with a test "
            "split apart."
        )


def compare_arms(
    arms: Mapping[str, LabelledVolumes],
    test: LabelledVolumes,
    classes: Sequence[str],
    command: UtilityCommand,
    device: torch.device,
) -> dict[str, Any]:
    """Train a classifier per arm and seed, and write the results.

    Args:
        arms: Training volumes by arm: real, both, and synthetic.
        test: Test scans.
        classes: Values of the column.
        command: The command's options.
        device: The device of the classifiers.
    """
    out = Path(command.utility.out)
    targets = test.targets.numpy()
    rows = []
    predicted = {}
    for seed in command.utility.seeds:
        for arm, volumes in arms.items():
            path = out / f"{arm}_{seed}.json"
            predictions = None
            if path.is_file():
                fix = "The classifier is trained again"
                predictions = read_record(path, list[list[float]], fix)
            if predictions is None or np.shape(predictions) != (len(targets), len(classes)):
                network = train_classifier(
                    volumes,
                    len(classes),
                    command.classifier,
                    seed,
                    device,
                    f"{arm}, seed {seed}",
                    real=len(arms["real"]) if arm == "both" else 0,
                )
                predictions = predict(network, test.volumes, device).tolist()
                write_json(path, predictions)
            predicted[arm, seed] = np.array(predictions)
            scores = classifier_scores(predicted[arm, seed], targets)
            rows.append({"arm": arm, "seed": seed, "volumes": len(volumes), **scores})
    results: dict[str, Any] = {
        "classes": list(classes),
        "test_scans": len(targets),
        "rows": rows,
        "summary": summarise_arms(rows, predicted, targets),
    }
    report = markdown_report(results)
    write_csv(out / "utility.csv", COLUMNS, rows)
    (out / "utility.md").write_text(report, encoding="utf-8")
    write_json(out / "utility.json", results)
    log.info("%s", report)
    return results
