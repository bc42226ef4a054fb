"""Scores of a generator on a standard set, and their comparison with expected ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.report.kinds_measure import measure_effects, measure_texture
from benchmarks.standard.standard_set import DRAWS, StandardSet, VolumeReader
from data.cohort import IMAGES
from data.geometry import Volume
from data.phantom.kinds.columns import GROUPS
from data.preparation.masks import threshold_lungs
from data.volumes import load_volume, to_unit
from pipelines.evaluation.detail import detail_vector
from pipelines.evaluation.extractors import DEFAULT_WINDOW, make_extractor
from pipelines.evaluation.memorisation import CopyCheck
from pipelines.evaluation.overlap import overlap
from util.files import plain_json
from util.markdown import markdown_table

RATIO = (0.7, 1.3)  # of the truth, that counts as reached
# By kind of statistic: the largest truth that counts as none, and what may be generated then.
NULL_LIMITS: Mapping[str, float] = {"mean_hu": 2.0, "_hu": 10.0, "share": 0.005}
NULL_DETAIL = 0.05  # the same of detail, as a share of the detail before the change
SUMMARY_DIGITS = 3
# Why a score may have no value, which scores.json holds as null.
UNDEFINED: Mapping[str, str] = {
    "detail ratio": "no scan of a test case has detail in its lungs",
    "vessel ratio": "no scan of a test case has a voxel as dense as a vessel in its lungs",
    "seed correlation": "the lungs of two draws have no detail to correlate",
    "Dice": "thresholding finds no lungs in any volume",
    "Dice of scans": "thresholding finds no lungs in any scan",
}


@dataclass(frozen=True)
class Cost:
    """Time and memory of a generator.

    Attributes:
        train_seconds: Wall time of training.
        seconds_per_volume: Wall time of generation over the volumes.
        memory_gib: Peak resident memory of its processes.
    """

    train_seconds: float
    seconds_per_volume: float
    memory_gib: float


def null_limit(statistic: str, start: float) -> float:
    """Return the size up to which an effect on a statistic counts as none.

    Args:
        statistic: A name of `util.metrics.texture.STATISTICS`.
        start: Its true value before the change.
    """
    if statistic.startswith("detail"):
        return NULL_DETAIL * abs(start)
    if statistic.startswith("share"):
        return NULL_LIMITS["share"]
    return NULL_LIMITS["mean_hu" if statistic == "mean_hu" else "_hu"]


def is_reached(statistic: str, start: float, true: float, generated: float) -> bool:
    """Return whether an effect comes back: 0.7 to 1.3 of the truth, or none where there is none."""
    limit = null_limit(statistic, start)
    if abs(true) <= limit:
        return abs(generated) <= limit
    return RATIO[0] <= generated / true <= RATIO[1]


def effect_rows(group: str, effects: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the planted effects with what was generated, a row per effect, region and statistic.

    Args:
        group: Name of the planted columns, which say where each effect shows or must not.
        effects: Of `measure_effects`.
    """
    planted = GROUPS[group]
    measures = {column.name: column.measures for column in planted.all_columns}
    rows = []
    for contrast in planted.all_contrasts:
        for region, statistic in measures[contrast.column]:
            values = effects[contrast.name].get(region, {}).get(statistic)
            if values is None:
                continue
            true, generated = values["true"], values["generated"]
            reached = is_reached(statistic, values["start"], true, generated)
            row = {"effect": contrast.name, "region": region, "statistic": statistic}
            row |= {"true": true, "generated": generated, "error": values["error"]}
            rows.append(row | {"reached": reached})
    return rows


def score_masks(standard: StandardSet, reader: VolumeReader) -> dict[str, float]:
    """Return the Dice of the mask and of lungs found by thresholding, and that of true scans."""
    generated: list[float] = []
    true: list[float] = []
    for case, hu in reader.own_volumes():
        scan = standard.cohort.render(case)
        for values, volume in ((generated, hu), (true, scan.hu)):
            lungs = threshold_lungs(Volume(volume, scan.affine))
            values.append(overlap(scan.mask, lungs, scan.spacing)["dice_lungs"])
    return {"dice": float(np.nanmean(generated)), "dice of scans": float(np.nanmean(true))}


