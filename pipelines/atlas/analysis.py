"""From measurements to the tables of an atlas: intervals, real scans, cautions and findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from data.cache import load_case, load_mask
from data.cohort import Case
from data.negative_controls import measure_controls
from data.regions import fill_lesions
from data.resampling import patients_of
from data.volume_dataset import VolumeDataset
from pipelines.atlas.attributes import dependent_columns
from pipelines.atlas.measure import AtlasMeasurements, lung_volume_ml, real_outcomes
from pipelines.atlas.statistics import (
    associations,
    cautions,
    findings,
    interactions,
    intervals,
    tables,
)
from pipelines.atlas.statistics.additivity import additivity_sentences, additivity_tests
from pipelines.atlas.statistics.adjustment import ADJUSTMENT_COLUMNS, Roles
from pipelines.atlas.statistics.associations import Association
from pipelines.atlas.statistics.cautions import Caution, NextCommands
from pipelines.atlas.statistics.negative_controls import (
    control_cautions,
    control_outcomes,
    judge_controls,
)
from pipelines.atlas.statistics.outcomes import Values, outcome_frame
from pipelines.atlas.statistics.regression import RealScans, estimate_contrasts
from pipelines.atlas.statistics.sensitivity import missing_sensitivity
from pipelines.atlas.statistics.sentences import real_scans_name
from pipelines.atlas.statistics.shape import VOLUME, measure_shape, region_shapes, shape_frame
from pipelines.atlas.study import AtlasStudy
from util.cli import counted, format_list
from util.metrics.regions import label_regions
from util.parallel import map_threads
from util.progress import progress_bar

Frames = dict[str, pd.DataFrame]

ASSOCIATION_COLUMNS = ["column", "other", "measure", "value", "cases"]
REFIT_COLUMNS = ["name", "kind", "seed", "steps", "permuted"]


def measure_real_scans(study: AtlasStudy) -> RealScans:
    """Measure the real scans; those without lungs are left out."""
    measured = {}
    volume = {}
    rows = {}
    samples = VolumeDataset(study.real_cases, study.labels, study.plan.data)
    for sample in progress_bar(samples, "real scans"):
        values = real_outcomes(sample, study.plan)
        if values is None:
            continue
        case = sample.case
        measured[case.id] = {**values, **_measure_controls(case, study)}
        volume[case.id] = lung_volume_ml(sample, study.plan.data)
        rows[case.id] = study.formatted_row(case)
    index = pd.Index(list(measured), dtype=object)
    table = pd.DataFrame.from_dict(rows, orient="index")
    patients = patients_of(study.cohort, study.plan.data.patient_column)
    return RealScans(
        outcome_frame(measured),
        table.reindex(index=index, columns=list(study.every)),
        pd.Series(volume, index=index, dtype=float),
        pd.Series([patients[case] for case in index], index=index, dtype=object),
        _dependants(study),
    )


def measure_masks(study: AtlasStudy) -> RealScans:
    """Measure the shape of lungs and airways in all masks, also of cases without a scan."""
    data = study.plan.data

    def measure(case: Case) -> Values:
        mask = load_mask(case)
        spacing = mask.spacing
        if not data.terms.is_ct:
            return region_shapes(label_regions(mask.array, data.lung_labels), spacing)
        labels = fill_lesions(mask.array, data.lesion_labels, data.lung_labels)
        return measure_shape(labels, spacing, data.lung_labels, data.airway_label)

    shapes = map_threads(measure, study.compared, "masks")
    lungs = (VOLUME, "lungs")
    measured = {
        case.id: shape for case, shape in zip(study.compared, shapes, strict=True) if lungs in shape
    }
    rows = [study.formatted_row(case) for case in study.compared if case.id in measured]
    patients = patients_of(study.cohort, data.patient_column)
    outcomes = outcome_frame(measured)
    index = outcomes.index
    return RealScans(
        outcomes,
        pd.DataFrame(rows, index=index, columns=list(study.every), dtype=object),
        outcomes[lungs] if len(outcomes) else pd.Series(dtype=float),
        pd.Series([patients[case] for case in index], index=index, dtype=object),
        _dependants(study),
    )


def _measure_controls(case: Case, study: AtlasStudy) -> Values:
    """Measure the negative controls on the grid of the scan, which is not clipped there.

    They are known for chest CT alone.
    """
    if not study.plan.data.terms.is_ct:
        return {}
    scan, mask = load_case(case, None)
    assert scan is not None
    airway, labels = study.plan.data.airway_label, study.control_labels
    return control_outcomes(measure_controls(scan.array, mask.array, scan.spacing, airway, labels))


@dataclass(frozen=True)
class RunFacts:
    """The run behind an atlas.

    Attributes:
        steps: Its training steps.
        refits: Records of the refits that are used.
        cautions: Cautions that its options call for.
        diagnosis: Column of the diagnosis.
        commands: Commands that cautions advise.
    """

    steps: int
    refits: Sequence[Mapping[str, Any]]
    cautions: Sequence[Caution]
    diagnosis: str
    commands: NextCommands


def atlas_tables(
    study: AtlasStudy,
    measurements: AtlasMeasurements,
    real: RealScans,
    masks: RealScans,
    run: RunFacts,
) -> Frames:
    """Return every table over cases by name."""
    plan = study.plan
    roles = {column: attribute.role for column, attribute in study.every.items()}
    pairs = study_associations(study)
    effects = intervals.add_refits(
        intervals.effects_over_patients(
            tables.effect_frame(measurements.effects),
            patients_of(study.cohort, plan.data.patient_column),
        ),
        tables.refit_frame(measurements.refits),
    )
    effects = associations.widen_intervals(
        effects, pairs, study.training_rows(), plan.attributes, roles
    )
    adjustable = adjustable_columns(study, run.diagnosis)
    estimated = estimate_contrasts(real, plan.contrasts, adjustable)
    missing = missing_sensitivity(real, plan.contrasts, adjustable)
    additivity, curves = additivity_tests(real, plan.contrasts, adjustable)
    additivity = interactions.add_generated(
        additivity,
        measurements.effects,
        measurements.refits,
        _generated_rows(study),
        plan.contrasts,
    )
    contrast_columns = {contrast.id: contrast.column for contrast in plan.contrasts}
    labels = {contrast.id: contrast.label for contrast in plan.contrasts}
    negative_controls = judge_controls(estimated, plan.contrasts)
    warned = [
        *control_cautions(negative_controls, labels, roles),
        *cohort_cautions(study, real, adjustable, estimated, pairs),
        *cautions.vessel_cautions(estimated, plan.contrasts),
        *cautions.imputation_cautions(real, missing, contrast_columns),
        *cautions.additivity_cautions(additivity_sentences(additivity, labels)),
        *_patient_cautions(study, real, run.commands),
        *cautions.refit_cautions(run.refits, run.steps, run.commands),
        *run.cautions,
    ]
    warned.sort(key=lambda caution: not caution.forbids)
    controls = tables.control_frame(measurements.controls)
    studied_roles = {attribute.column: attribute.role for attribute in plan.attributes}
    tests = findings.judge_effects(effects, estimated, studied_roles, warned)
    seen = int(real.outcomes.index.isin(study.seen).sum())
    scans_name = real_scans_name(seen, len(real.outcomes))
    ranked = findings.rank_findings(tests, labels, controls, scans_name)
    return {
        "attributes": _attribute_frame(study, measurements),
        "contrasts": tables.contrast_frame(plan.contrasts),
        "effects": effects,
        "real": estimated,
        "missing": missing,
        "additivity": additivity,
        "curves": curves,
        "adjustment": adjustment_frame(study, real, adjustable),
        "tests": tests,
        "doses": tables.dose_frame(measurements.doses),
        "controls": controls,
        "negative_controls": negative_controls,
        "shape": shape_frame(masks, plan.contrasts, adjustable),
        "cautions": _frame([caution.to_row() for caution in warned], cautions.CAUTION_COLUMNS),
        "findings": _frame(ranked.found, findings.FINDING_COLUMNS),
        "not_found": _frame(ranked.not_found, findings.FINDING_COLUMNS),
        "ties": _frame([asdict(pair) for pair in pairs], ASSOCIATION_COLUMNS),
        "refits": _frame(
            [{**refit, "permuted": " | ".join(refit["permuted"])} for refit in run.refits],
            REFIT_COLUMNS,
        ),
    }


def adjustment_frame(study: AtlasStudy, real: RealScans, adjustable: Roles) -> pd.DataFrame:
    """Return adjustment.csv: what each studied column is adjusted for, and what it is not."""
    rows = []
    for attribute in study.plan.attributes:
        rows += adjustable.rows(attribute.column, real.completed.not_imputed)
    return _frame(rows, ADJUSTMENT_COLUMNS)


def adjustable_columns(study: AtlasStudy, diagnosis: str) -> Roles:
    """Return the columns that the real scans may be adjusted for."""
    return Roles(study.every, _dependants(study), diagnosis)


def _dependants(study: AtlasStudy) -> frozenset[str]:
    dependants = set(study.words)  # texts are written from the columns
    for columns in dependent_columns(study.plan.template).values():
        dependants.update(columns)
    return frozenset(dependants)


def _generated_rows(study: AtlasStudy) -> pd.DataFrame:
    """Return the rows of the generated cases as the text shows them, indexed by case."""
    rows = {case.id: study.formatted_row(case) for case in study.cases}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(study.every))


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns))


def _attribute_frame(study: AtlasStudy, measurements: AtlasMeasurements) -> pd.DataFrame:
    """Return attributes.csv: every column that can stand in the text, studied or left out."""
    variants = pd.DataFrame(measurements.arms, columns=["case", "column"])
    cases = variants.groupby("column")["case"].nunique().to_dict()
    rows = []
    for attribute in study.plan.attributes:
        varied = cases.get(attribute.column, 0)
        rows.append(tables.studied_row(attribute, len(study.training), varied))
    for column, reason in study.left_out.items():
        rows.append(tables.left_out_row(column, study.plan.template.role(column), reason))
    return pd.DataFrame(rows)


def study_associations(study: AtlasStudy) -> list[Association]:
    """Return the associations of each studied column with every other, over training cases."""
    studied = {attribute.column for attribute in study.plan.attributes}
    pairs = associations.pairwise_associations(study.training_rows(), list(study.every.values()))
    return [pair for pair in pairs if pair.column in studied or pair.other in studied]


def cohort_cautions(
    study: AtlasStudy,
    real: RealScans,
    adjustable: Roles,
    estimated: pd.DataFrame,
    pairs: Sequence[Association],
) -> list[Caution]:
    """Return the cautions that the cohort calls for.

    Args:
        adjustable: Columns that the real scans may be adjusted for.
        estimated: Table real.csv.
        pairs: Associations of the studied columns.
    """
    plan = study.plan
    attributes = plan.attributes
    roles = {column: attribute.role for column, attribute in study.every.items()}
    named = {*plan.template.columns, *study.words}
    guessed = {c: role for c, role in roles.items() if c not in named}
    contrast_columns = {contrast.id: contrast.column for contrast in plan.contrasts}
    patient = _training_patients(study)
    warned = [
        *cautions.association_cautions(pairs, roles, {one.column for one in attributes}),
        *cautions.count_cautions(attributes, study.training_rows(), patient),
        *cautions.pooled_cautions({column: study.every[column] for column in study.pooled}),
        *cautions.guessed_cautions(guessed),
        *cautions.collinear_cautions(estimated, contrast_columns),
    ]
    if len(real.outcomes):
        warned += cautions.mask_cautions(real, attributes, adjustable)
    warned += cautions.role_cautions(attributes)
    for column, reason in study.left_out.items():
        if reason != "not asked for":
            warned.append(Caution("left out", f"{column} was not studied: {reason}.", column))
    return warned


def _training_patients(study: AtlasStudy) -> pd.Series:
    """Return the patient of each training case."""
    patients = patients_of(study.trained_on, study.plan.data.patient_column)
    return pd.Series([patients[case.id] for case in study.training], dtype=object)


def _patient_cautions(study: AtlasStudy, scans: RealScans, commands: NextCommands) -> list[Caution]:
    """Return cautions on the number of patients, and on what the networks were trained on."""
    seen = scans.patient[scans.patient.index.isin(study.seen)].nunique()
    training = _training_patients(study).nunique()
    warned = cautions.size_cautions(training, scans.patient.nunique(), seen, commands)
    if study.trained_on is not study.cohort:
        patients = "other patients"
        if study.copies:
            patients = (
                f"other patients, but for {counted(len(study.copies), 'case')} whose scan or mask "
                f"is in the training ({format_list(sorted(study.copies))})"
            )
        text = (
            f"The run was trained on {counted(len(study.training), 'case')} of "
            f"{study.trained_on.root}, and attributes take their values. The volumes here are of "
            f"{patients}."
        )
        warned.append(Caution("other cohort", text))
    if study.fold_of:
        text = (
            "Each patient is generated by a network that has not seen the patient, but the "
            "refits behind intervals and permuted nulls may have."
        )
        warned.append(Caution("refits have seen", text))
    return warned
