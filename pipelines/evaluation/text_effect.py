"""Effect of the text: attributes predicted from synthetic volumes by a model of real scans.

The predictor is a linear one of regional HU statistics (scikit-learn). It is cross-fitted: a scan,
and whatever was generated from its mask, is predicted by a model that was not fitted to that scan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import mean_absolute_error, roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from data.text.values import parse_number
from pipelines.evaluation.baselines import (
    INTERVAL_PERCENTILES,
    Metric,
    finite_mean,
    finite_percentiles,
)
from pipelines.evaluation.measurements import VolumeMeasurements
from util.cli import UserError, counted, format_list

FOLDS = 5
MIN_SCANS = 5  # of a class, or with a number
MIN_NUMBERS = 6  # distinct numbers of a column that is predicted as a number
RANK_CORRELATION = "rank correlation"
ABSOLUTE_ERROR = "mean absolute error"
AUC = "AUC"


class TooFewScansError(UserError):
    """Too few real scans show an attribute; everything else can be evaluated."""


@dataclass(frozen=True)
class PredictedAttribute:
    """A column of the table that is predicted from volumes.

    Attributes:
        column: Name of the column.
        values: Its known values by case.
        number: Whether they are numbers.
    """

    column: str
    values: Mapping[str, str]
    number: bool

    @classmethod
    def from_values(
        cls, column: str, values: Mapping[str, str], number: bool
    ) -> PredictedAttribute:
        """Take the known values of a column, without rare classes.

        Raises:
            TooFewScansError: Fewer than two values, or too few scans of them.
        """
        known = {case: value for case, value in values.items() if value}
        distinct = sorted(set(known.values()))
        if len(distinct) < 2:
            raise TooFewScansError(
                f"--column {column!r} has {counted(len(distinct), 'value')} "
                f"among the real scans ({format_list(distinct) or 'none'}); an effect needs two. "
                "Choose another column."
            )
        counts = Counter(known.values())
        if not number:
            known = {case: v for case, v in known.items() if counts[v] >= MIN_SCANS}
            distinct = sorted(set(known.values()))
        if len(distinct) < 2 or len(known) < MIN_SCANS:
            raise TooFewScansError(
                f"--column {column!r}: at least two values with {MIN_SCANS} real scans each are "
                f"needed; the real scans have {_counted(counts)}. Choose another column, or name "
                "more scans (--real_split all, with results of test.py --split all)."
            )
        return cls(column, known, number)

    @property
    def measures(self) -> tuple[str, ...]:
        """Measures of how well the attribute is predicted."""
        return (RANK_CORRELATION, ABSOLUTE_ERROR) if self.number else (AUC,)

    def target(self, cases: Sequence[str]) -> NDArray[Any]:
        """Return the values of cases `(n,)` as numbers or as classes."""
        return self.encode([self.values[case] for case in cases])

    def encode(self, values: Sequence[str]) -> NDArray[Any]:
        """Return values `(n,)` as numbers or as classes."""
        return np.array([parse_number(v) for v in values] if self.number else values)


def _counted(counts: Counter[str]) -> str:
    """Return values with their numbers of scans, for messages."""
    return format_list([f"{value} {count}" for value, count in counts.most_common()])


def are_numbers(values: Mapping[str, str]) -> bool:
    """Return whether a column's known values are numbers, and enough of them to be predicted."""
    known = pd.Series([value for value in values.values() if value], dtype=object)
    numbers = pd.to_numeric(known, errors="coerce")
    return bool(len(numbers) and numbers.notna().all() and numbers.nunique() >= MIN_NUMBERS)


@dataclass(frozen=True)
class Prediction:
    """Predictions `(n, classes)` or `(n, 1)` for n cases and their true values `(n,)`."""

    values: NDArray[np.float64]
    truth: NDArray[Any]


