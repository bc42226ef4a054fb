"""Metrics of generated volumes against the planted truth of a phantom cohort."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from data.phantom.cohort import PhantomCohort
from data.text.paraphrase import reordered, reworded
from data.text.prompts import Prompt, Template
from data.volume_dataset import VolumeDataset, VolumeSample
from data.volumes import load_volume
from util.metrics.regions import chest_regions

VARIED = {
    "SMOKING HISTORY": ("Never smoker", "Current smoker"),
    "DIAGNOSIS": ("IPF", "CTD-ILD", "HP"),
    "AGE": ("45", "80"),
    "RISK OCCUPATIONAL": ("No", "Yes"),
}
NULL_COLUMN = "RISK OCCUPATIONAL"  # without effect
REGIONS = ("lungs", "upper", "middle", "lower", "rim", "core", "outside")
UNSEEN_AGES = range(45, 86)  # tried where no training row has them
MIN_TRUTH_HU = 5.0  # a smaller truth has no slope; its absolute error is reported
RANDOM_HALVES = 100
HISTOGRAM_VOXELS = 2000  # of each scan, for the distance between random halves
LUNG_LABELS = (1, 2)

Values = NDArray[Any]


def compare_with_truth(cohort: Path, results: Path) -> dict[str, Any]:
    """Return the metrics of a results folder against the phantoms' truth."""
    phantoms = PhantomCohort.from_folder(cohort)
    table = pd.read_csv(results / "effects.csv", dtype={"from": str, "to": str})
    effects = effect_metrics(true_effects(phantoms, table))
    return {
        "effects": effects,
        **regression_baselines(cohort, phantoms, effects),
        **fidelity_metrics(cohort, phantoms, results),
    }


def true_effects(phantoms: PhantomCohort, effects: pd.DataFrame) -> pd.DataFrame:
    """Return effects.csv with the true effect in `true_hu`.

    The truth is the same patient rendered again with the one value changed.
    """
    rows = []
    for keys, part in effects.groupby(["case", "column", "from", "to"]):
        case, column, start, end = map(str, keys)
        before = phantoms.render(case, {column: start})
        after = phantoms.render(case, {column: end})
        masks = chest_regions(before.mask, before.spacing)
        for row in part.to_dict("records"):
            region = row["region"]
            if region in REGIONS and region in masks:
                difference = (after.hu - before.hu)[masks[region]]
                rows.append({**row, "true_hu": float(difference.mean())})
    return pd.DataFrame(rows)


def slope(generated: Values, true: Values) -> float:
    """Return sum(generated x true) / sum(true^2); 1 is the truth."""
    return float((generated * true).sum() / np.square(true).sum())


def effect_metrics(pairs: pd.DataFrame) -> dict[str, Any]:
    """Return slopes, signs and errors (HU) by attribute and region.

    Args:
        pairs: Effects with their truth; see `true_effects`.
    """
    metrics: dict[str, Any] = {}
    for (column, region), part in pairs.groupby(["column", "region"]):
        generated = part["mean_diff_hu"].to_numpy(float)
        true = part["true_hu"].to_numpy(float)
        large = np.abs(true) >= MIN_TRUTH_HU
        of_region: dict[str, Any] = {
            "generated": float(generated.mean()),
            "true": float(true.mean()),
            "mean_abs": float(np.abs(generated).mean()),
            "max_abs": float(np.abs(generated).max()),
        }
        if large.any():
            of_region["slope"] = slope(generated[large], true[large])
            is_right = np.sign(generated) == np.sign(true)
            of_region["signs_right"] = float(is_right[large].mean())
        if not large.all():
            of_region["small_error"] = float(np.abs(generated - true)[~large].max())
        of_region["pairs"] = _mean_by_pair(part)
        metrics.setdefault(str(column), {})[str(region)] = of_region
    return metrics


def _mean_by_pair(part: pd.DataFrame) -> dict[str, list[float]]:
    """Return generated and true effect of each pair of values, HU, a mean over cases."""
    means = part.groupby(["from", "to"])[["mean_diff_hu", "true_hu"]].mean()
    by_pair = {}
    for (start, end), row in zip(means.index, means.to_numpy(), strict=True):
        by_pair[f"{start} to {end}"] = [round(float(value), 2) for value in row]
    return by_pair


