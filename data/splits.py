"""Cases for training, validation and testing: from `splits.json`, else drawn by patient."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.text.values import match_ids
from data.volumes import strip_suffix
from util.cli import UserError, counted, format_list
from util.files import read_json, write_json

log = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "val", "test")
MIN_CASES = 10  # below this a tenth is less than a case

Splits = Mapping[str, tuple[str, ...]]


def read_splits(
    path: Path, cases: Sequence[str], patients: Mapping[str, str] | None = None
) -> Splits:
    """Read `{"train": [case, ...], "val": [...], "test": [...]}`; an absent list is empty.

    Args:
        path: The JSON file; its cases may carry a volume suffix, and are matched as rows of the
            table are.
        cases: Every case of the cohort; those in no list are left out.
        patients: Case to patient, where the table names patients.

    Raises:
        UserError: The JSON is malformed, a list or case is unknown, a case occurs twice, or a
            patient is in two splits.
    """
    try:
        stored = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_mapping_without_repeats
        )
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}). Correct it.") from None
    if not isinstance(stored, dict) or not all(map(_is_list_of_strings, stored.values())):
        raise UserError(
            f'{path} must look like {{"train": ["case1", ...], "val": [...], "test": [...]}}.'
        )
    if unknown := sorted(set(stored) - set(SPLIT_NAMES)):
        raise UserError(
            f"{path} has the lists {format_list(unknown)}; it may have only "
            f"{', '.join(SPLIT_NAMES)}."
        )
    listed = {name: [strip_suffix(case) for case in stored.get(name, [])] for name in SPLIT_NAMES}
    matches = match_ids([case for names in listed.values() for case in names], cases, str(path))
    splits = {}
    for name, members in listed.items():
        splits[name] = tuple(matches.get(case, case) for case in members)
    _check_splits(path, splits, cases, patients or {})
    left_out = len(set(cases).difference(*splits.values()))
    if left_out:
        log.info(
            "%s names no split for %d of %s, not used here.",
            path,
            left_out,
            counted(len(cases), "case"),
        )
    return splits


def _mapping_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(name for name, _ in pairs)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"{repeated[0]!r} occurs twice")
    return dict(pairs)


def _is_list_of_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _check_splits(
    path: Path, splits: Splits, cases: Sequence[str], patients: Mapping[str, str]
) -> None:
    counts: Counter[str] = Counter()
    splits_of: dict[str, set[str]] = defaultdict(set)
    for name, members in splits.items():
        counts.update(members)
        for case in members:
            splits_of[patients.get(case, "") or case].add(name)
    known = set(cases)
    if unknown := [case for case in counts if case not in known]:
        raise UserError(
            f"{path} names cases that have no files: {format_list(unknown)}. Correct the names or "
            "remove them."
        )
    if repeated := [case for case, count in counts.items() if count > 1]:
        raise UserError(
            f"{path} names these cases more than once: {format_list(repeated)}. A case belongs to "
            "one split."
        )
    if torn := [patient for patient, names in splits_of.items() if len(names) > 1]:
        raise UserError(
            f"{path} puts scans of one patient into different splits: {format_list(torn)}. Move "
            "all scans of a patient to one split, or give no --patient_column."
        )


def draw_splits(
    cases: Sequence[str],
    seed: int,
    patients: Mapping[str, str] | None = None,
    *,
    images: bool = True,
) -> Splits:
    """Draw 80/10/10 by patient.

    With fewer than ten cases or without images every case is in every split, with a warning.

    Args:
        cases: Every case of the cohort.
        seed: Decides the draw.
        patients: Case to patient; a case without one counts as a patient.
        images: Whether the cohort has scans at all.
    """
    if not images or len(cases) < MIN_CASES:
        reason = f"There are fewer than {MIN_CASES} cases" if images else "There are no images"
        log.warning(
            "%s and no splits.json: every case is in every split, so tests are not tests of unseen "
            "cases.",
            reason,
        )
        return {name: tuple(cases) for name in SPLIT_NAMES}
    patient_of = {case: (patients or {}).get(case, "") or case for case in cases}
    names = list(dict.fromkeys(patient_of.values()))
    if len(names) < len(SPLIT_NAMES):
        raise UserError(
            f"{counted(len(names), 'patient')} cannot be divided into {len(SPLIT_NAMES)} splits. "
            "Write a splits.json."
        )
    order = [names[k] for k in np.random.default_rng(seed).permutation(len(names))]
    tenth = max(1, round(len(order) / 10))
    drawn = {"train": order[2 * tenth :], "val": order[:tenth], "test": order[tenth : 2 * tenth]}
    split_of = {patient: split for split, members in drawn.items() for patient in members}
    splits: dict[str, list[str]] = {split: [] for split in SPLIT_NAMES}
    for case in cases:
        splits[split_of[patient_of[case]]].append(case)
    return {split: tuple(members) for split, members in splits.items()}


def read_run_splits(path: Path) -> Splits | None:
    """Read the splits that `save_splits` wrote to a run's folder; None where there is no file.

    A resampled case occurs as often as it was drawn.

    Raises:
        UserError: The file is damaged.
    """
    if not path.is_file():
        return None
    stored = read_json(path)
    if not isinstance(stored, dict) or not all(map(_is_list_of_strings, stored.values())):
        raise UserError(
            f"{path} is damaged: it must hold a list of cases for each split. Restore it from a "
            "copy."
        )
    return {name: tuple(stored.get(name, ())) for name in SPLIT_NAMES}


def split_changes(before: Splits, now: Splits) -> list[str]:
    """Return the cases whose splits differ, as "case1 (train, now test)".

    Args:
        before: The splits of a run. Its training cases may be a part of those that there are,
            because of `resample` or `fold`.
        now: The splits of its cohort.
    """
    changes = []
    old_splits, new_splits = _splits_by_case(before), _splits_by_case(now)
    for case in dict.fromkeys([*old_splits, *new_splits]):
        old, new = old_splits.get(case, []), new_splits.get(case, [])
        if old != new and (old or new != ["train"]):
            changes.append(f"{case} ({_list_splits(old)}, now {_list_splits(new)})")
    return changes


def _splits_by_case(splits: Splits) -> dict[str, list[str]]:
    """Return the splits of each case, each once, in the order of `SPLIT_NAMES`."""
    by_case: dict[str, list[str]] = defaultdict(list)
    for name in SPLIT_NAMES:
        for case in dict.fromkeys(splits.get(name, ())):
            by_case[case].append(name)
    return by_case


def _list_splits(names: Sequence[str]) -> str:
    return " and ".join(names) or "in no split"


def save_splits(path: Path, splits: Splits) -> None:
    """Write splits as `read_splits` reads them, in one step."""
    write_json(path, {name: list(cases) for name, cases in splits.items()})