@dataclass(frozen=True)
class AttributePredictor:
    """Cross-fitted predictors of one attribute.

    Attributes:
        models: A predictor per fold.
        unseen: The index of the model that was not fitted to a case, by case.
    """

    attribute: PredictedAttribute
    models: Sequence[Pipeline]
    unseen: Mapping[str, int]

    @classmethod
    def from_scans(
        cls, attribute: PredictedAttribute, scans: Sequence[VolumeMeasurements], seed: int
    ) -> AttributePredictor:
        """Fit a predictor per fold of the real scans whose value is known."""
        known = [v for v in scans if v.case in attribute.values]
        cases = [v.case for v in known]
        x = np.array([v.regional for v in known])
        y = attribute.target(cases)
        kind = KFold if attribute.number else StratifiedKFold
        models: list[Pipeline] = []
        unseen: dict[str, int] = {}
        splits = kind(FOLDS, shuffle=True, random_state=seed).split(x, y)
        for fold, (train, held_out) in enumerate(splits):
            models.append(make_linear_predictor(attribute.number).fit(x[train], y[train]))
            for i in held_out:
                unseen[cases[i]] = fold
        return cls(attribute, models, unseen)

    def predict(self, volumes: Sequence[VolumeMeasurements]) -> Prediction:
        """Predict the attribute of the volumes whose value is known.

        A case that is not a real scan is predicted by the mean of all models.
        """
        known = [volume for volume in volumes if volume.case in self.attribute.values]
        return Prediction(self.read(known), self.attribute.target([v.case for v in known]))

    def can_read(self, value: str) -> bool:
        """Return whether a value is a number, or a class of the real scans."""
        if self.attribute.number:
            return parse_number(value) is not None
        return value in self.models[0].classes_

    def read(self, volumes: Sequence[VolumeMeasurements]) -> NDArray[np.float64]:
        """Return predictions `(n, classes)` or `(n, 1)`, of volumes whose value may be unknown."""
        values = []
        for volume in volumes:
            models = self.models
            if volume.case in self.unseen:
                models = [self.models[self.unseen[volume.case]]]
            by_model = [self._predict_one(model, volume.regional[None]) for model in models]
            values.append(np.mean(by_model, 0)[0])
        return np.array(values)

    def _predict_one(self, model: Pipeline, x: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.attribute.number:
            return np.asarray(model.predict(x)[:, None])
        return np.asarray(model.predict_proba(x))

    def score(self, measure: str, truth: NDArray[Any], predicted: NDArray[np.float64]) -> float:
        """Return a measure of predictions against the truth; NaN where it is not defined."""
        if measure == ABSOLUTE_ERROR:
            return float(mean_absolute_error(truth, predicted[:, 0]))
        if measure == RANK_CORRELATION:
            varied = np.ptp(truth) > 0 and np.ptp(predicted) > 0
            return float(spearmanr(truth, predicted[:, 0]).statistic) if varied else float("nan")
        classes = self.models[0].classes_
        if len(set(truth)) < len(classes):
            return float("nan")
        if len(classes) == 2:
            return float(roc_auc_score(truth == classes[1], predicted[:, 1]))
        return float(roc_auc_score(truth, predicted, multi_class="ovo", labels=classes))


def make_linear_predictor(number: bool, balanced: bool = False) -> Pipeline:
    """Build a linear predictor of standardised inputs: ridge, or logistic regression of classes.

    Args:
        number: Whether a number is predicted.
        balanced: Weight the classes equally.
    """
    last = RidgeCV(np.logspace(-2, 4, 13))
    if not number:
        weights = "balanced" if balanced else None
        last = LogisticRegression(C=0.1, max_iter=2000, class_weight=weights)
    return make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), last)


def text_metrics(
    attribute: PredictedAttribute,
    real: Sequence[VolumeMeasurements],
    sets: Mapping[str, Sequence[VolumeMeasurements]],
    resamples: int,
    seed: int,
) -> list[Metric]:
    """Return how well an attribute is predicted from each set of synthetic volumes.

    The ceiling is the prediction from real scans, the baseline that with shuffled rows.

    Args:
        attribute: The attribute with the values of the cases' rows.
        real: Scans that the predictor is fitted to.
        sets: Synthetic volumes by name: those of the factual rows, and controls (shuffled prompts,
            empty prompts).
        resamples: Number of shuffles and of bootstrap resamples.
        seed: Seed of the folds and the resamples.
    """
    predictor = AttributePredictor.from_scans(attribute, real, seed)
    best = predictor.predict(real)
    metrics = []
    for measure in attribute.measures:
        ceiling = predictor.score(measure, best.truth, best.values)
        for name, volumes in sets.items():
            prediction = predictor.predict(volumes)
            if len(prediction.truth) < 2:
                continue
            rng = np.random.default_rng([seed, len(volumes)])
            title = f"{attribute.column} read from {name} ({measure})"
            metric = _text_metric(predictor, measure, prediction, rng, resamples)
            metrics.append(replace(metric, name=title, ceiling=ceiling))
    return metrics


def _text_metric(
    predictor: AttributePredictor,
    measure: str,
    prediction: Prediction,
    rng: np.random.Generator,
    resamples: int,
) -> Metric:
    """Return a measure of a prediction with its interval, and shuffled rows as baseline."""
    truth = prediction.truth
    predicted = prediction.values
    n = len(truth)
    shuffled = np.empty(resamples)
    for i in range(resamples):
        shuffled[i] = predictor.score(measure, rng.permutation(truth), predicted)
    bootstrap = np.empty(resamples)
    for i in range(resamples):
        index = rng.integers(n, size=n)
        bootstrap[i] = predictor.score(measure, truth[index], predicted[index])
    low, high = finite_percentiles(bootstrap, INTERVAL_PERCENTILES)
    is_error = measure == ABSOLUTE_ERROR
    note = counted(n, "volume")
    if is_error:
        note += "; density or texture that is off in all volumes alike counts here"
    return Metric(
        "text",
        measure,
        predictor.score(measure, truth, predicted),
        low,
        high,
        baseline=finite_mean(shuffled),
        baseline_high=finite_percentiles(shuffled, (5 if is_error else 95,))[0],
        better="low" if is_error else "high",
        note=note,
    )