def regression_baselines(
    cohort: Path, phantoms: PhantomCohort, effects: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the effects that an ordinary regression of the training scans estimates.

    Args:
        cohort: Folder of the cohort.
        phantoms: The cohort, which knows the complete rows.
        effects: Result of `effect_metrics`, for the truth.

    Returns:
        `oracle`: HU in the lungs by pair of values, from the complete rows. From the rows as
        training sees them, with their empty cells: the same in `known`, slopes by attribute and
        region in `incomplete`, and in `incomplete_small` the largest error by attribute over pairs
        and regions where the truth is too small for a slope.
    """
    cases = list(phantoms.splits["train"])
    means = pd.DataFrame([region_means(cohort, case) for case in cases])
    table = pd.read_csv(cohort / "clinical.csv", dtype=str, keep_default_na=False)
    known = regress_on_table(table.set_index("File Name").loc[cases], means)
    complete = regress_on_table(pd.DataFrame([phantoms.row(case) for case in cases]), means)
    slopes: dict[str, dict[str, float]] = {}
    errors: dict[str, float] = {}
    for column, by_region in effects.items():
        for region in means:
            if region not in by_region or region == "outside":
                continue
            pairs = by_region[region]["pairs"]
            estimated = np.array([known.at[f"{column}: {pair}", region] for pair in pairs])
            true = np.array([truth for _, truth in pairs.values()])
            small = np.abs(true) < MIN_TRUTH_HU
            if not small.all():
                of_column = slopes.setdefault(column, {})
                of_column[region] = slope(estimated[~small], true[~small])
            if small.any():
                error = float(np.abs(estimated - true)[small].max())
                errors[column] = max(errors.get(column, 0.0), error)
    return {
        "oracle": complete["lungs"].to_dict(),
        "known": known["lungs"].to_dict(),
        "incomplete": slopes,
        "incomplete_small": errors,
    }


def region_means(cohort: Path, case: str) -> dict[str, float]:
    """Return the mean HU of a scan in each region of `REGIONS`."""
    scan = load_volume(cohort / "img" / f"{case}.nii.gz")
    mask = load_volume(cohort / "gtlung" / f"{case}.nii.gz")
    masks = chest_regions(mask.array, mask.spacing)
    return {name: float(scan.array[masks[name]].mean()) for name in REGIONS if name in masks}


def regress_on_table(table: pd.DataFrame, means: pd.DataFrame) -> pd.DataFrame:
    """Return effects by least squares: a row per pair of values, HU by region.

    Args:
        table: Clinical rows; "" where a value is not known.
        means: Regional means of the same cases, HU.
    """
    levels = pd.get_dummies(table[["DIAGNOSIS", "SMOKING HISTORY", "label", NULL_COLUMN]])
    known = [name for name in levels if not str(name).endswith("_")]  # "": no level at all
    design = levels[known].astype(float).reset_index(drop=True)
    age = pd.to_numeric(table["AGE"], errors="coerce").reset_index(drop=True)
    design["AGE"] = (age - age.mean()).fillna(0)
    design["age is known"] = age.notna().astype(float)
    x = np.column_stack([np.ones(len(design)), design])
    solution = np.linalg.lstsq(x, means.to_numpy(), rcond=None)[0]
    fit = pd.DataFrame(solution[1:], list(design.columns), means.columns)
    rows = {}
    for column, values in VARIED.items():
        for i, start in enumerate(values):
            for end in values[i + 1 :]:
                rows[f"{column}: {start} to {end}"] = _fitted_change(fit, column, start, end)
    return pd.DataFrame(rows).T


def _fitted_change(fit: pd.DataFrame, column: str, start: str, end: str) -> pd.Series:
    """Return a fitted effect by region; NaN where no row has one of the values."""
    if column == "AGE":
        return fit.loc["AGE"] * (float(end) - float(start))
    both = fit.reindex([f"{column}_{start}", f"{column}_{end}"])
    return both.iloc[1] - both.iloc[0]


def _lung_values(folder: Path, cohort: Path, case: str) -> Values:
    """Return the HU of a case's lung voxels, from a folder of volumes."""
    mask = load_volume(cohort / "gtlung" / f"{case}.nii.gz").array
    return load_volume(folder / f"{case}.nii.gz").array[np.isin(mask, LUNG_LABELS)]


def fidelity_metrics(cohort: Path, phantoms: PhantomCohort, results: Path) -> dict[str, float]:
    """Return error, SD and histogram distance of generated lungs, beside their baselines.

    Args:
        cohort: Folder of the cohort.
        phantoms: The cohort, for the noise-free truth.
        results: The results folder.
    """
    cases = phantoms.splits["test"]
    real = []
    generated = []
    errors = []
    true_errors = []
    for case in cases:
        mask = load_volume(cohort / "gtlung" / f"{case}.nii.gz").array
        truth = phantoms.render(case, noise=False).hu[np.isin(mask, LUNG_LABELS)]
        real.append(_lung_values(cohort / "img", cohort, case))
        generated.append(_lung_values(results / "volumes", cohort, case))
        errors.append(np.abs(generated[-1] - real[-1]).mean())
        true_errors.append(np.abs(truth - real[-1]).mean())
    mae = np.mean(errors)
    sd = np.mean([values.std() for values in generated])
    distance = wasserstein_distance(np.concatenate(generated), np.concatenate(real))
    return {
        "mae_hu": float(mae),
        "mae_ratio": float(mae / np.mean(true_errors)),
        "sd_hu": float(sd),
        "sd_ratio": float(sd / np.mean([values.std() for values in real])),
        "w1_hu": float(distance),
        "w1_floor_hu": histogram_baseline(cohort, phantoms, len(cases)),
    }


def histogram_baseline(cohort: Path, phantoms: PhantomCohort, count: int) -> float:
    """Return the median distance of lung histograms of two random sets of real scans, HU.

    Args:
        cohort: Folder of the cohort.
        count: Scans in each set; at most half of all.
    """
    cases = [case for split in phantoms.splits.values() for case in split]
    values = {}
    for case in cases:
        every = np.sort(_lung_values(cohort / "img", cohort, case))
        values[case] = every[:: max(1, len(every) // HISTOGRAM_VOXELS)]
    half = min(count, len(cases) // 2)
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(RANDOM_HALVES):
        order = rng.permutation(cases)
        first = np.concatenate([values[case] for case in order[:half]])
        second = np.concatenate([values[case] for case in order[half : 2 * half]])
        distances.append(wasserstein_distance(first, second))
    return float(np.median(distances))


def prompt_metrics(
    generate: Callable[[VolumeSample, Prompt], NDArray[np.floating]],
    samples: VolumeDataset,
    prompts: Mapping[str, Prompt],
    template: Template,
    phantoms: PhantomCohort,
) -> dict[str, Any]:
    """Return effects of a prompt's order and wording, and of ages that training never saw.

    Args:
        generate: Function from a case and a prompt to `(X, Y, Z)` HU.
        samples: The test cases.
        prompts: The cases' factual prompts.
        template: Template that turns rows into text.
        phantoms: The cohort, which knows the truth.
    """
    seen = {phantoms.row(case)["AGE"] for case in phantoms.splits["train"]}
    ages = [str(age) for age in UNSEEN_AGES if str(age) not in seen]
    changes: dict[str, list[float]] = {"re-ordered": [], "re-worded": []}
    generated: list[Values] = []
    true: list[Values] = []
    for sample in samples:
        case = sample.case.id
        lungs = np.isin(sample.labels, samples.options.lung_labels)
        factual = prompts[case]
        base = generate(sample, factual)[lungs].mean()
        for name, prompt in (
            ("re-ordered", reordered(factual)),
            ("re-worded", reworded(factual)),
        ):
            changes[name].append(float(abs(generate(sample, prompt)[lungs].mean() - base)))
        means = []
        truths = []
        for age in ages:
            prompt = template.phrases(template.change(sample.case.row, "AGE", age).row)
            means.append(generate(sample, prompt)[lungs].mean())
            truths.append(phantoms.render(case, {"AGE": age}).hu[lungs].mean())
        generated.append(np.array(means))
        true.append(np.array(truths))
    metrics: dict[str, Any] = {}
    for name, values in changes.items():
        metrics[name] = {"mean_abs": float(np.mean(values)), "max_abs": max(values)}
    metrics["unseen_ages"] = {"ages": ages}
    if len(ages) > 1:
        metrics["unseen_ages"]["slope"] = slope(_centred(generated), _centred(true))
    return metrics


def _centred(means: list[Values]) -> Values:
    """Return all values, each case's around its own mean."""
    return np.concatenate([of_case - of_case.mean() for of_case in means])
