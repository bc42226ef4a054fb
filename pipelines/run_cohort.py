"""Cohorts read as a run's training read its own, with the splits that the run keeps."""

from __future__ import annotations

import filecmp
from dataclasses import replace
from pathlib import Path

from data.cohort import Cohort
from data.load_cohort import load_cohort
from data.splits import read_run_splits
from options.base_options import DataOptions
from util.training.runs import SPLITS_FILE


def is_training_cohort(options: DataOptions, root: str | Path) -> bool:
    """Return whether a folder is the cohort that the run was trained on."""
    return Path(root).resolve() == Path(options.dataroot).resolve()


def is_training_copy(cohort: Cohort, trained_on: Cohort) -> bool:
    """Return whether a cohort has all training cases, and the mask of the first of them."""
    cases = {case.id: case for case in cohort.cases}
    training = trained_on.split("train")
    if not training or any(case.id not in cases for case in training):
        return False
    first = training[0]
    return filecmp.cmp(first.mask, cases[first.id].mask, shallow=False)


def load_run_cohort(
    folder: Path, options: DataOptions, root: str, seed: int, *, need_images: bool
) -> Cohort:
    """Load a cohort for a run.

    Args:
        folder: The run's folder, which keeps the splits of its own cohort.
        options: How the run read its cohort.
        root: The cohort's folder.
        seed: The run's seed, which decides splits that no file contains.
        need_images: Whether every mask must have its scan.

    Raises:
        UserError: See `load_cohort`.
    """
    cohort = load_cohort(replace(options, dataroot=root), need_images=need_images, seed=seed)
    if root and is_training_cohort(options, root):
        splits = read_run_splits(folder / SPLITS_FILE, cohort.root)
        return replace(cohort, splits=splits or cohort.splits)
    return cohort
