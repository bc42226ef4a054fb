"""Check of one case: scan and mask are opened once, and judged by what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.checks.intensities import hu_facts, image_problems, intensity_warnings
from data.checks.masks import grid_problems, mask_labels, mask_problems, right_of_left_mm
from data.fact_store import Facts, FactStore
from data.intensity import IntensityScale
from data.volumes import load_checked
from util.cli import UserError
from util.parallel import map_processes
from util.schema import misfit

# Types of the facts of a case (see `measure_case`).
CASE_FACTS = {
    "readable": bool,
    "labels": list[float],
    "warnings": list[str],
    "problems": list[str],
    "spacing": list[float],
    "image": dict[str, Any] | None,
    "right_of_left_mm": float | None,
}


@dataclass(frozen=True)
class CaseCheck:
    """Outcome of the check of one case.

    Attributes:
        problems: Messages; with any, the case cannot be used.
        warnings: What a person should look at.
        labels: Labels of the mask.
        spacing: Voxel sides of the mask in mm, empty where it cannot be read.
        image: Facts of the CT (see `hu_facts`), None without a CT or where it cannot be read or is
            not in HU.
        right_of_left_mm: How far the right lung lies on the right of the left one; None where the
            labels of a CT do not name one lung of each side.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    spacing: list[float] = field(default_factory=list)
    image: Facts | None = None
    right_of_left_mm: float | None = None


def measure_case(files: tuple[Path | None, Path], lung_labels: Sequence[int]) -> Facts:
    """Measure all that `judge_case` needs of a case; every file is opened once.

    Args:
        files: CT or None, and mask.
        lung_labels: Labels of the lungs, under which HU are measured.

    Returns:
        Plain values, see `CASE_FACTS`. A file that cannot be read is among the problems, and
        `readable` is false.
    """
    image_path, mask_path = files
    facts: Facts = {"readable": True, "labels": [], "warnings": [], "problems": [], "spacing": []}
    facts["image"] = facts["right_of_left_mm"] = None
    try:
        mask = load_checked(mask_path)
        facts["labels"] = mask_labels(mask.volume.array)
        facts["warnings"] += mask.warnings
        facts["spacing"] = list(mask.volume.spacing)
        facts["right_of_left_mm"] = right_of_left_mm(mask.volume, lung_labels)
        if image_path is None:
            return facts
        image = load_checked(image_path)
        facts["warnings"] += image.warnings
        facts["problems"] = grid_problems(image_path, image.volume, mask_path, mask.volume)
        if not facts["problems"]:
            facts["image"] = hu_facts(image.volume.array, np.isin(mask.volume.array, lung_labels))
    except UserError as error:
        facts["problems"].append(str(error))
        facts["readable"] = False
    return facts


def judge_case(
    files: tuple[Path | None, Path],
    facts: Facts,
    max_labels: int,
    scale: IntensityScale | None = None,
) -> CaseCheck:
    """Check one case by its facts.

    Args:
        files: CT or None, and mask.
        facts: See `measure_case`.
        max_labels: More different labels than this are a problem.
        scale: How intensities are scaled, None for HU.
    """
    image, mask = files
    problems = mask_problems(mask, facts, max_labels)
    labels = [] if problems else [int(v) for v in facts["labels"]]
    problems += facts["problems"]
    measured, warnings = facts["image"], list(facts["warnings"])
    if measured is not None and image is not None:
        wrong = image_problems(image, measured, scale)
        if scale is not None and not wrong:
            warnings += intensity_warnings(image, measured, scale)
        problems += wrong
        measured = measured if scale is None and not wrong else None
    distance = facts["right_of_left_mm"] if scale is None else None
    return CaseCheck(problems, warnings, labels, facts["spacing"], measured, distance)


def _key(store: FactStore, name: str, files: tuple[Path | None, Path]) -> str:
    """Return the key of a case's facts; "" where a file is not there, which its reader says."""
    try:
        return store.key(name, [path for path in files if path is not None])
    except OSError:
        return ""


def case_facts(
    files: Sequence[tuple[Path | None, Path]], store: FactStore, lung_labels: Sequence[int]
) -> list[Facts]:
    """Return the facts of every case: those that are known, others measured in processes."""
    name = f"case {','.join(map(str, lung_labels))}"
    keys = [_key(store, name, pair) for pair in files]
    facts = [store.find(key) for key in keys]
    unknown = [k for k, known in enumerate(facts) if known is None or misfit(known, CASE_FACTS)]
    measure = partial(measure_case, lung_labels=tuple(lung_labels))
    for k, measured in zip(
        unknown,
        map_processes(measure, [files[k] for k in unknown], "Checking volumes"),
        strict=True,
    ):
        facts[k] = measured
        if measured["readable"]:
            store.add(keys[k], measured)
    return [case for case in facts if case is not None]
