"""Resampled training cases of a run: bootstrapped patients, folds, and permuted columns.

All three change the training split only, and depend on the seed and the cohort alone. So a resumed
run, its text encoder and its report see the same cases.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from data.cohort import PROMPTS_FILE, Case, Cohort
from data.text.values import named_patient
from options.base_options import DataOptions
from util.cli import UserError, counted, unknown_column


def apply_resampling(cohort: Cohort, options: DataOptions, seed: int) -> Cohort:
    """Return the cohort as `--fold`, `--resample` and `--permute` change its training cases.

    Raises:
        UserError: The fold is malformed, a column does not exist, or prompts do not follow the
            rows.
    """
    patients = patients_of(cohort, options.patient_column)
    train = list(cohort.splits.get("train", ()))
    if options.fold:
        left_out = set(fold_cases(train, patients, options.fold))
        train = [case for case in train if case not in left_out]
    if options.permute:
        cohort = _permute_columns(cohort, train, patients, options.permute, seed)
    if options.resample:
        train = bootstrap_patients(train, patients, seed)
    return replace(cohort, splits={**cohort.splits, "train": tuple(train)})


def patients_of(cohort: Cohort, column: str) -> dict[str, str]:
    """Return case to patient; a case without one counts as a patient."""
    return {case.id: patient_of(case, column) for case in cohort.cases}


def patient_of(case: Case, column: str) -> str:
    """Return the patient of a case; one without a patient, or without a column, is a patient."""
    return named_patient(case.row, column) or case.id


def group_by_patient(cases: Sequence[str], patients: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the cases of each patient, in the order of the cases."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case in dict.fromkeys(cases):
        groups[patients[case]].append(case)
    return dict(groups)


def parse_fold(text: str, flag: str = "--fold") -> tuple[int, int]:
    """Return k and K of `k/K` with 1 <= k <= K and K >= 2; raise `UserError` for another text."""
    number, _, count = text.partition("/")
    if number.isdigit() and count.isdigit() and int(count) >= 2:
        k = int(number)
        if 1 <= k <= int(count):
            return k, int(count)
    raise UserError(
        f"{flag} is {text!r}; it must be k/K with 1 <= k <= K and at least two folds, such as 1/5."
    )


def fold_cases(cases: Sequence[str], patients: Mapping[str, str], fold: str) -> list[str]:
    """Return the cases of fold k of K.

    Patients are assigned to folds by a hash of their names, whatever the seed.
    """
    number, count = parse_fold(fold)
    groups = group_by_patient(cases, patients)
    if count > len(groups):
        raise UserError(
            f"--fold {fold}: {counted(len(groups), 'training patient')} cannot be divided into "
            f"{counted(count, 'fold')}. Use fewer folds."
        )
    order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    chosen = set(order[number - 1 :: count])
    return [case for case in dict.fromkeys(cases) if patients[case] in chosen]


def bootstrap_patients(cases: Sequence[str], patients: Mapping[str, str], seed: int) -> list[str]:
    """Draw as many patients as there are, with replacement, with all their cases (Efron 1979)."""
    groups = list(group_by_patient(cases, patients).values())
    chosen = np.random.default_rng([seed, 11]).integers(len(groups), size=len(groups))
    drawn: list[str] = []
    for k in sorted(chosen.tolist()):
        drawn += groups[k]
    return drawn


def _permute_columns(
    cohort: Cohort,
    train: Sequence[str],
    patients: Mapping[str, str],
    columns: Sequence[str],
    seed: int,
) -> Cohort:
    """Move columns of the training rows, together, to another patient's cases."""
    if unknown := [column for column in columns if column not in cohort.columns]:
        raise UserError(unknown_column("--permute: the table", unknown[0], cohort.columns))
    if (cohort.root / PROMPTS_FILE).is_file():
        raise UserError(
            f"--permute shuffles the table, but the texts of {cohort.root / PROMPTS_FILE} do not "
            "follow it. Move that file away for this run and for the one that it is compared with."
        )
    rows = {case.id: case.row for case in cohort.cases}
    groups = list(group_by_patient(train, patients).values())
    order = np.random.default_rng([seed, 12]).permutation(len(groups))
    permuted = {}
    for recipients, k in zip(groups, order.tolist(), strict=True):
        donors = groups[k]
        for i, case in enumerate(recipients):
            donor_row = rows[donors[i % len(donors)]]
            permuted[case] = {**rows[case], **{column: donor_row[column] for column in columns}}
    cases = [replace(case, row=permuted.get(case.id, case.row)) for case in cohort.cases]
    return replace(cohort, cases=tuple(cases))
