"""Checks of every volume of a cohort before anything long starts; all problems come together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from data.fact_store import CHECKS_FILE, Facts, FactStore
from data.geometry import Volume, corner_distance, format_sides, grids_match
from data.intensity import IntensityScale
from data.volumes import VolumeHeader, check_labels, load_checked, load_volume
from util.cli import UserError, format_list
from util.parallel import map_processes
from util.schema import misfit

log = logging.getLogger(__name__)

# HU are recognised by the lungs and by air, never by a single voxel: scanners pad with -2000 or
# -3024 outside the field of view. Volumes scaled to 0..1 or -1..1, z-scores, 8-bit pictures and raw
# detector values (HU + 1024) fail both rules.
LUNG_MEDIAN_HU = (-980.0, -250.0)  # from emphysema to consolidated lungs
AIR_HU = (-1100.0, -850.0)  # what lies below is padding
MIN_AIR_SHARE = 0.005  # of the voxels that are not padding
# Cases that differ from the cohort's median by more than this are named in a warning.
MAX_LUNG_MEDIAN_DIFFERENCE_HU = 200.0
MAX_AIR_SHARE_RATIO = 4.0
MAX_SPACING_RATIO = 3.0
MAX_CUT_SHARE = 0.5  # of the width of --intensity_window that values lie beyond it
MIN_CASES_TO_COMPARE = 4
RANGE_PERCENTILES = (0.1, 99.9)
MAX_DENSE_VOXELS = 2**22
MAX_LABEL = 255
MAX_DISTINCT_VALUES = 1000  # a mask with more is not read to its end
MAX_SHOWN = 10

# Types of the facts of a case (see `measure_case`).
CASE_FACTS = {
    "readable": bool,
    "labels": list[float],
    "warnings": list[str],
    "problems": list[str],
    "spacing": list[float],
    "image": dict[str, Any] | None,
}
Grid = Volume | VolumeHeader


def hu_facts(image: np.ndarray, lungs: np.ndarray | None = None) -> Facts:
    """Measure what `hu_fact_problems` needs of a CT.

    Args:
        image: (X, Y, Z).
        lungs: Bool array on the same grid; None where no mask is known.

    Returns:
        `low`, `high`, `finite`, the `range` of nearly all voxels, `air_share` of the voxels that
        are not padding, `air_range` of the voxels in `AIR_HU` (empty where there are none), and
        `lung_median`, None without lungs.
    """
    low = float(image.min())
    high = float(image.max())
    finite = bool(np.isfinite(low) and np.isfinite(high))
    lung_median = None
    if finite and lungs is not None and lungs.any():
        lung_median = float(np.median(image[lungs]))
    tissue = int(np.count_nonzero(image >= AIR_HU[0]))
    air = image[(image >= AIR_HU[0]) & (image <= AIR_HU[1])]
    return {
        "low": low,
        "high": high,
        "finite": finite,
        "range": np.percentile(_sparse(image), RANGE_PERCENTILES).tolist() if finite else [],
        "air_share": air.size / max(1, tissue),
        "air_range": [float(air.min()), float(air.max())] if air.size else [],
        "lung_median": lung_median,
    }


def _sparse(image: np.ndarray) -> np.ndarray:
    """Return every second voxel of a large volume along each axis."""
    return image[::2, ::2, ::2] if image.size > MAX_DENSE_VOXELS else image


def hu_fact_problems(facts: Facts) -> list[str]:
    """Return what shows that a CT is not finite, constant, or not in HU, without its name."""
    low = facts["low"]
    high = facts["high"]
    if not facts["finite"]:
        return ["holds values that are not finite (NaN or infinite). Export it again."]
    if low == high:
        return [f"is constant ({low:g} everywhere). Export it again or remove the case."]
    median = facts["lung_median"]
    reasons = []
    remedy = "Apply the rescale slope and intercept; do not normalise."
    if median is not None and not LUNG_MEDIAN_HU[0] <= median <= LUNG_MEDIAN_HU[1]:
        reasons.append(
            f"the lungs under its mask have a median of {median:g}, expected are "
            f"{LUNG_MEDIAN_HU[0]:g} to {LUNG_MEDIAN_HU[1]:g} HU"
        )
    if facts["air_share"] < MIN_AIR_SHARE:
        reasons.append(
            f"{facts['air_share']:.1%} of its voxels are air ({AIR_HU[0]:g} to {AIR_HU[1]:g} HU; "
            "padding is left out), and a chest CT holds more"
        )
        remedy += " Its values may also be cut to a window."
    elif reasons:
        remedy += " If the scan is in HU, its mask or the lung labels are wrong."
    if not reasons:
        return []
    return [
        f"is not in HU: its values run from {low:g} to {high:g}; {'; '.join(reasons)}. {remedy} "
        "If it is not CT, give --modality mr or custom."
    ]


def constant_air_problems(facts: Facts) -> list[str]:
    """Return what shows that the air of a CT is padding, without its name.

    Raw detector values (HU + 1024) whose outside is padded with -1000 hold enough "air". Real air
    varies by the noise of the scanner and with the partial volume of the lungs, so that several
    values occur, also where a scan is cut at -1000. Where lungs are known, their median decides.
    """
    air = facts["air_range"]
    if not air or air[0] != air[1]:
        return []
    return [
        f"is not in HU: all its air ({AIR_HU[0]:g} to {AIR_HU[1]:g} HU) has the one value "
        f"{air[0]:g}, as padding has, and the values of a scan vary. Apply the rescale slope and "
        "intercept, also outside the field of view."
    ]


def intensity_problems(facts: Facts, scale: IntensityScale) -> list[str]:
    """Return what shows that a scan cannot be scaled to arbitrary units, without its name."""
    low, high = facts["low"], facts["high"]
    if not facts["finite"] or low == high:
        return hu_fact_problems(facts)
    window = scale.window
    if window is not None and (high <= window[0] or low >= window[1]):
        return [
            f"has values from {low:g} to {high:g}, all of them outside --intensity_window "
            f"{window[0]:g},{window[1]:g}. Give the range that the scans have."
        ]
    return []


def intensity_warnings(path: Path, facts: Facts, scale: IntensityScale) -> list[str]:
    """Return what a person should know of a scan that is scaled to arbitrary units."""
    if scale.window is not None:
        low, high = facts["range"]
        width = scale.window[1] - scale.window[0]
        lost = max(scale.window[0] - low, high - scale.window[1])
        if lost <= MAX_CUT_SHARE * width:
            return []
        return [
            f"{path}: 99.8 % of its values run from {low:g} to {high:g}, and --intensity_window "
            f"{scale.window[0]:g},{scale.window[1]:g} cuts off what lies beyond. Check the unit."
        ]
    if facts["range"][0] >= 0:
        return []
    return [
        f"{path} has negative values (from {facts['low']:g}), which MR scans do not have. If it is "
        "CT, use --modality ct; z-scores and the like have lost what percentiles could compare."
    ]


def image_facts(path: Path, mask: Path | None = None, lung_labels: Sequence[int] = (1, 2)) -> Facts:
    """Measure what `image_problems` needs of a CT (see `hu_facts`).

    Args:
        path: The CT.
        mask: Its mask on the same grid; None where no mask is known.
        lung_labels: Labels of the lungs.
    """
    array = load_volume(path).array
    lungs = None if mask is None else np.isin(load_volume(mask).array, lung_labels)
    return hu_facts(array, lungs)


def mask_facts(path: Path) -> Facts:
    """Measure what `mask_problems` needs of a mask: {"labels": [value, ...]}."""
    return {"labels": mask_labels(load_volume(path).array)}


def mask_labels(mask: np.ndarray) -> list[float]:
    """Return the values of a mask (X, Y, Z); where there are thousands, not all are listed."""
    if mask.dtype == np.uint8:
        return np.flatnonzero(np.bincount(mask.ravel(), minlength=1)).astype(float).tolist()
    values: set[float] = set()
    for plane in mask:  # plane by plane: sorting a whole scan takes gigabytes
        values |= set(np.unique(plane).tolist())
        if len(values) > MAX_DISTINCT_VALUES:
            break
    return sorted(float(v) for v in values)


def image_problems(path: Path, facts: Facts, scale: IntensityScale | None = None) -> list[str]:
    """Return messages on a scan that is not finite, constant, or not in HU.

    With a scale, HU are not expected.
    """
    problems = hu_fact_problems(facts) if scale is None else intensity_problems(facts, scale)
    return [f"{path} {problem}" for problem in problems]


def mask_problems(path: Path, facts: Facts, max_labels: int) -> list[str]:
    """Return messages on a mask whose labels are not integers, out of range or too many."""
    labels = facts["labels"]
    problems = label_problems(path, labels)
    if not problems and len(labels) > max_labels:
        return [
            f"{path} holds {len(labels)} different labels, more than --max_labels {max_labels}. Is "
            "it a mask?"
        ]
    return problems


def label_problems(path: Path, labels: Sequence[float]) -> list[str]:
    """Return messages on values that cannot be labels."""
    if broken := [v for v in labels if not np.isfinite(v) or v != round(v)]:
        return [
            f"{path} holds labels that are not integers, such as {broken[0]:g}. Save the label map "
            "itself."
        ]
    if outside := [v for v in labels if not 0 <= v <= MAX_LABEL]:
        return [
            f"{path} holds the label {outside[0]:g}; labels run from 0 to {MAX_LABEL}. Relabel the "
            "mask."
        ]
    return []


def check_labels_known(
    cohort_labels: Sequence[int], run_labels: Sequence[int], masks: Sequence[Path]
) -> None:
    """Raise `UserError` naming the first mask with a label that a run does not have.

    Args:
        cohort_labels: Labels that occur in any mask; the masks are only read where one is unknown.
        run_labels: Labels of the run.
        masks: Mask files.
    """
    if set(cohort_labels) - set(run_labels):
        for mask in masks:
            check_labels([int(v) for v in mask_facts(mask)["labels"]], run_labels, mask)


def grid_problems(image: Path, image_grid: Grid, mask: Path, mask_grid: Grid) -> list[str]:
    """Return messages on a CT and a mask whose grids differ (see `geometry.GRID_TOLERANCE`)."""
    remedy = "Resample the mask onto the CT's grid (nearest neighbour)."
    shape = image_grid.shape
    if shape != mask_grid.shape:
        return [
            f"{mask} has shape {mask_grid.shape} (in RAS), its CT {image} has {shape}. {remedy}"
        ]
    if not grids_match(shape, image_grid.affine, mask_grid.affine):
        distance = corner_distance(shape, image_grid.affine, mask_grid.affine)
        return [
            f"{mask} lies elsewhere than its CT {image}: corners are up to {distance:.3g} mm "
            f"apart. {remedy}"
        ]
    return []


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
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    spacing: list[float] = field(default_factory=list)
    image: Facts | None = None


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
    facts["image"] = None
    try:
        mask = load_checked(mask_path)
        facts["labels"] = mask_labels(mask.volume.array)
        facts["warnings"] += mask.warnings
        facts["spacing"] = voxel_sizes(mask.volume.affine).tolist()
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
    return CaseCheck(problems, warnings, labels, facts["spacing"], measured)


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
    name = f"case {','.join(map(str, sorted(lung_labels)))}"
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


def outlier_warnings(
    files: Sequence[tuple[Path | None, Path]], checks: Sequence[CaseCheck]
) -> list[str]:
    """Return messages on cases that differ strongly from the other ones.

    A scan with an offset of its own, or with a header in other units, looks plausible by itself.

    Args:
        files: CT or None, and mask, of every case.
        checks: Their checks.
    """
    warnings = _spacing_warnings([mask for _, mask in files], [c.spacing for c in checks])
    with_image = [
        (image, check.image)
        for (image, _), check in zip(files, checks, strict=True)
        if image is not None and check.image is not None
    ]
    return warnings + hu_outlier_warnings(with_image)


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
        log.warning("%d masks hold only background: %s.", len(empty), format_list(empty))
    warnings = [warning for case in checks for warning in case.warnings]
    warnings += outlier_warnings(files, checks)
    for warning in _shorten(warnings):
        log.warning("%s", warning)
    case_labels = tuple(tuple(case.labels) for case in checks)
    return CohortCheck(tuple(sorted(labels)), tuple(warnings), case_labels)


def _shorten(messages: Sequence[str]) -> list[str]:
    """Return the first messages, and how many are hidden."""
    hidden = len(messages) - MAX_SHOWN
    more = [f"... and {hidden} more"] if hidden > 0 else []
    return [*messages[:MAX_SHOWN], *more]
