"""Figures of generated volumes against the planted truth of a phantom cohort."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
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
NULL = "RISK OCCUPATIONAL"  # the column without effect
REGIONS = ("lungs", "upper", "middle", "lower", "rim", "core", "outside")
UNSEEN = range(45, 86)  # ages tried where no training row has them
SMALL_HU = 5.0  # below this the truth is too small for a slope; the absolute error is reported
HALVES = 100


def judge(cohort: Path, results: Path) -> dict[str, Any]:
    """The figures of a results folder against the phantoms' truth."""
    phantoms = PhantomCohort.from_folder(cohort)
    effects = pd.read_csv(results / "effects.csv", dtype={"from": str, "to": str})
    found = effect_figures(true_effects(phantoms, effects))
    return {
        "effects": found,
        **regressions(cohort, phantoms, found),
        **texture(cohort, phantoms, results),
    }


def true_effects(phantoms: PhantomCohort, effects: pd.DataFrame) -> pd.DataFrame:
    """effects.csv with a column `true_hu`: the same patient rendered again with the one value
    changed.
    """
    rows = []
    for keys, part in effects.groupby(["case", "column", "from", "to"]):
        case, column, first, second = map(str, keys)
        one, two = (phantoms.render(case, {column: value}) for value in (first, second))
        where = chest_regions(one.mask, voxel_sizes(one.affine))
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
        figures: dict[str, Any] = {
            "generated": float(made.mean()),
            "true": float(true.mean()),
            "mean_abs": float(np.abs(made).mean()),
            "max_abs": float(np.abs(made).max()),
        }
        if large.any():
            figures |= {
                "slope": float((made * true)[large].sum() / np.square(true)[large].sum()),
                "signs_right": float((np.sign(made) == np.sign(true))[large].mean()),
            }
        if (~large).any():
            figures["small_error"] = float(np.abs(made - true)[~large].max())
        by_pair = part.groupby(["from", "to"])[["mean_diff_hu", "true_hu"]].mean()
        figures["pairs"] = {
            f"{a} to {b}": [round(float(v), 2) for v in row]
            for (a, b), row in zip(by_pair.index, by_pair.to_numpy(), strict=True)
        }
        found.setdefault(str(column), {})[str(region)] = figures
    return found


def regressions(
    cohort: Path, phantoms: PhantomCohort, effects: Mapping[str, Any]
) -> dict[str, Any]:
    """What an ordinary regression of the training scans finds, beside which a network is to be
    judged.

    Args:
        cohort: Folder of the cohort.
        phantoms: The cohort, which knows the complete rows.
        effects: Of `effect_figures`, for the truth.

    Returns:
        `oracle`: HU in the lungs by pair of values, from the complete rows. From the rows as
        training sees them, with their empty cells: the same in `known`, slopes by attribute and
        region in `incomplete`, and in `incomplete_small` the largest error by attribute over pairs
        and regions where the truth is too small for a slope.
    """
    cases = phantoms.splits["train"]
    means = pd.DataFrame([region_means(cohort, case) for case in cases])
    seen = (
        pd.read_csv(cohort / "clinical.csv", dtype=str, keep_default_na=False)
        .set_index("File Name")
        .loc[list(cases)]
    )
    complete, known = (
        regress(table, means) for table in (pd.DataFrame([phantoms.row(c) for c in cases]), seen)
    )
    slopes: dict[str, dict[str, float]] = {}
    errors: dict[str, float] = {}
    for column, by_region in effects.items():
        for region in (r for r in means if r in by_region and r != "outside"):
            pairs = np.array(
                [
                    (known.at[f"{column}: {pair}", region], true)
                    for pair, (_, true) in by_region[region]["pairs"].items()
                ]
            )
            small = np.abs(pairs[:, 1]) < SMALL_HU
            if not small.all():
                large = pairs[~small]
                slopes.setdefault(column, {})[region] = float(
                    large.prod(1).sum() / np.square(large[:, 1]).sum()
                )
            if small.any():
                errors[column] = max(
                    errors.get(column, 0.0), float(np.abs(np.diff(pairs[small])).max())
                )
    return {
        "oracle": complete["lungs"].to_dict(),
        "known": known["lungs"].to_dict(),
        "incomplete": slopes,
        "incomplete_small": errors,
    }


def region_means(cohort: Path, case: str) -> dict[str, float]:
    """Mean HU of a scan in each region of `REGIONS`."""
    scan, mask = (load_volume(cohort / kind / f"{case}.nii.gz") for kind in ("img", "gtlung"))
    where = chest_regions(mask.array, voxel_sizes(mask.affine))
    return {name: float(scan.array[where[name]].mean()) for name in REGIONS if name in where}


