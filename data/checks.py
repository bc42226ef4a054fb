"""Checks of every volume of a cohort before anything long starts; all problems come together."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from data.geometry import corner_distance, format_sides, grids_match
from data.integrity import volume_fingerprint
from data.volumes import check_labels, header_warnings, load_volume, read_header
from util.cli import UserError, format_list
from util.files import write_json
from util.parallel import map_threads

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
MIN_CASES_TO_COMPARE = 4
RANGE_PERCENTILES = (0.1, 99.9)
MAX_DENSE_VOXELS = 2**22
VERSION = 2  # part of the keys of stored facts: raise it when the checks change
MAX_LABEL = 255
MAX_DISTINCT_VALUES = 1000  # a mask with more is not read to its end
MAX_SHOWN = 10

Facts = dict[str, Any]


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
        f"is not in HU: its values run from {low:g} to {high:g}; {'; '.join(reasons)}. {remedy}"
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
    """Measure what `mask_problems` needs of a mask: {"labels": [value, ...]}.

    Where there are thousands of values, not all are listed.
    """
    values: set[float] = set()
    for plane in load_volume(path).array:  # plane by plane: sorting a whole scan takes gigabytes
        values |= set(np.unique(plane).tolist())
        if len(values) > MAX_DISTINCT_VALUES:
            break
    return {"labels": sorted(float(v) for v in values)}


def image_problems(path: Path, facts: Facts) -> list[str]:
    """Return messages on a CT that is not finite, constant, or not in HU."""
    return [f"{path} {problem}" for problem in hu_fact_problems(facts)]


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


def grid_problems(image: Path, mask: Path) -> list[str]:
    """Return messages on a CT and a mask whose grids differ (see `geometry.GRID_TOLERANCE`)."""
    image_grid = read_header(image)
    mask_grid = read_header(mask)
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


class FactStore:
    """Facts of files, stored by path, size and time of change, so that a second start is fast.

    Args:
        path: JSON file of the facts; None stores nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.facts: dict[str, Facts] = {}
        if path is not None and path.is_file():
            try:
                self.facts = _read_facts(path)
            except (OSError, ValueError, RecursionError):
                log.warning("%s is damaged; the volumes are checked again.", path)
        self.stored = len(self.facts)

    def get(self, name: str, files: Sequence[Path], measure: Callable[[], Facts]) -> Facts:
        """Return facts, measured where they are not known.

        Args:
            name: Name of the facts, with everything but the files that decides them.
            files: Files of which the facts are.
            measure: Measures the facts.
        """
        parts: list[str | int] = [VERSION, name]
        for file in files:
            parts += volume_fingerprint(file)
        key = "|".join(map(str, parts))
        if key not in self.facts:
            self.facts[key] = measure()
        return self.facts[key]

    def save(self) -> None:
        """Write the facts where new ones were measured."""
        if self.path is not None and len(self.facts) > self.stored:
            write_json(self.path, self.facts)


def _read_facts(path: Path) -> dict[str, Facts]:
    facts = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(facts, dict) or not all(isinstance(v, dict) for v in facts.values()):
        raise ValueError("it does not hold facts by file")
    return facts


@dataclass(frozen=True)
class CaseCheck:
    """Outcome of the check of one case.

    Attributes:
        problems: Messages; with any, the case cannot be used.
        warnings: What a person should look at.
        labels: Labels of the mask.
        spacing: Voxel sides of the mask in mm, empty where it cannot be read.
        image: Facts of the CT (see `hu_facts`), None without a CT or where it cannot be read.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    spacing: list[float] = field(default_factory=list)
    image: Facts | None = None


def check_case_files(
    files: tuple[Path | None, Path],
    store: FactStore,
    max_labels: int,
    lung_labels: Sequence[int] = (1, 2),
) -> CaseCheck:
    """Check one case.

    Args:
        files: CT or None, and mask.
        store: Facts that are known.
        max_labels: More different labels than this are a problem.
        lung_labels: Labels of the lungs, under which HU are judged.
    """
    image, mask = files
    check = CaseCheck()
    try:
        facts = store.get("mask", [mask], partial(mask_facts, mask))
        check.problems.extend(mask_problems(mask, facts, max_labels))
        if not check.problems:
            check.labels.extend(int(v) for v in facts["labels"])
        check.warnings.extend(header_warnings(mask))
        check.spacing.extend(voxel_sizes(read_header(mask).affine).tolist())
        if image is None:
            return check
        check.warnings.extend(header_warnings(image))
        if problems := grid_problems(image, mask):
            check.problems.extend(problems)
            return check
        name = f"image {','.join(map(str, sorted(lung_labels)))}"
        measure = partial(image_facts, image, mask, lung_labels)
        hu = store.get(name, [image, mask], measure)
        if problems := image_problems(image, hu):
            check.problems.extend(problems)
        else:
            check = replace(check, image=hu)
    except UserError as error:
        check.problems.append(str(error))
    return check


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
) -> CohortCheck:
    """Read every volume once, and log what a person should look at.

    Args:
        files: CT or None, and mask, of every case.
        max_labels: More different labels than this are an error.
        cache: Folder that stores the results.
        lung_labels: Labels of the lungs, under which HU are judged.

    Raises:
        UserError: A file cannot be read, CT and mask lie on different grids, labels are not
            integers or too many, or a CT is constant, not finite or not in HU. The first ten
            problems are listed.
    """
    store = FactStore(cache / "checks.json" if cache else None)
    check = partial(
        check_case_files, store=store, max_labels=max_labels, lung_labels=tuple(lung_labels)
    )
    checks = map_threads(check, files, "Checking volumes", max_threads=8)
    store.save()
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
