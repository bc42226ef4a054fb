"""Measurement of the axioms for every method, for the baseline and for unchanged scans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from pipelines.evaluation.baselines import CaseBootstrap
from pipelines.evaluation.counterfactuals.axiom_rows import AxiomRow, CounterfactualReport
from pipelines.evaluation.counterfactuals.axioms import axiom_rows
from pipelines.evaluation.counterfactuals.measured import MeasuredChange, MeasuredMethod
from pipelines.evaluation.counterfactuals.plan import CounterfactualPlan
from pipelines.evaluation.counterfactuals.predictors import fit_predictors
from pipelines.evaluation.counterfactuals.regression_baseline import baseline_set
from pipelines.evaluation.counterfactuals.sets import CounterfactualSet, unchanged_scans
from pipelines.evaluation.counterfactuals.volume_change import difference_hu
from pipelines.evaluation.measurements import VolumeMeasurements
from pipelines.evaluation.volume_measurer import VolumeMeasurer
from pipelines.evaluation.volume_sets import VolumeSet


def judge_counterfactuals(
    plan: CounterfactualPlan,
    real_set: VolumeSet,
    real: Sequence[VolumeMeasurements],
    measurer: VolumeMeasurer,
    bootstrap: CaseBootstrap,
) -> CounterfactualReport:
    """Measure the axioms of every method, of the baseline and of unchanged scans."""
    if not plan.sets:
        return CounterfactualReport([], [])
    left_out: list[str] = []
    sets = list(plan.sets)
    scans = unchanged_scans(sets, real_set)
    if scans is None:
        left_out.append(
            "Counterfactuals beside the real scan: none of their cases is among the scans of "
            "--real."
        )
    else:
        baseline = baseline_set(plan, scans, real_set, measurer, bootstrap.seed, left_out)
        sets += [*([baseline] if baseline else []), scans]
    predictors = fit_predictors(plan, real, bootstrap, left_out)
    rows: list[AxiomRow] = []
    total = sum(len(one.changed) for one in sets)
    with tqdm(total=total, desc="measuring counterfactuals", unit="volume") as bar:
        for one in sets:
            method = _measure_method(plan, one, real_set, measurer, bar)
            rows += axiom_rows(method, predictors, real, bootstrap)
            if not one.is_reference and not any(
                row.axiom == "reversibility" and row.method == one.name for row in rows
            ):
                left_out.append(
                    f"Reversibility of {one.name}: its metrics.csv holds no change and change "
                    "back; run test.py of this version again (with --edit_cycles 1 or more for "
                    "edited scans)."
                )
    return CounterfactualReport(rows, left_out)


def _measure_method(
    plan: CounterfactualPlan,
    one: CounterfactualSet,
    real_set: VolumeSet,
    measurer: VolumeMeasurer,
    bar: Any,
) -> MeasuredMethod:
    """Measure the volumes of one method."""
    rows = {case: plan.formatted[case] for case in one.factual if case in plan.formatted}
    factual = {c: measurer(file, None, False) for c, file in one.factual.items()}
    changes: dict[str, list[MeasuredChange]] = {}
    for change in one.changed:
        row, value = plan.changed_row(change)
        changes.setdefault(change.column, []).append(
            MeasuredChange(
                change,
                value,
                row,
                measurer(change.file, None, False),
                difference_hu(change.file, one.factual[change.case], measurer),
            )
        )
        bar.update()
    scans = {file.case: file for file in real_set.files}
    composition = {}
    for case, file in one.null.items():
        if case in scans:
            composition[case] = difference_hu(file, scans[case], measurer)
    return MeasuredMethod(
        one.name,
        factual,
        rows,
        changes,
        composition,
        one.reported,
        one.edits_scans,
        one.is_reference,
    )