def regress(table: pd.DataFrame, means: pd.DataFrame) -> pd.DataFrame:
    """Least squares of regional means on a table, "" where not known: a row for each pair of
    values, in HU by region.
    """
    design = pd.get_dummies(table[["DIAGNOSIS", "SMOKING HISTORY", "label", NULL]]).astype(float)
    design = design[[c for c in design if not str(c).endswith("_")]].reset_index(
        drop=True
    )  # not known: no level at all
    age = pd.to_numeric(table["AGE"], errors="coerce").reset_index(drop=True)
    design["AGE"], design["age is known"] = (age - age.mean()).fillna(0), age.notna().astype(float)
    x = np.column_stack([np.ones(len(design)), design])
    fit = pd.DataFrame(
        np.linalg.lstsq(x, means.to_numpy(), rcond=None)[0][1:], list(design.columns), means.columns
    )
    none = pd.Series(np.nan, means.columns)

    def change(column: str, a: str, b: str) -> pd.Series:
        if column == "AGE":
            return fit.loc["AGE"] * (float(b) - float(a))
        first, second = (
            fit.loc[name] if (name := f"{column}_{value}") in fit.index else none
            for value in (a, b)
        )
        return second - first

    return pd.DataFrame(
        {
            f"{column}: {a} to {b}": change(column, a, b)
            for column, values in VARIED.items()
            for i, a in enumerate(values)
            for b in values[i + 1 :]
        }
    ).T


def texture(cohort: Path, phantoms: PhantomCohort, results: Path) -> dict[str, float]:
    """Whether generated lungs look like scans: SD, histogram distance against its floor, error
    against the truth's.
    """
    cases = phantoms.splits["test"]
    lungs: dict[str, dict[str, NDArray[Any]]] = {"real": {}, "made": {}, "truth": {}}
    for case in cases:
        inside = np.isin(load_volume(cohort / "gtlung" / f"{case}.nii.gz").array, (1, 2))
        lungs["real"][case] = load_volume(cohort / "img" / f"{case}.nii.gz").array[inside]
        lungs["made"][case] = load_volume(results / "volumes" / f"{case}.nii.gz").array[inside]
        lungs["truth"][case] = phantoms.render(case, noise=False).hu[inside]
    mae = {
        k: np.mean([np.abs(lungs[k][c] - lungs["real"][c]).mean() for c in cases])
        for k in ("made", "truth")
    }
    sd = {k: np.mean([v.std() for v in lungs[k].values()]) for k in lungs}
    made, real = (np.concatenate(list(lungs[k].values())) for k in ("made", "real"))
    return {
        "mae_hu": float(mae["made"]),
        "mae_ratio": float(mae["made"] / mae["truth"]),
        "sd_hu": float(sd["made"]),
        "sd_ratio": float(sd["made"] / sd["real"]),
        "w1_hu": float(wasserstein_distance(made, real)),
        "w1_floor_hu": histogram_floor(cohort, phantoms, len(cases)),
    }


def histogram_floor(cohort: Path, phantoms: PhantomCohort, n: int) -> float:
    """Median distance of lung histograms between two random sets of n real scans each, over
    `HALVES` draws; HU.
    """
    everyone = [c for cases in phantoms.splits.values() for c in cases]
    rng, kept = np.random.default_rng(0), {}
    for case in everyone:
        inside = np.isin(load_volume(cohort / "gtlung" / f"{case}.nii.gz").array, (1, 2))
        values = np.sort(load_volume(cohort / "img" / f"{case}.nii.gz").array[inside])
        kept[case] = values[:: max(1, len(values) // 2000)]
    half = min(n, len(everyone) // 2)
    found = []
    for _ in range(HALVES):
        drawn = rng.permutation(everyone)
        one, two = (
            np.concatenate([kept[c] for c in part])
            for part in (drawn[:half], drawn[half : 2 * half])
        )
        found.append(wasserstein_distance(one, two))
    return float(np.median(found))


def text_figures(
    generate: Callable[[VolumeSample, Prompt], NDArray[np.floating]],
    wholes: VolumeDataset,
    written: Mapping[str, Prompt],
    template: Template,
    phantoms: PhantomCohort,
) -> dict[str, Any]:
    """What a prompt's order and wording change in the lungs' mean (HU), and the effect of ages
    never seen in training.

    Args:
        generate: A case and a prompt to `(X, Y, Z)` HU.
        wholes: The test cases.
        written: The cases' own prompts.
        template: How rows become text.
        phantoms: The cohort, which knows the truth.
    """
    seen = {phantoms.row(case)["AGE"] for case in phantoms.splits["train"]}
    ages = [str(age) for age in UNSEEN if str(age) not in seen]
    changes: dict[str, list[float]] = {"re-ordered": [], "re-worded": []}
    made, true = ([], [])  # type: tuple[list[NDArray[Any]], list[NDArray[Any]]]
    for whole in wholes:
        case, own = whole.case.id, written[whole.case.id]
        lungs = np.isin(whole.labels, wholes.options.lung_labels)
        base = generate(whole, own)[lungs].mean()
        for name, prompt in (("re-ordered", reordered(own)), ("re-worded", reworded(own))):
            changes[name].append(float(abs(generate(whole, prompt)[lungs].mean() - base)))
        prompts = [
            template.phrases(template.change(whole.case.row, "AGE", age).row) for age in ages
        ]
        made.append(np.array([generate(whole, prompt)[lungs].mean() for prompt in prompts]))
        true.append(
            np.array([phantoms.render(case, {"AGE": age}).hu[lungs].mean() for age in ages])
        )
    found: dict[str, Any] = {
        k: {"mean_abs": float(np.mean(v)), "max_abs": max(v)} for k, v in changes.items()
    }
    found["unseen_ages"] = {"ages": ages}
    if len(ages) > 1:
        one, two = (
            np.concatenate([means - means.mean() for means in each]) for each in (made, true)
        )
        found["unseen_ages"]["slope"] = float((one * two).sum() / np.square(two).sum())
    return found
