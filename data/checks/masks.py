"""Checks of masks: their labels, and whether they lie on the grid of the scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.fact_store import Facts
from data.geometry import Volume, corner_distance, grids_match
from data.volumes import VolumeHeader, check_labels, load_volume
from util.cli import UserError

MAX_LABEL = 255
MAX_DISTINCT_VALUES = 1000  # a mask with more is not read to its end
Grid = Volume | VolumeHeader


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


def load_labels(path: Path | str) -> Volume:
    """Read a mask as uint8 labels in RAS, also where its file holds them as floats.

    Raises:
        UserError: The file cannot be read, or a value is not an integer from 0 to 255.
    """
    mask = load_volume(path)
    if problems := label_problems(Path(path), mask_labels(mask.array)):
        raise UserError(problems[0])
    return Volume(mask.array.astype(np.uint8), mask.affine)


def right_of_left_mm(mask: Volume, lung_labels: Sequence[int]) -> float | None:
    """Return how far the right lung lies on the right of the left one in mm, by their middles.

    Args:
        mask: RAS.
        lung_labels: Labels of the left and the right lung; others give None, as absent lungs do.
    """
    if len(lung_labels) != 2:
        return None
    middles = []
    for label in lung_labels:
        counts = np.count_nonzero(mask.array == label, axis=(1, 2))
        if not counts.any():
            return None
        middles.append(float(np.average(np.arange(len(counts)), weights=counts)))
    left, right = middles
    return (right - left) * mask.spacing[0]


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
            f"{path} holds the label {outside[0]:g}; labels run from 0 to {MAX_LABEL}. If it is a "
            "scan, name its mask instead; else relabel the mask."
        ]
    return []


def check_labels_known(
    cohort_labels: Sequence[int], run_labels: Sequence[int], masks: Sequence[Path]
) -> None:
    """Raise `UserError` naming the first mask with a label that a run does not have.

    Args:
        cohort_labels: Labels that occur in any mask; the masks are only read where one is unknown.
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
