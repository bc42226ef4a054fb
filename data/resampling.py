"""Which training cases a run sees, and with which rows: resampled patients, folds, and shuffled
columns.

All three only touch the training split, and depend on nothing but the seed and the cohort, so that
a run that goes on, its text encoder and its report see the same cases.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from options.base_options import DataOptions
from util.cli import UserError, format_list

if TYPE_CHECKING:
    from data.cohort import Cohort

PROMPTS_FILE = "prompts.csv"  # in the dataroot: texts that stand as they are, whatever the rows say


def apply_resampling(cohort: Cohort, options: DataOptions, seed: int) -> Cohort:
    """The cohort as `--fold`, `--resample` and `--permute` change its training cases.

    Raises:
        UserError: A fold that is none, a column that is not there, or prompts that do not follow
            the rows.
    """
    patients = patients_of(cohort, options.patient_column)
    train = list(cohort.splits.get("train", ()))
    if options.fold:
        out = set(fold_cases(train, patients, options.fold))
        train = [case for case in train if case not in out]
    if options.permute:
        cohort = _permute_columns(cohort, train, patients, options.permute, seed)
    if options.resample:
        train = bootstrap_patients(train, patients, seed)
    return replace(cohort, splits={**cohort.splits, "train": tuple(train)})


def patients_of(cohort: Cohort, column: str) -> dict[str, str]:
    """Case to patient; a case without one counts as its own patient."""
    return {
        case.id: (case.row.get(column, "").strip() if column else "") or case.id
        for case in cohort.cases
    }


def group_by_patient(cases: Sequence[str], patients: Mapping[str, str]) -> dict[str, list[str]]:
    """The cases of each patient, in the order of the cases."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case in dict.fromkeys(cases):
        groups[patients[case]].append(case)
    return dict(groups)


def parse_fold(text: str, flag: str = "--fold") -> tuple[int, int]:
    """`k/K` as two numbers, 1 <= k <= K; raises `UserError`."""
    number, _, count = text.partition("/")
    if not (
        number.isdigit() and count.isdigit() and int(count) >= 2 and 1 <= int(number) <= int(count)
    ):
        raise UserError(
            f"{flag} is {text!r}; it must be k/K with 1 <= k <= K and at least two folds, such as "
            "1/5."
        )
    return int(number), int(count)


def fold_cases(cases: Sequence[str], patients: Mapping[str, str], fold: str) -> list[str]:
    """The cases of fold k of K; patients are spread over the folds by a hash of their names,
    whatever the seed.
    """
    number, count = parse_fold(fold)
    groups = group_by_patient(cases, patients)
    if count > len(groups):
        raise UserError(
            f"--fold {fold}: there are only {len(groups)} training patients for {count} folds. Use "
            "fewer folds."
        )
    order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    chosen = {case for name in order[number - 1 :: count] for case in groups[name]}
    return [case for case in dict.fromkeys(cases) if case in chosen]


def bootstrap_patients(cases: Sequence[str], patients: Mapping[str, str], seed: int) -> list[str]:
    """As many patients as there are, drawn with replacement, with all their cases (bootstrap; Efron
    1979).
    """
    groups = list(group_by_patient(cases, patients).values())
    chosen = np.random.default_rng([seed, 11]).integers(len(groups), size=len(groups))
    return [case for k in sorted(chosen.tolist()) for case in groups[k]]


def _permute_columns(
    cohort: Cohort,
    train: Sequence[str],
    patients: Mapping[str, str],
    columns: Sequence[str],
    seed: int,
) -> Cohort:
    """The named columns of the training rows, moved together to another patient's cases."""
    if unknown := [c for c in columns if c not in cohort.columns]:
        raise UserError(
            f"--permute: the table has no column {unknown[0]!r}; it has: "
            f"{format_list(list(cohort.columns), 40)}."
        )
    if (cohort.root / PROMPTS_FILE).is_file():
        raise UserError(
            f"--permute shuffles the table, but {cohort.root / PROMPTS_FILE} gives texts that "
            "stand as they are. Move that file away for this run and for the one that it is "
            "compared with."
        )
    rows = {case.id: case.row for case in cohort.cases}
    groups = list(group_by_patient(train, patients).values())
    order = np.random.default_rng([seed, 12]).permutation(len(groups))
    given = {}
    for own, k in zip(groups, order.tolist(), strict=True):
        for i, case in enumerate(own):
            donor = rows[groups[k][i % len(groups[k])]]
            given[case] = {**rows[case], **{c: donor[c] for c in columns}}
    return replace(
        cohort, cases=tuple(replace(c, row=given.get(c.id, c.row)) for c in cohort.cases)
    )
