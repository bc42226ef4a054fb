"""Which case is for training, validation or testing: obeyed from `splits.json`, else drawn by
patient.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.volumes import strip_suffix
from util.cli import UserError, format_list
from util.files import read_json, write_json

log = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "val", "test")
MIN_CASES = 10  # below this a tenth is less than a case

Splits = dict[str, tuple[str, ...]]


def read_splits(
    path: Path, cases: Sequence[str], patients: Mapping[str, str] | None = None
) -> Splits:
    """Reads `{"train": [case, ...], "val": [...], "test": [...]}`; an absent list is empty.

    Args:
        path: The JSON file; its cases may carry a volume suffix.
        cases: Every case of the cohort; those in no list are left out.
        patients: Case to patient, where the table names patients.

    Raises:
        UserError: Bad JSON, an unknown list or case, a case twice, or a patient in two splits.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}).") from None
    lists = list(stored.values()) if isinstance(stored, dict) else [None]
    if not all(isinstance(v, list) and all(isinstance(case, str) for case in v) for v in lists):
        raise UserError(
            f'{path} must look like {{"train": ["case1", ...], "val": [...], "test": [...]}}.'
        )
    if unknown := sorted(set(stored) - set(SPLIT_NAMES)):
        raise UserError(
            f"{path} has the lists {format_list(unknown)}; it may have only {', '.join(SPLIT_NAMES)}."
        )
    splits = {
        name: tuple(strip_suffix(case) for case in stored.get(name, [])) for name in SPLIT_NAMES
    }
    _check_splits(path, splits, cases, patients or {})
    left_out = len(set(cases) - {case for names in splits.values() for case in names})
    if left_out:
        log.info(
            "%s names no split for %d of %d cases; they are not used.", path, left_out, len(cases)
        )
    return splits


def _check_splits(
    path: Path, splits: Splits, cases: Sequence[str], patients: Mapping[str, str]
) -> None:
    named = [case for names in splits.values() for case in names]
    if unknown := [case for case in dict.fromkeys(named) if case not in set(cases)]:
        raise UserError(
            f"{path} names cases that have no files: {format_list(unknown)}. Correct the names or "
            "remove them."
        )
    if twice := [case for case in dict.fromkeys(named) if named.count(case) > 1]:
        raise UserError(
            f"{path} names these cases more than once: {format_list(twice)}. A case belongs to one "
            "split."
        )
    owners: dict[str, set[str]] = defaultdict(set)
    for name, members in splits.items():
        for case in members:
            owners[patients.get(case, "") or case].add(name)
    if torn := [patient for patient, names in owners.items() if len(names) > 1]:
        raise UserError(
            f"{path} puts scans of one patient into different splits: {format_list(torn)}. Move all "
            "scans of a patient to one split, or give no --patient_column."
        )


def make_splits(
    cases: Sequence[str],
    seed: int,
    patients: Mapping[str, str] | None = None,
    *,
    images: bool = True,
) -> Splits:
    """Draws 80/10/10 by patient; with fewer than ten cases or without images every case is in every
    split, and is said.

    Args:
        cases: Every case of the cohort.
        seed: Decides the draw.
        patients: Case to patient; a case without one counts as its own patient.
        images: Whether the cohort has scans at all.
    """
    if not images or len(cases) < MIN_CASES:
        why = f"There are fewer than {MIN_CASES} cases" if images else "There are no images"
        log.warning(
            "%s and no splits.json: every case is in every split, so tests are no tests of unseen "
            "cases.",
            why,
        )
        return {name: tuple(cases) for name in SPLIT_NAMES}
    groups: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        groups[(patients or {}).get(case, "") or case].append(case)
    names = list(groups)
    if len(names) < len(SPLIT_NAMES):
        raise UserError(
            f"There are only {len(names)} patients, too few to split. Write a splits.json."
        )
    order = [names[k] for k in np.random.default_rng(seed).permutation(len(names))]
    tenth = max(1, round(len(order) / 10))
    parts = {"train": order[2 * tenth :], "val": order[:tenth], "test": order[tenth : 2 * tenth]}
    rank = {case: k for k, case in enumerate(cases)}
    return {
        name: tuple(sorted((c for p in part for c in groups[p]), key=rank.__getitem__))
        for name, part in parts.items()
    }


def read_run_splits(path: Path, root: Path) -> Splits | None:
    """The splits that `save_splits` kept in a run's folder; None where there are none or `root` has
    its own splits.
    """
    if (root / path.name).is_file() or not path.is_file():
        return None
    stored = read_json(path)
    return {name: tuple(stored.get(name, ())) for name in SPLIT_NAMES}


def save_splits(path: Path, splits: Splits) -> None:
    """Writes splits as `read_splits` reads them, whole or not at all."""
    write_json(path, {k: list(v) for k, v in splits.items()})
