"""Use of synthetic volumes: a classifier trained on real, synthetic and both."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from data.cohort import Case, Cohort
from data.load_cohort import load_cohort
from data.text.prompts import Template, load_template
from data.volumes import load_volume
from options.utility_options import UtilityCommand
from pipelines.synthesis.classifier import predict, train_classifier
from pipelines.synthesis.lung_grid import lung_grid
from pipelines.synthesis.planning import SOURCE, cases_by_value
from util import cli
from util.cli import UserError, format_list
from util.files import read_json, write_csv, write_json
from util.records import open_record
from util.training.devices import make_device

log = logging.getLogger(__name__)

RECORD = "utility.settings.json"

COLUMNS = ("arm", "seed", "volumes", "balanced_accuracy", "low", "high", "auc")


@dataclass(frozen=True)
class LabelledVolumes:
    """Volumes as cells `(N,2,X,Y,Z)` with their classes `(N,)`."""

    volumes: Tensor
    targets: Tensor

    def __add__(self, other: LabelledVolumes) -> LabelledVolumes:
        return LabelledVolumes(
            torch.cat([self.volumes, other.volumes]), torch.cat([self.targets, other.targets])
        )


def training_classes(cases: Sequence[Case], template: Template, column: str) -> tuple[str, ...]:
    """The values of the column in the training cases; raises `UserError` where there are no two."""
    try:
        return tuple(sorted(cases_by_value(cases, template, column)))
    except UserError as error:
        raise UserError(str(error).replace("--balance", "--column")) from None


def labelled_cases(
    cases: Sequence[Case], template: Template, column: str, classes: Sequence[str], what: str
) -> list[tuple[Case, int]]:
    """The cases whose value is one of the classes, with the class's number."""
    values = [
        (case, template.format_value(template.consistent(case.row).row, column)) for case in cases
    ]
    if strangers := sorted({v for _, v in values if v and v not in classes}):
        log.warning(
            "%s have values of %s that the real training scans have not; they are left out: %s.",
            what,
            column,
            format_list(strangers),
        )
    found = [(case, classes.index(value)) for case, value in values if value in classes]
    return found


def missing_classes(pairs: Sequence[tuple[Case, int]], classes: Sequence[str]) -> list[str]:
    """The values that no case has."""
    return sorted(set(classes) - {classes[k] for _, k in pairs})


def read_volumes(
    pairs: Sequence[tuple[Case, int]], o: UtilityCommand, name: str
) -> LabelledVolumes:
    """The volumes of cases as cells."""
    cells = []
    for case, _ in tqdm(pairs, name, unit="scan", disable=not cli.main_rank()):
        if case.image is None:
            raise UserError(f"{case.id} has no scan; a classifier needs one for every case.")
        cells.append(
            lung_grid(
                load_volume(case.image).array,
                load_volume(case.mask).array,
                o.data.lung_labels,
                o.utility.grid,
                o.utility.lung_window,
                case.mask,
            )
        )
    return LabelledVolumes(torch.stack(cells), torch.tensor([k for _, k in pairs]))


def classifier_scores(
    probabilities: NDArray[np.floating], targets: NDArray[np.integer]
) -> dict[str, float]:
    """Balanced accuracy with its 95 % interval over test scans (resampled within classes), and AUC
    (one against rest).
    """
    right = (probabilities.argmax(1) == targets).astype(float)
    low, high = class_mean_interval(right, targets)
    two = probabilities.shape[1] == 2
    auc = roc_auc_score(targets, probabilities[:, 1] if two else probabilities, multi_class="ovr")
    return {
        "balanced_accuracy": mean_over_classes(right, targets),
        "low": low,
        "high": high,
        "auc": float(auc),
    }


def mean_over_classes(values: NDArray[np.floating], targets: NDArray[np.integer]) -> float:
    """The mean over classes of the mean over the class's scans."""
    return float(np.mean([values[targets == k].mean() for k in np.unique(targets)]))


def class_mean_interval(
    values: NDArray[np.floating], targets: NDArray[np.integer]
) -> tuple[float, float]:
    """95 % bootstrap interval of `by_class`; not a number where a class has fewer than two
    scans.
    """
    parts = [values[targets == k] for k in np.unique(targets)]
    if min(map(len, parts)) < 2:
        return float("nan"), float("nan")
    found = stats.bootstrap(
        parts,
        lambda *s, axis: np.mean([p.mean(axis) for p in s], axis=0),
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(0),
        vectorized=True,
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def summarise_arms(
    rows: Sequence[Mapping[str, Any]],
    predicted: Mapping[tuple[str, int], NDArray[np.floating]],
    targets: NDArray[np.integer],
) -> dict[str, Any]:
    """Over seeds: every arm's mean, and its difference from real alone with an interval over test
    scans.
    """
    seeds = sorted({row["seed"] for row in rows})
    right = {key: (p.argmax(1) == targets).astype(float) for key, p in predicted.items()}
    found: dict[str, Any] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        values = [row["balanced_accuracy"] for row in rows if row["arm"] == arm]
        change = np.mean([right[arm, s] - right["real", s] for s in seeds], axis=0)
        low, high = class_mean_interval(change, targets)
        at_least = sum(
            mean_over_classes(right[arm, s], targets)
            >= mean_over_classes(right["real", s], targets)
            for s in seeds
        )
        spread = float(np.std(values, ddof=1)) if len(seeds) > 1 else None
        found[arm] = {
            "mean": float(np.mean(values)),
            "sd_over_seeds": spread,
            "minus_real": mean_over_classes(change, targets),
            "low": low,
            "high": high,
            "seeds_at_least_as_good_as_real": f"{at_least} of {len(seeds)}",
        }
    return found


def markdown_report(
    rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any], tests: int, classes: Sequence[str]
) -> str:
    """The figures in Markdown."""
    lines = [
        "| trained on | volumes | seed | balanced accuracy (95 % interval over test scans) | AUC |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['arm']} | {r['volumes']} | {r['seed']} | {r['balanced_accuracy']:.3f} "
        f"({r['low']:.3f} to {r['high']:.3f}) | {r['auc']:.3f} |"
        for r in rows
    ]
    lines += [
        "",
        "| trained on | mean over seeds | minus real alone (95 % interval) | at least as good as "
        "real alone |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {arm} | {f['mean']:.3f} | {f['minus_real']:+.3f} ({f['low']:+.3f} to {f['high']:+.3f}) "
        f"| {f['seeds_at_least_as_good_as_real']} seeds |"
        for arm, f in found.items()
    ]
    lines += [
        "",
        f"{tests} real test scans, {len(classes)} classes ({', '.join(classes)}): chance is "
        f"{1 / len(classes):.3f}. One generator made all synthetic volumes: the intervals hold no "
        "uncertainty of its training.",
    ]
    return "\n".join(lines) + "\n"


