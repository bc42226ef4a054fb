"""What an atlas looks at: attributes, cases to generate, real scans to compare with; checked before
anything long starts.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from data.cohort import Case, Cohort
from data.resampling import fold_cases, parse_fold, patients_of
from data.text.prompts import Template
from options.atlas_options import AtlasCases
from options.base_options import DataOptions
from pipelines.atlas.attributes import (
    attribute_variants,
    choose_attributes,
    classify_column,
    pooled_covariate,
)
from pipelines.atlas.measure import MeasurementPlan
from pipelines.atlas.statistics.contrasts import AtlasAttribute, contrasts_of
from util.cli import UserError


@dataclass(frozen=True)
class AtlasStudy:
    """Everything that is looked at.

    Attributes:
        cohort: That is looked at.
        trained_on: The run's own cohort, with its splits; `cohort` itself unless other patients are
            looked at.
        labels: The run's mask labels.
        cases: To generate.
        real_cases: With scans to compare with.
        training: The run's training cases.
        plan: How each case is changed and measured.
        left_out: Why other columns are not studied.
        every: All columns that could be studied, those not asked for too: real scans are adjusted
            for them.
        pooled: Those among them that hold too many texts to be studied, of which rare ones are
            taken together.
        fold_of: Case to fold, with cross-fitting.
    """

    cohort: Cohort
    trained_on: Cohort
    labels: Sequence[int]
    cases: Sequence[Case]
    real_cases: Sequence[Case]
    training: Sequence[Case]
    plan: MeasurementPlan
    left_out: Mapping[str, str]
    every: Mapping[str, AtlasAttribute]
    pooled: Sequence[str]
    fold_of: Mapping[str, str]

    @property
    def seen(self) -> frozenset[str]:
        """Cases of the cohort that the network generating them was trained on."""
        own = {case.id for case in self.training} if self.trained_on is self.cohort else set()
        return frozenset(own - set(self.fold_of))

    @property
    def folds(self) -> list[str]:
        return sorted(set(self.fold_of.values()))

    def shown_row(self, case: Case) -> dict[str, str]:
        """The columns that can be studied as the text says them, "" where not known or
        contradicted.
        """
        row = self.plan.template.consistent(case.row).row
        return {column: self.plan.template.format_value(row, column) for column in self.every}

    def training_rows(self) -> pd.DataFrame:
        """The training cases' rows as the text says them."""
        return pd.DataFrame(
            [self.shown_row(case) for case in self.training], columns=list(self.every)
        )


def make_study(
    o: AtlasCases,
    cohort: Cohort,
    trained_on: Cohort,
    template: Template,
    data: DataOptions,
    labels: Sequence[int],
    known: Sequence[str],
) -> AtlasStudy:
    """Checks columns, references, folds and splits; `known` are the columns that the run was
    trained with.

    Raises:
        UserError: A column that is not there or cannot be studied, a split without cases, a fold
            that is none.
    """
    if o.fold and trained_on is not cohort:
        raise UserError(
            f"--fold is {o.fold!r}, which is for the run's own cohort {trained_on.root}; "
            f"{cohort.root} is another."
        )
    training = tuple({case.id: case for case in trained_on.split("train")}.values())
    rows = [template.consistent(case.row).row for case in training]
    wanted = [
        c.strip() for c in next(csv.reader([o.columns], skipinitialspace=True), []) if c.strip()
    ]
    columns = list(cohort.columns)
    attributes, left_out = choose_attributes(
        template, rows, columns, wanted, known, parse_references(o)
    )
    there = template.attributes(columns)
    every = {
        c: a for c in there if isinstance(a := classify_column(template, rows, c), AtlasAttribute)
    }
    every |= {a.column: a for a in attributes}
    pooled = {
        c: p
        for c in there
        if c not in every and (p := pooled_covariate(template, rows, c)) is not None
    }
    if o.null_column and o.null_column not in [a.column for a in attributes]:
        raise UserError(
            f"--null_column {o.null_column!r} is not among the attributes that are looked at."
        )
    fold_of = folds_of_cases(o, training, patients_of(cohort, data.patient_column))
    if fold_of:
        cases = [case for case in training if case.id in fold_of]
    else:
        cases = list(cohort.cases if o.split == "all" else cohort.split(o.split))
    cases = cases[: o.how_many or len(cases)]
    attributes, never = drop_impossible(template, attributes, cases, wanted)
    left_out |= never
    real_split = o.real_split or ("" if fold_of else "all")
    real = (
        cases
        if not real_split
        else cohort.cases
        if real_split == "all"
        else cohort.split(real_split)
    )
    plan = MeasurementPlan(
        template, data, attributes, [c for a in attributes for c in contrasts_of(a)], o.vessel_hu
    )
    scanned = [case for case in real if case.image]
    return AtlasStudy(
        cohort,
        trained_on,
        labels,
        cases,
        scanned,
        training,
        plan,
        left_out,
        every | pooled,
        tuple(pooled),
        fold_of,
    )


def drop_impossible(
    template: Template,
    attributes: Sequence[AtlasAttribute],
    cases: Sequence[Case],
    wanted: Sequence[str],
) -> tuple[list[AtlasAttribute], dict[str, str]]:
    """The attributes that a case at least can have, and why others are left out; raises `UserError`
    for those asked for.
    """
    kept = [
        a for a in attributes if any(attribute_variants(template, case.row, a) for case in cases)
    ]
    never = {
        a.column: "the rest of the row rules it out in every case looked at"
        for a in attributes
        if a not in kept
    }
    if asked := [c for c in never if c in wanted]:
        raise UserError(
            f"--columns: {asked[0]!r} cannot be studied: {never[asked[0]]}. Choose another --split."
        )
    if not kept:
        raise UserError(
            f"No attribute can be tried in the {len(cases)} cases looked at. Choose another "
            "--split."
        )
    return kept, never


def parse_references(o: AtlasCases) -> dict[str, str]:
    """Column to value of `--reference`."""
    found = {}
    for text in o.reference:
        column, equals, value = text.partition("=")
        if not equals or not column.strip() or not value.strip():
            raise UserError(f'--reference is {text!r}; it must be of the form "COLUMN=VALUE".')
        found[column.strip()] = value.strip()
    return found


def folds_of_cases(
    o: AtlasCases, training: Sequence[Case], patients: Mapping[str, str]
) -> dict[str, str]:
    """The fold of each case in the folds of `--fold`."""
    if not o.fold:
        return {}
    every = o.fold.startswith("all/")
    text = o.fold.replace("all/", "1/", 1)
    count = parse_fold(text)[1]
    folds = [f"{k}/{count}" for k in range(1, count + 1)] if every else [text]
    ids = [case.id for case in training]
    return {case: fold for fold in folds for case in fold_cases(ids, patients, fold)}
