"""Checks of every volume of a cohort before anything long starts; all problems come together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.checks.case import CaseCheck, case_facts, judge_case
from data.fact_store import CHECKS_FILE, Facts, FactStore
from data.geometry import format_sides
from data.intensity import IntensityScale
from util.cli import UserError, counted, format_list

log = logging.getLogger(__name__)

# Cases that differ from the cohort's median by more than this are named in a warning.
MAX_LUNG_MEDIAN_DIFFERENCE_HU = 200.0
MAX_AIR_SHARE_RATIO = 4.0
MAX_SPACING_RATIO = 3.0
MIN_CASES_TO_COMPARE = 4
MIN_WRONG_SIDE_MM = 10.0  # between the middles of exchanged lungs, at least
MAX_SHOWN = 10


def outlier_warnings(
    files: Sequence[tuple[Path | None, Path]], checks: Sequence[CaseCheck]
) -> list[str]:
    """Return messages on cases that differ strongly from the other ones.

    A scan with an offset of its own, or with a header in other units, looks plausible by itself.

    Args:
        files: CT or None, and mask, of every case.
    """
    warnings = _spacing_warnings([mask for _, mask in files], [c.spacing for c in checks])
    with_image = [
        (image, check.image)
        for (image, _), check in zip(files, checks, strict=True)
        if image is not None and check.image is not None
    ]
    return warnings + hu_outlier_warnings(with_image)


def lung_warnings(
    files: Sequence[tuple[Path | None, Path]],
    checks: Sequence[CaseCheck],
    lung_labels: Sequence[int],
) -> list[str]:
    """Return messages on masks whose lungs are exchanged, and on those that lack one of them.

    Args:
        files: CT or None, and mask, of every case.
        lung_labels: Labels of the lungs; two of them are the left and the right one.
    """
    masks = [(mask.name, check) for (_, mask), check in zip(files, checks, strict=True)]
    of_all = f"of {counted(len(masks), 'mask')}"
    warnings = []
    exchanged = [
        name
        for name, check in masks
        if check.right_of_left_mm is not None and check.right_of_left_mm < -MIN_WRONG_SIDE_MM
    ]
    if exchanged:
        left, right = lung_labels
        warnings.append(
            f"In {len(exchanged)} {of_all} the left lung (label {left}) lies on the right of the "
            f"right one (label {right}): {format_list(exchanged)}. Either the labels are exchanged "
            f"(lungmask writes 1 for the right lung; give --lung_labels {right},{left}), or the "
            "header mirrors the volume. Effects of the sides would be those of the other one."
        )
    sides = ("left ", "right ") if len(lung_labels) == 2 else ("",) * len(lung_labels)
    with_lungs = [(name, check) for name, check in masks if set(lung_labels) & set(check.labels)]
    for side, label in zip(sides, lung_labels, strict=True):
        missing = [name for name, check in with_lungs if label not in check.labels]
        if missing:
            warnings.append(
                f"{len(missing)} {of_all} without the {side}lung (label {label}): "
                f"{format_list(missing)}. Where the patient has it, the segmentation failed or "
                "--lung_labels names the wrong one, and that lung counts as background."
            )
    return warnings


def hu_outlier_warnings(scans: Sequence[tuple[Path, Facts]]) -> list[str]:
    """Return messages on scans whose lungs or share of air are far from those of the other ones.

    Args:
        scans: CT and its facts (see `hu_facts`).
    """
    if len(scans) < MIN_CASES_TO_COMPARE:
        return []
    warnings = []
    known = [(path, facts["lung_median"]) for path, facts in scans if facts["lung_median"]]
    typical = float(np.median([median for _, median in known])) if known else 0.0
    for path, median in known:
        if abs(median - typical) > MAX_LUNG_MEDIAN_DIFFERENCE_HU:
            warnings.append(
                f"{path}: the median of the lungs is {median:g} HU, that of the other cases "
                f"{typical:g} HU. Check that its rescale intercept was applied as in the others, "
                "and that its mask marks the lungs."
            )
    shares = [facts["air_share"] for _, facts in scans]
    typical = float(np.median(shares))
    for (path, _), share in zip(scans, shares, strict=True):
        if share * MAX_AIR_SHARE_RATIO < typical:
            warnings.append(
                f"{path}: {share:.1%} of its voxels are air, {typical:.1%} in the other cases. "
                "Check that its values are in HU and that it was not cropped."
            )
    return warnings


def _spacing_warnings(paths: Sequence[Path], spacings: Sequence[Sequence[float]]) -> list[str]:
    """Return messages on voxel sides that are far from the cohort's median."""
    known = [(path, np.array(sides)) for path, sides in zip(paths, spacings, strict=True) if sides]
    if len(known) < MIN_CASES_TO_COMPARE:
        return []
    typical = np.median([sides for _, sides in known], axis=0)
    warnings = []
    for path, sides in known:
        ratios = sides / typical
        if ratios.max() > MAX_SPACING_RATIO or ratios.min() * MAX_SPACING_RATIO < 1:
            warnings.append(
                f"{path} has voxels of {format_sides(sides)} mm, the cohort's median is "
                f"{format_sides(typical)} mm. Check its header, or give `spacing` to resample "
                "all cases."
            )
    return warnings