def measure_utility(o: UtilityCommand) -> dict[str, Any]:
    """Trains and tests; returns the figures."""
    u = o.utility
    for name, value in (("--out", u.out), ("--synthetic", u.synthetic), ("--column", u.column)):
        if not value:
            raise UserError(f"{name} is not given. See --help.")
    device = make_device(u.gpu_ids)
    real, synthetic = load_cohort(o.data), load_cohort(replace(o.data, dataroot=u.synthetic))
    template = load_template(
        o.data.template, real.columns, o.data.key_column, o.data.patient_column
    )
    classes = training_classes(real.split("train"), template, u.column)
    _check_apart(real, synthetic)
    train, test = (
        labelled_cases(real.split(s), template, u.column, classes, f"real {s} scans")
        for s in ("train", "test")
    )
    made = labelled_cases(synthetic.cases, template, u.column, classes, "synthetic scans")
    if gone := missing_classes(test, classes):
        raise UserError(
            f"--column {u.column}: no test scan has the value {format_list(gone)}; every value of the "
            "training scans must occur there. Draw other splits, or choose another column."
        )
    if not made:
        raise UserError(
            f"--synthetic {u.synthetic}: no case has a value of {u.column} that the training scans "
            "have."
        )
    files = sorted(
        f"{case.image}:{case.image.stat().st_size}:{k}"
        for case, k in [*train, *test, *made]
        if case.image
    )
    settings = {
        "column": u.column,
        "grid": u.grid,
        "lung_window": u.lung_window,
        "classifier": asdict(o.classifier),
        "scans": hashlib.sha256("\n".join(files).encode()).hexdigest(),
    }
    open_record(Path(u.out), RECORD, settings, u.overwrite)
    real_cells, made_cells = read_volumes(train, o, "real"), read_volumes(made, o, "synthetic")
    arms = {"real": real_cells, "both": real_cells + made_cells}
    if gone := missing_classes(made, classes):
        log.warning(
            "No synthetic scan has the value %s: nothing is trained on synthetic scans alone, and "
            "on both a classifier may learn that synthetic means the other values. Make cases of "
            "every value.",
            format_list(gone),
        )
    else:
        arms["synthetic"] = made_cells
    return compare_arms(arms, read_volumes(test, o, "test"), classes, o, device)


def _check_apart(real: Cohort, synthetic: Cohort) -> None:
    """Raises `UserError` where test patients lent their masks to synthetic cases."""
    tests = set(real.splits["test"])
    if leaks := sorted(c.row[SOURCE] for c in synthetic.cases if c.row.get(SOURCE, "") in tests):
        raise UserError(
            f"--synthetic {synthetic.root}: volumes were made from masks of test cases "
            f"({format_list(leaks)}), so the test would know them. Make the cohort from the training "
            "split."
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
    o: UtilityCommand,
    device: torch.device,
) -> dict[str, Any]:
    """Every arm with every seed; writes the figures."""
    out, targets = Path(o.utility.out), test.targets.numpy()
    rows, predicted = [], {}
    for seed in o.utility.seeds:
        for arm in arms:
            path = out / f"{arm}_{seed}.json"
            if not path.is_file():
                network = train_classifier(
                    arms[arm].volumes,
                    arms[arm].targets,
                    len(classes),
                    o.classifier,
                    seed,
                    device,
                    f"{arm}, seed {seed}",
                    real=len(arms["real"].targets) if arm == "both" else 0,
                )
                write_json(path, predict(network, test.volumes, device).tolist())
            predicted[arm, seed] = np.array(read_json(path))
            figures = classifier_scores(predicted[arm, seed], targets)
            rows.append({"arm": arm, "seed": seed, "volumes": len(arms[arm].targets), **figures})
    found: dict[str, Any] = {"classes": list(classes), "test_scans": len(targets), "rows": rows}
    found["summary"] = summarise_arms(rows, predicted, targets)
    text = markdown_report(rows, found["summary"], len(targets), classes)
    write_csv(out / "utility.csv", COLUMNS, rows)
    (out / "utility.md").write_text(text, encoding="utf-8")
    write_json(out / "utility.json", found)
    log.info("%s", text)
    return found
