"""Effectiveness: what an independent predictor reads from changed volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.baselines import CaseBootstrap
from pipelines.evaluation.counterfactuals.axiom_rows import (
    CHANGED,
    OTHER,
    PREDICTION_SHIFT,
    AxiomRow,
)
from pipelines.evaluation.counterfactuals.measured import MeasuredChange, MeasuredMethod
from pipelines.evaluation.counterfactuals.predictors import score_prediction
from pipelines.evaluation.measurements import VolumeMeasurements
from pipelines.evaluation.text_effect import AttributePredictor, PredictedAttribute, Prediction


def effectiveness_rows(
    method: MeasuredMethod,
    predictors: Mapping[str, AttributePredictor],
    real: Sequence[VolumeMeasurements],
    bootstrap: CaseBootstrap,
) -> list[AxiomRow]:
    """Return how well the changed attribute is read, and that every other one is not changed.

    The predictors were fitted to real scans and know nothing of the generator; no volume is read by
    one that has seen the scan of its case. All values of an attribute are judged together, so that
    a scan that is not changed scores as chance does.
    """
    rows = []
    for column, changes in method.changes.items():
        if column in predictors:
            rows += _changed_rows(method.name, column, changes, predictors[column], real, bootstrap)
        for other, predictor in predictors.items():
            if other != column:
                rows += _other_rows(method, column, other, predictor, bootstrap)
    return rows


def _changed_rows(
    name: str,
    column: str,
    changes: Sequence[MeasuredChange],
    predictor: AttributePredictor,
    real: Sequence[VolumeMeasurements],
    bootstrap: CaseBootstrap,
) -> list[AxiomRow]:
    attribute = predictor.attribute
    judged = [c for c in changes if predictor.can_read(c.value)]
    if not judged:
        return []
    truth = attribute.encode([c.value for c in judged])
    predicted = predictor.read([c.volume for c in judged])
    cases = [c.case for c in judged]
    best = predictor.predict(real)
    if not attribute.number:
        shown = np.isin(best.truth, truth)
        best = Prediction(best.values[shown], best.truth[shown])
    rows = []
    for measure in attribute.measures:

        def score(index: NDArray[np.intp], measure: str = measure) -> float:
            return score_prediction(predictor, measure, truth[index], predicted[index])

        low, high = bootstrap.interval(cases, score)
        rows.append(
            AxiomRow(
                method=name,
                column=column,
                axiom="effectiveness",
                of=CHANGED,
                measure=measure,
                value=score(np.arange(len(judged))),
                low=low,
                high=high,
                reference=score_prediction(predictor, measure, best.truth, best.values),
                reference_is="read from real scans",
                volumes=len(judged),
                better="low" if "error" in measure else "high",
            )
        )
    return rows


def _other_rows(
    method: MeasuredMethod,
    column: str,
    other: str,
    predictor: AttributePredictor,
    bootstrap: CaseBootstrap,
) -> list[AxiomRow]:
    """Return how well another attribute is still read, and how far its prediction moved."""
    attribute = predictor.attribute
    judged = []
    for change in method.changes[column]:
        factual = method.rows.get(change.case, {})
        # A row that rules the attribute out, or had this value already, tests nothing.
        tests_nothing = not change.row.get(other) or factual.get(column) == change.value
        if not tests_nothing and predictor.can_read(change.row[other]):
            judged.append(change)
    if not judged:
        return []
    truth = attribute.encode([change.row[other] for change in judged])
    after = predictor.read([change.volume for change in judged])
    before = predictor.read([method.factual[change.case] for change in judged])
    cases = [change.case for change in judged]
    measure = attribute.measures[0]

    def score(index: NDArray[np.intp]) -> float:
        return score_prediction(predictor, measure, truth[index], after[index])

    low, high = bootstrap.interval(cases, score)
    unit = "SD of the column" if attribute.number else "probability"
    return [
        AxiomRow(
            method=method.name,
            column=column,
            axiom="effectiveness",
            of=f"{OTHER}: {other}",
            measure=measure,
            value=score(np.arange(len(judged))),
            low=low,
            high=high,
            reference=score_prediction(predictor, measure, truth, before),
            reference_is="before the change",
            volumes=len(judged),
            better="near",
        ),
        AxiomRow(
            method=method.name,
            column=column,
            axiom="effectiveness",
            of=f"{OTHER}: {other}",
            measure=f"{PREDICTION_SHIFT} ({unit})",
            **bootstrap.mean(cases, _shift(attribute, before, after))._asdict(),
            reference=0.0,
            reference_is="no change",
            volumes=len(judged),
        ),
    ]


def _shift(
    attribute: PredictedAttribute, before: NDArray[np.float64], after: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far predictions moved `(n,)`: in SD of the column, or in probability."""
    distance = np.abs(after - before)
    if not attribute.number:
        return 0.5 * distance.sum(1)
    spread = float(np.std([float(v) for v in attribute.values.values()])) or 1.0
    return distance[:, 0] / spread
