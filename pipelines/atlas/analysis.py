"""From what was measured to the tables of an atlas: intervals, the real scans, cautions,
findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from data.resampling import patients_of
from data.volume_dataset import VolumeDataset
from pipelines.atlas.attributes import dependent_columns
from pipelines.atlas.measure import AtlasMeasurements, measure_real_scan
from pipelines.atlas.statistics import associations, cautions, findings, intervals, tables
from pipelines.atlas.statistics.cautions import Caution
from pipelines.atlas.statistics.regression import RealScans, Roles, estimate_contrasts
from pipelines.atlas.study import AtlasStudy
from util import cli

Frames = dict[str, pd.DataFrame]
Refits = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RealCohort:
    """The real scans, with the share of their lungs that counts as vessels."""

    scans: RealScans
    vessels: Mapping[str, float]


def read_real_scans(study: AtlasStudy) -> RealCohort:
    """Regional means of the real scans with their rows; those without lungs are left out."""
    data = study.plan.data
    wholes = VolumeDataset(study.real_cases, study.labels, data)
    density, vessels, volume, rows = {}, {}, {}, {}
    for whole in tqdm(wholes, "real scans", unit="case", disable=not cli.main_rank()):
        found = measure_real_scan(whole, data, study.plan.vessel_hu)
        if found is None:
            continue
        density[whole.case.id], vessels[whole.case.id] = found
        lungs = np.isin(whole.labels, data.lung_labels)
        volume[whole.case.id] = float(lungs.sum() * np.prod(voxel_sizes(whole.affine)) / 1000)
        rows[whole.case.id] = study.shown_row(whole.case)
    index = pd.Index(list(density), dtype=object)
    patients = patients_of(study.cohort, data.patient_column)
    scans = RealScans(
        pd.DataFrame.from_dict(density, orient="index").reindex(index),
        pd.DataFrame.from_dict(rows, orient="index").reindex(
            index=index, columns=list(study.every)
        ),
        pd.Series(volume, index=index, dtype=float),
        pd.Series([patients[c] for c in index], index=index, dtype=object),
    )
    return RealCohort(scans, vessels)


def atlas_tables(
    study: AtlasStudy,
    measured: AtlasMeasurements,
    real: RealCohort,
    refits: Refits,
    steps: int,
    diagnosis: str,
    of_run: Sequence[Caution],
) -> Frames:
    """Every table over cases, by its name; `of_run` are cautions that the run's options call for,
    `steps` its steps.
    """
    plan = study.plan
    effects = intervals.add_refits(
        intervals.effects_over_patients(tables.effect_frame(measured.effects)),
        tables.refit_frame(measured.refits),
    )
    pairs = study_associations(study)
    of_column = {c: a.role for c, a in study.every.items()}
    effects = associations.widen_intervals(
        effects, pairs, study.training_rows(), plan.attributes, of_column
    )
    hanging = frozenset(c for drops in dependent_columns(plan.template).values() for c in drops)
    roles = Roles(study.every, hanging, diagnosis)
    estimated = estimate_contrasts(real.scans, plan.contrasts, roles)
    warned = [
        *cohort_cautions(study, real, roles, estimated, pairs),
        *cautions.refit_cautions(refits, steps),
        *of_run,
    ]
    warned.sort(key=lambda c: not c.forbids)
    controls = tables.control_frame(measured.controls)
    tests = findings.judge_effects(
        effects, estimated, {a.column: a.role for a in plan.attributes}, warned
    )
    found, others = findings.rank_findings(tests, {c.id: c.label for c in plan.contrasts}, controls)
    tried = (
        pd.DataFrame(measured.arms, columns=["case", "column"])
        .groupby("column")["case"]
        .nunique()
        .to_dict()
    )
    left_roles = {c: plan.template.role(c) for c in study.left_out}
    return {
        "attributes": tables.attribute_frame(
            plan.attributes, study.left_out, left_roles, len(study.training), tried
        ),
        "contrasts": tables.contrast_frame(plan.contrasts),
        "effects": effects,
        "real": estimated,
        "tests": tests,
        "doses": tables.dose_frame(measured.doses),
        "controls": controls,
        "cautions": pd.DataFrame([c.row() for c in warned], columns=list(cautions.CAUTION_COLUMNS)),
        "findings": pd.DataFrame(found, columns=list(findings.FINDING_COLUMNS)),
        "not_found": pd.DataFrame(others, columns=list(findings.FINDING_COLUMNS)),
        "ties": pd.DataFrame(pairs, columns=["column", "other", "measure", "value", "cases"]),
        "refits": pd.DataFrame(
            [{**r, "permuted": " | ".join(r["permuted"])} for r in refits],
            columns=["name", "kind", "seed", "steps", "permuted"],
        ),
    }


def study_associations(study: AtlasStudy) -> list[dict[str, Any]]:
    """How closely each studied column goes with every other, over the training cases."""
    studied = {a.column for a in study.plan.attributes}
    pairs = associations.pairwise_associations(study.training_rows(), list(study.every.values()))
    return [p for p in pairs if p["column"] in studied or p["other"] in studied]


def cohort_cautions(
    study: AtlasStudy,
    real: RealCohort,
    roles: Roles,
    estimated: pd.DataFrame,
    pairs: Sequence[Mapping[str, Any]],
) -> list[Caution]:
    """Every warning that the cohort calls for."""
    attributes, scans, plan = study.plan.attributes, real.scans, study.plan
    owners = patients_of(study.trained_on, plan.data.patient_column)
    patient = pd.Series([owners[case.id] for case in study.training], dtype=object)
    seen = scans.patient[scans.patient.index.isin(study.seen)].nunique()
    made = cautions.size_cautions(patient.nunique(), scans.patient.nunique(), seen)
    if study.trained_on is not study.cohort:
        made.append(
            Caution(
                "other cohort",
                f"The run was trained on {len(study.training)} cases of {study.trained_on.root}; "
                "the volumes here are of other patients, with values of those cases.",
            )
        )
    if study.fold_of:
        made.append(
            Caution(
                "refits have seen",
                "Each patient is generated by a network that has not seen the patient, but the "
                "refits behind intervals and permuted nulls may have.",
            )
        )
    made += cautions.association_cautions(pairs, {c: a.role for c, a in study.every.items()})
    made += cautions.count_cautions(attributes, study.training_rows(), patient)
    made += cautions.pooled_cautions({c: study.every[c] for c in study.pooled})
    made += cautions.guessed_cautions(
        {c: a.role for c, a in study.every.items() if c not in plan.template.columns}
    )
    made += cautions.collinear_cautions(estimated, {c.id: c.column for c in study.plan.contrasts})
    if len(scans.density):
        made += cautions.mask_cautions(scans, attributes, roles)
    made += cautions.role_cautions(attributes)
    return made + [
        Caution("left out", f"{c} was not looked at: {why}.", c)
        for c, why in study.left_out.items()
        if why != "not asked for"
    ]