def score_copies(standard: StandardSet, reader: VolumeReader) -> dict[str, float]:
    """Return the share of volumes of test cases that are copies of training scans."""
    cohort = standard.cohort
    extractor = make_extractor("random", torch.device("cpu"), 3)

    def describe(case: str, hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chest = cohort.chest(case)
        unit = torch.from_numpy(np.ascontiguousarray(to_unit(hu, DEFAULT_WINDOW)))
        features = extractor(unit[None, None])[0]
        return detail_vector(hu, chest.spacing, chest.lungs), features

    train = {}
    for case in cohort.splits["train"]:
        scan = load_volume(cohort.root / IMAGES / f"{case}.nii.gz").array.astype(np.float32)
        train[case] = describe(case, scan)
    volumes = [describe(case, hu) for case, hu in reader.own_volumes()]
    details, features = _stack(list(train.values()))
    check = CopyCheck.from_scans(list(train), details, features)
    verdicts = check(*_stack(volumes))
    return {"copies": float(np.mean([verdict.copy for verdict in verdicts]))}


def _stack(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the second arrays of pairs, each stacked."""
    return np.stack([first for first, _ in pairs]), np.stack([second for _, second in pairs])


def score_set(standard: StandardSet, folder: Path, cost: Cost) -> dict[str, Any]:
    """Return all scores of the volumes in a folder.

    Raises:
        UserError: A volume is missing, is not on its grid, or does not hold HU.
    """
    reader = standard.reader(folder)
    cohort = standard.cohort
    return {
        "digest": standard.digest,
        "effects": effect_rows(cohort.group, measure_effects(cohort, reader, DRAWS)),
        "texture": measure_texture(cohort, reader),
        "mask": score_masks(standard, reader),
        "copies": score_copies(standard, reader),
        "cost": asdict(cost),
    }


def summarise(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of a set in one row."""
    effects = scores["effects"]
    texture = scores["texture"]
    values = {
        "effects reached": f"{sum(row['reached'] for row in effects)} of {len(effects)}",
        "detail ratio": texture["detail ratio"],
        "vessel ratio": texture["vessel ratio"],
        "seed correlation": texture["seed correlation"],
        "Dice": scores["mask"]["dice"],
        "Dice of scans": scores["mask"]["dice of scans"],
        "copies": scores["copies"]["copies"],
        "training s": scores["cost"]["train_seconds"],
        "s per volume": scores["cost"]["seconds_per_volume"],
        "GiB": scores["cost"]["memory_gib"],
    }
    return {
        name: round(value, SUMMARY_DIGITS) if isinstance(value, float) else value
        for name, value in plain_json(values).items()
    }


def tables(name: str, sets: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Return a generator's scores beside the expected ones of others, as Markdown."""
    parts = []
    for title, scores in sets.items():
        rows = [{"generator": name, **summarise(scores)}]
        digest = scores["digest"]
        for other, by_set in expected["generators"].items():
            known = by_set.get(title)
            if other != name and known and known["digest"] == digest:
                rows.append({"generator": other, **known["summary"]})
        frame = pd.DataFrame(scores["effects"])
        frame["reached"] = frame["reached"].map({True: "yes", False: "no"})
        parts += [f"## {title}", markdown_table(pd.DataFrame(rows))]
        parts += [
            f"–: {score} has no value, because {reason}."
            for score, reason in UNDEFINED.items()
            if rows[0][score] is None
        ]
        parts.append(markdown_table(frame))
    return "\n\n".join(parts)


def differing_sets(sets: Mapping[str, Any], expected: Mapping[str, Any]) -> Sequence[str]:
    """Return the sets whose rows are not those that the expected scores belong to."""
    digests: dict[str, set[str]] = {}
    for by_set in expected["generators"].values():
        for title, known in by_set.items():
            digests.setdefault(title, set()).add(known["digest"])
    return [
        title
        for title, scores in sets.items()
        if title in digests and scores["digest"] not in digests[title]
    ]
