"""A cohort as a run sees it: read the way its training read its own, with the splits that the run
keeps.
"""

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
    """Whether a folder is the cohort that the run was trained on."""
    return Path(root).resolve() == Path(options.dataroot).resolve()


def is_training_copy(cohort: Cohort, own: Cohort) -> bool:
    """Whether a cohort is the run's own in another place: it has all training cases, and the first
    one's mask.
    """
    theirs = {case.id: case for case in cohort.cases}
    trained = own.split("train")
    return (
        bool(trained)
        and all(case.id in theirs for case in trained)
        and filecmp.cmp(trained[0].mask, theirs[trained[0].id].mask, shallow=False)
    )


def load_run_cohort(
    folder: Path, options: DataOptions, root: str, seed: int, *, need_images: bool
) -> Cohort:
    """Loads a cohort for a run.

    Args:
        folder: The run's folder, which keeps the splits of its own cohort.
        options: How the run read its cohort.
        root: The cohort's folder.
        seed: The run's, which decides splits that are written nowhere.
        need_images: Whether every mask must have its scan.

    Raises:
        UserError: See `load_cohort`.
    """
    cohort = load_cohort(replace(options, dataroot=root), need_images=need_images, seed=seed)
    if root and is_training_cohort(options, root):
        return replace(
            cohort, splits=read_run_splits(folder / SPLITS_FILE, cohort.root) or cohort.splits
        )
    return cohort
