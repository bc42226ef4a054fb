"""The study of an atlas: attributes, cases to generate, and real scans to compare with.

Everything is checked before anything long starts.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data.cohort import Case, Cohort
from data.resampling import fold_cases, parse_fold, patients_of
from data.text.counterfactuals import describe_not_stated, parse_edits
from data.text.prompts import Prompt, Row, Template, cohort_prompts
from options.atlas_options import AtlasCases
from options.checks import check_chest_ct
from pipelines.atlas.attributes import (
    AttributeChoice,
    attribute_variants,
    choose_attributes,
    classify_column,
    pooled_covariate,
    wording_attribute,
    words_among_numbers,
)
from pipelines.atlas.measure import MeasurementPlan
from pipelines.atlas.statistics.cautions import MIN_PATIENTS
from pipelines.atlas.statistics.contrasts import AtlasAttribute, contrasts_of
from pipelines.generation.plan import GenerationPlan
from pipelines.run_cohort import training_copies
from util.cli import UserError, format_list
from util.notices import notice

log = logging.getLogger(__name__)

DEFAULT_SPLIT = "test"  # whose cases are generated without cross-fitting


@dataclass(frozen=True)
class AtlasStudy:
    """The study.

    Attributes:
        cohort: The cohort that is studied.
        trained_on: The run's own cohort with its splits; `cohort` unless that holds other patients.
        labels: The run's mask labels.
        cases: Cases to generate.
        compared: Cases whose masks are compared, with or without a scan.
        real_cases: Cases whose scans are compared: those that no network was trained on, if enough.
        training: The run's training cases.
        plan: How each case is varied and measured.
        left_out: Reason by column that is not studied.
        every: All columns that could be studied, also those not asked for; real scans are adjusted
            for them.
        pooled: Columns of `every` with too many values to be studied, whose rare values are pooled.
        wordings: Words that are studied, as the text of each case holds them, by its mask's path.
        fold_of: Fold by case, with cross-fitting.
        copies: Cases of another cohort than the run's own that it was trained on all the same.
        control_labels: Mask labels that are negative controls.
    """

    cohort: Cohort
    trained_on: Cohort
    labels: Sequence[int]
    cases: Sequence[Case]
    compared: Sequence[Case]
    real_cases: Sequence[Case]
    training: Sequence[Case]
    plan: MeasurementPlan
    left_out: Mapping[str, str]
    every: Mapping[str, AtlasAttribute]
    pooled: Sequence[str]
    wordings: Mapping[Path, Mapping[str, str]]
    fold_of: Mapping[str, str]
    copies: frozenset[str]
    control_labels: tuple[int, ...]

    @classmethod
    def from_options(
        cls, options: AtlasCases, generation: GenerationPlan, trained_on: Cohort
    ) -> AtlasStudy:
        """Check columns, references, folds and splits.

        Args:
            options: What to study.
            generation: The run, and the cohort that is studied.
            trained_on: The run's own cohort.

        Raises:
            UserError: A column does not exist or cannot be studied, a split has no cases, or a fold
                does not exist.
        """
        cohort = generation.cohort
        template = generation.template
        if options.without_vessels:
            check_chest_ct(generation.data, "--without_vessels")
        if options.roles:
            template = template.with_roles(Path(options.roles), cohort.columns)
        if options.fold and trained_on is not cohort:
            raise UserError(
                f"--fold is {options.fold!r}, which is for the run's own cohort "
                f"{trained_on.root}; {cohort.root} is another."
            )
        training = tuple({case.id: case for case in trained_on.split("train")}.values())
        rows = [template.consistent(case.row).row for case in training]
        wanted = _parse_columns(options.columns)
        prompts = case_prompts(generation, trained_on)
        edits = parse_edits(options.vary_text)
        written = [prompts[case.mask] for case in training]
        chosen = choose_attributes(
            template,
            rows,
            cohort.columns,
            wanted,
            generation.run.state["columns"],
            parse_references(options),
            [wording_attribute(edit, written) for edit in edits],
        )
        every = _all_attributes(template, rows, cohort.columns, chosen.attributes)
        compared = [template.consistent(case.row).row for case in cohort.cases]
        unreadable = words_among_numbers(template, every.values(), compared)
        every = {column: one for column, one in every.items() if column not in unreadable}
        pooled = _pooled_attributes(template, rows, cohort.columns, every)
        null_column = options.null_column
        if null_column and null_column not in [a.column for a in chosen.attributes]:
            raise UserError(
                f"--null_column {null_column!r} is not among the attributes that are studied."
            )
        patients = patients_of(cohort, generation.data.patient_column)
        fold_of = folds_of_cases(options, training, patients)
        cases = _cases_to_generate(options, cohort, training, fold_of)
        studied = drop_impossible(generation, chosen, cases, wanted, unreadable)
        copies: frozenset[str] = frozenset()
        if trained_on is not cohort:
            copies = training_copies(cohort, generation.run.folder, generation.run.state)
        seen = _seen_cases(cohort, trained_on, fold_of, copies)
        trained = frozenset(patients[case] for case in seen)
        contrasts = []
        for attribute in studied.attributes:
            contrasts += contrasts_of(attribute)
        return cls(
            cohort=cohort,
            trained_on=trained_on,
            labels=generation.run.labels,
            cases=cases,
            compared=_compared_cases(options, cohort, cases),
            real_cases=_real_cases(options, cohort, cases, trained, patients),
            training=training,
            plan=MeasurementPlan(
                template,
                generation.data,
                studied.attributes,
                contrasts,
                options.without_vessels,
            ),
            left_out=studied.left_out,
            every={**every, **pooled},
            pooled=tuple(pooled),
            wordings={
                mask: {edit.column: edit.value(prompt) for edit in edits}
                for mask, prompt in prompts.items()
            },
            fold_of=fold_of,
            copies=copies,
            control_labels=check_control_labels(options, generation),
        )

    @property
    def seen(self) -> frozenset[str]:
        """Cases of the cohort that the network generating them was trained on."""
        return _seen_cases(self.cohort, self.trained_on, self.fold_of, self.copies)

    @property
    def folds(self) -> list[str]:
        """The folds of cross-fitting."""
        return sorted(set(self.fold_of.values()))

    def formatted_row(self, case: Case) -> dict[str, str]:
        """Return a case's values as the text shows them, "" where not known or contradicted."""
        template = self.plan.template
        row = template.consistent(case.row).row
        words = self.wordings[case.mask]
        return {
            column: words[column] if column in words else template.format_value(row, column)
            for column in self.every
        }

    @property
    def words(self) -> list[str]:
        """Names of the words that are studied."""
        return [name for name, attribute in self.every.items() if attribute.edit is not None]

    def training_rows(self) -> pd.DataFrame:
        """Return the rows of the training cases as the text shows them."""
        rows = [self.formatted_row(case) for case in self.training]
        return pd.DataFrame(rows, columns=list(self.every))