@dataclass(frozen=True)
class CohortCheck:
    """Outcome of the check of a cohort's volumes.

    Attributes:
        labels: Labels of the cohort, sorted, 0 (background) included.
        warnings: What a person should look at.
        case_labels: Labels of each mask.
    """

    labels: tuple[int, ...]
    warnings: tuple[str, ...]
    case_labels: tuple[tuple[int, ...], ...]


def check_volumes(
    files: Sequence[tuple[Path | None, Path]],
    max_labels: int = 16,
    cache: Path | None = None,
    lung_labels: Sequence[int] = (1, 2),
    scale: IntensityScale | None = None,
) -> CohortCheck:
    """Read every volume once, and log what a person should look at.

    Args:
        files: CT or None, and mask, of every case.
        max_labels: More different labels than this are an error.
        cache: Folder that stores the results.
        lung_labels: Labels of the lungs, under which HU are judged.
        scale: How intensities are scaled, None for HU.

    Raises:
        UserError: A file cannot be read, CT and mask lie on different grids, labels are not
            integers or too many, or a CT is constant, not finite or, without a scale, not in HU.
            The first ten problems are listed.
    """
    store = FactStore(cache / CHECKS_FILE if cache else None)
    facts = case_facts(files, store, lung_labels)
    store.save()
    pairs = zip(files, facts, strict=True)
    checks = [judge_case(pair, known, max_labels, scale) for pair, known in pairs]
    problems: list[str] = []
    labels = {0}
    empty = []
    for (_, mask), case in zip(files, checks, strict=True):
        problems += case.problems
        labels.update(case.labels)
        if not any(case.labels):
            empty.append(mask.name)
    if not problems and len(labels) > max_labels:
        problems = [
            f"The masks hold {len(labels)} different labels, more than --max_labels {max_labels}: "
            f"{tuple(sorted(labels))}."
        ]
    if problems:
        raise UserError("\n".join(_shorten(problems)))
    if empty:
        log.warning(
            "%s only background: %s.",
            counted(len(empty), "mask holds", "masks hold"),
            format_list(empty),
        )
    warnings = [warning for case in checks for warning in case.warnings]
    warnings += outlier_warnings(files, checks)
    if scale is None:
        warnings += lung_warnings(files, checks, lung_labels)
    for warning in _shorten(warnings):
        log.warning("%s", warning)
    case_labels = tuple(tuple(case.labels) for case in checks)
    return CohortCheck(tuple(sorted(labels)), tuple(warnings), case_labels)


def _shorten(messages: Sequence[str]) -> list[str]:
    """Return the first messages, and how many are hidden."""
    hidden = len(messages) - MAX_SHOWN
    more = [f"... and {hidden} more"] if hidden > 0 else []
    return [*messages[:MAX_SHOWN], *more]
