"""Checks of every volume of a cohort before anything long starts; all problems come together."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.geometry import corner_distance, grids_match
from data.volumes import check_labels, load_volume, read_header
from util.cli import UserError, format_list
from util.files import file_fingerprint, write_json
from util.parallel import map_threads

log = logging.getLogger(__name__)

# A chest CT in HU holds air (-1000) in the lungs and around the body. Volumes scaled to 0..1 or
# -1..1, z-scores, 8-bit pictures (0..255) and raw detector values (HU + 1024) all have their
# darkest voxel above this.
MAX_DARKEST_HU = -200.0
MAX_LABEL = 255
MAX_DISTINCT_VALUES = 1000  # a mask with more is not read to its end
MAX_SHOWN = 10

Facts = dict[str, Any]


def image_facts(path: Path) -> Facts:
    """Measure what `image_problems` needs of a CT: {"low": HU, "high": HU, "finite": bool}."""
    array = load_volume(path).array
    low = float(array.min())
    high = float(array.max())
    return {"low": low, "high": high, "finite": bool(np.isfinite(low) and np.isfinite(high))}


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
    """Return messages on a CT that is not finite, constant, or clearly not in HU."""
    low = facts["low"]
    high = facts["high"]
    if not facts["finite"]:
        return [f"{path} holds values that are not finite (NaN or infinite). Export it again."]
    if low == high:
        return [f"{path} is constant ({low:g} everywhere). Export it again or remove the case."]
    if low >= MAX_DARKEST_HU:
        return [
            f"{path} is not in HU: its values run from {low:g} to {high:g}, but a chest CT holds "
            f"air, so some voxel lies below {MAX_DARKEST_HU:g}. Apply the rescale slope and "
            "intercept; do not normalise."
        ]
    return []


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
                self.facts = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                log.warning("%s is damaged; the volumes are checked again.", path)
        self.stored = len(self.facts)

    def get(self, file: Path, measure: Callable[[Path], Facts]) -> Facts:
        """Return the facts of `file`, measured where they are not known."""
        key = "|".join(map(str, [measure.__name__, *file_fingerprint(file)]))
        if key not in self.facts:
            self.facts[key] = measure(file)
        return self.facts[key]

    def save(self) -> None:
        """Write the facts where new ones were measured."""
        if self.path is not None and len(self.facts) > self.stored:
            write_json(self.path, self.facts)


def check_case_files(
    files: tuple[Path | None, Path], store: FactStore, max_labels: int
) -> tuple[list[str], list[int]]:
    """Return the problems of one case, and the labels of its mask.

    Args:
        files: CT or None, and mask.
        store: Facts that are known.
        max_labels: More different labels than this are a problem.
    """
    image, mask = files
    problems: list[str] = []
    labels: list[int] = []
    try:
        facts = store.get(mask, mask_facts)
        problems += mask_problems(mask, facts, max_labels)
        if not problems:
            labels = [int(v) for v in facts["labels"]]
        if image is not None:
            problems += grid_problems(image, mask)
            problems += image_problems(image, store.get(image, image_facts))
    except UserError as error:
        problems.append(str(error))
    return problems, labels


def check_volumes(
    files: Sequence[tuple[Path | None, Path]],
    max_labels: int = 16,
    cache: Path | None = None,
) -> tuple[int, ...]:
    """Read every volume once and return the labels of the cohort, sorted, 0 (background) included.

    Args:
        files: CT or None, and mask, of every case.
        max_labels: More different labels than this are an error.
        cache: Folder that stores the results.

    Raises:
        UserError: A file cannot be read, CT and mask lie on different grids, labels are not
            integers or too many, or a CT is constant, not finite or not in HU. The first ten
            problems are listed.
    """
    store = FactStore(cache / "checks.json" if cache else None)
    check = partial(check_case_files, store=store, max_labels=max_labels)
    results = map_threads(check, files, "Checking volumes", max_threads=8)
    store.save()
    problems: list[str] = []
    labels = {0}
    empty = []
    for (_, mask), (case_problems, case_labels) in zip(files, results, strict=True):
        problems += case_problems
        labels.update(case_labels)
        if not any(case_labels):
            empty.append(mask.name)
    if not problems and len(labels) > max_labels:
        problems = [
            f"The masks hold {len(labels)} different labels, more than --max_labels {max_labels}: "
            f"{tuple(sorted(labels))}."
        ]
    if problems:
        hidden = len(problems) - MAX_SHOWN
        more = f"\n... and {hidden} more" if hidden > 0 else ""
        raise UserError("\n".join(problems[:MAX_SHOWN]) + more)
    if empty:
        log.warning("%d masks hold only background: %s.", len(empty), format_list(empty))
    return tuple(sorted(labels))