def _seen_cases(
    cohort: Cohort, trained_on: Cohort, fold_of: Mapping[str, str], copies: frozenset[str]
) -> frozenset[str]:
    """Return the cases of `cohort` that the networks generating them were trained on."""
    if trained_on is not cohort:
        return copies
    return frozenset(case.id for case in trained_on.split("train")) - set(fold_of)


def case_prompts(generation: GenerationPlan, trained_on: Cohort) -> dict[Path, Prompt]:
    """Return the text of every case of both cohorts, by its mask's path."""
    texts = {case.mask: generation.prompts[case.id] for case in generation.cohort.cases}
    if trained_on is not generation.cohort:
        prompts = cohort_prompts(trained_on, generation.template)
        texts |= {case.mask: prompts[case.id] for case in trained_on.cases}
    return texts


def check_control_labels(options: AtlasCases, generation: GenerationPlan) -> tuple[int, ...]:
    """Return the labels of `--control_labels`; raise `UserError` for one that cannot serve."""
    data = generation.data
    if options.control_labels:
        check_chest_ct(data, "--control_labels")
    possible = [label for label in generation.run.labels if label not in data.chest_labels]
    for label in options.control_labels:
        if label not in possible:
            raise UserError(
                f"--control_labels has {label}; it must be a label of the masks other than "
                "background, lungs, lesions and airways, such as that of the aorta (here: "
                f"{format_list([str(n) for n in possible]) or 'none'})."
            )
    return options.control_labels


def _parse_columns(text: str) -> list[str]:
    """Return the columns of `--columns`, a line of CSV."""
    cells = next(csv.reader([text], skipinitialspace=True), [])
    return [cell.strip() for cell in cells if cell.strip()]


def parse_references(options: AtlasCases) -> dict[str, str]:
    """Return the reference value by column of `--reference`."""
    references = {}
    for text in options.reference:
        column, equals, value = text.partition("=")
        if not equals or not column.strip() or not value.strip():
            raise UserError(f'--reference is {text!r}; it must be of the form "COLUMN=VALUE".')
        references[column.strip()] = value.strip()
    return references


def _all_attributes(
    template: Template,
    rows: Sequence[Row],
    columns: Sequence[str],
    chosen: Sequence[AtlasAttribute],
) -> dict[str, AtlasAttribute]:
    """Return every column that could be studied; chosen ones with their references."""
    attributes = {}
    for column in template.attributes(columns):
        attribute = classify_column(template, rows, column)
        if isinstance(attribute, AtlasAttribute):
            attributes[column] = attribute
    attributes.update({attribute.column: attribute for attribute in chosen})
    return attributes


