"""Predictors of attributes, fitted to real scans: they know nothing of a generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pipelines.evaluation.baselines import CaseBootstrap
from pipelines.evaluation.counterfactuals.plan import CounterfactualPlan
from pipelines.evaluation.measurements import VolumeMeasurements
from pipelines.evaluation.text_effect import (
    AUC,
    AttributePredictor,
    PredictedAttribute,
    are_numbers,
)
from util.cli import UserError, format_list


def fit_predictors(
    plan: CounterfactualPlan,
    real: Sequence[VolumeMeasurements],
    bootstrap: CaseBootstrap,
    left_out: list[str],
) -> dict[str, AttributePredictor]:
    """Return a predictor of each attribute that real scans show; the others are named."""
    if plan.template is None:
        left_out.append(
            "Effectiveness: a clinical.csv or clinical.xlsx in --real, from whose values an "
            "independent predictor is fitted."
        )
        return {}
    predictors: dict[str, AttributePredictor] = {}
    unread = []
    for column in dict.fromkeys([*plan.changed_columns, *plan.columns]):
        known = {v.case: plan.formatted.get(v.case, {}).get(column, "") for v in real}
        try:
            attribute = PredictedAttribute.from_values(column, known, are_numbers(known))
        except UserError:
            unread.append(f"{column} (too few scans of two values)")
            continue
        predictor = AttributePredictor.from_scans(attribute, real, bootstrap.seed)
        low = _least_score(predictor, real, bootstrap)
        if low > (0.5 if attribute.measures[0] == AUC else 0.0):
            predictors[column] = predictor
        else:
            unread.append(f"{column} (not better than chance in real scans)")
    if unread:
        left_out.append(
            f"Effectiveness on attributes that cannot be read from real scans: "
            f"{format_list(unread, 20)}."
        )
    return predictors


def _least_score(
    predictor: AttributePredictor, real: Sequence[VolumeMeasurements], bootstrap: CaseBootstrap
) -> float:
    """Return the lower end of the interval of how well real scans are read."""
    read = predictor.predict(real)
    cases = [v.case for v in real if v.case in predictor.attribute.values]
    measure = predictor.attribute.measures[0]
    low, _ = bootstrap.interval(
        cases,
        lambda index: score_prediction(predictor, measure, read.truth[index], read.values[index]),
    )
    return low


def score_prediction(
    predictor: AttributePredictor, measure: str, truth: NDArray[Any], predicted: NDArray[np.float64]
) -> float:
    """Return a measure of predictions; the AUC is that of the values that are among the truth."""
    if measure != AUC:
        return predictor.score(measure, truth, predicted)
    classes = predictor.models[0].classes_
    present = np.isin(classes, truth)
    if present.sum() < 2:
        return float("nan")
    shares = predicted[:, present]
    shares = shares / np.maximum(shares.sum(1, keepdims=True), 1e-12)
    if present.sum() == 2:
        return float(roc_auc_score(truth == classes[present][1], shares[:, 1]))
    return float(roc_auc_score(truth, shares, multi_class="ovo", labels=classes[present]))