def _pooled_attributes(
    template: Template,
    rows: Sequence[Row],
    columns: Sequence[str],
    studied: Mapping[str, AtlasAttribute],
) -> dict[str, AtlasAttribute]:
    """Return the columns that cannot be studied, but adjusted for."""
    pooled = {}
    for column in template.attributes(columns):
        covariate = pooled_covariate(template, rows, column)
        if column not in studied and covariate is not None:
            pooled[column] = covariate
    return pooled


def folds_of_cases(
    options: AtlasCases, training: Sequence[Case], patients: Mapping[str, str]
) -> dict[str, str]:
    """Return the fold of each case in the folds of `--fold`; empty without cross-fitting."""
    if not options.fold:
        return {}
    uses_all = options.fold.startswith("all/")
    fold = options.fold.replace("all/", "1/", 1)
    count = parse_fold(fold)[1]
    folds = [f"{k}/{count}" for k in range(1, count + 1)] if uses_all else [fold]
    case_ids = [case.id for case in training]
    fold_of = {}
    for name in folds:
        fold_of.update(dict.fromkeys(fold_cases(case_ids, patients, name), name))
    return fold_of


def _cases_to_generate(
    options: AtlasCases, cohort: Cohort, training: Sequence[Case], fold_of: Mapping[str, str]
) -> list[Case]:
    if fold_of:
        cases = [case for case in training if case.id in fold_of]
    else:
        split = options.split or DEFAULT_SPLIT
        if not options.split and not cohort.splits.get(split):
            raise UserError(
                f"{cohort.root} has no test cases, so no scan that the run has not seen. --fold "
                "all/5 generates each training patient by a refit that has not seen the patient "
                "(it trains five), and its findings count. --split train generates them by the "
                "run itself: the atlas then shows how well it fits, and nothing is a finding."
            )
        cases = list(cohort.cases if split == "all" else cohort.split(split))
    return cases[: options.how_many or len(cases)]


def drop_impossible(
    generation: GenerationPlan,
    choice: AttributeChoice,
    cases: Sequence[Case],
    wanted: Sequence[str],
    unreadable: Mapping[str, str],
) -> AttributeChoice:
    """Leave out the attributes that the rest of the row rules out, or no text states.

    Args:
        generation: The run and the texts of the cases.
        cases: Cases to generate.
        wanted: Columns asked for by name.
        unreadable: Reason by column whose values cannot be compared; these are left out, too.

    Raises:
        UserError: Such an attribute was asked for, or none is left; or no text holds the words of
            `--vary_text`.
    """
    ruled_out = (
        "in every case, the rest of the row rules it out or the written text does not state it"
    )
    possible = []
    left_out = {**choice.left_out, **unreadable}
    for attribute in choice.attributes:
        silent = [
            case.id for case in cases if not attribute_variants(generation.text(case), attribute)
        ]
        if attribute.edit is not None and silent:
            text = describe_not_stated("--vary_text", attribute.edit, silent)
            if len(silent) == len(cases):
                raise UserError(text)
            log.warning("%s", text, extra=notice("not in the text", attribute.column, cases=silent))
        reason = unreadable.get(attribute.column, "")
        advice = ""
        if not reason and len(silent) == len(cases):
            reason, advice = ruled_out, " Choose another --split."
        if not reason:
            possible.append(attribute)
        elif attribute.column in wanted:
            raise UserError(f"--columns: {attribute.column!r} cannot be studied: {reason}.{advice}")
        else:
            left_out[attribute.column] = reason
    if not possible:
        raise UserError(
            f"No attribute can be varied in any of the {len(cases)} cases. Choose another --split."
        )
    return AttributeChoice(possible, left_out)


def _compared_cases(options: AtlasCases, cohort: Cohort, cases: Sequence[Case]) -> Sequence[Case]:
    """Return the cases whose masks are compared; no network learns from a mask's shape."""
    if options.real_split not in ("", "all"):
        return cohort.split(options.real_split)
    return cases if options.fold and not options.real_split else cohort.cases


def _real_cases(
    options: AtlasCases,
    cohort: Cohort,
    cases: Sequence[Case],
    trained: frozenset[str],
    patients: Mapping[str, str],
) -> list[Case]:
    """Return the cases with a scan to compare with.

    Args:
        options: What to study.
        cases: Cases to generate.
        trained: Patients whose scans the network that generates was trained on.
        patients: The patient of each case.
    """
    compared = [case for case in _compared_cases(options, cohort, cases) if case.image]
    if options.real_split or options.fold:
        return compared
    unseen = [case for case in compared if patients[case.id] not in trained]
    is_enough = len({patients[case.id] for case in unseen}) >= MIN_PATIENTS
    return unseen if is_enough else compared
