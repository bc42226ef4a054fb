"""Whether the text shows in the picture: a predictor trained on real scans reads an attribute from
synthetic ones.

The predictor is a linear one of regional HU figures (scikit-learn), cross-fitted: a scan, and
whatever was made from its mask, is read by a predictor that has not seen that scan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import mean_absolute_error, roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines.evaluation.baselines import INTERVAL_PERCENTILES, Metric
from pipelines.evaluation.measurements import VolumeMeasurements
from util.cli import UserError, format_list

FOLDS = 5
MEASURES = {
    True: ("rank correlation", "mean absolute error"),
    False: ("AUC",),
}  # of numbers, of categories
MIN_SCANS = 5  # scans of a class, or with a number

Row = Mapping[str, str]


@dataclass(frozen=True)
class PredictedAttribute:
    """A column of the table: its values by case, and whether they are numbers."""

    column: str
    values: Mapping[str, str]
    number: bool

    def target(self, cases: Sequence[str]) -> NDArray[Any]:
        found = [self.values[case] for case in cases]
        return np.array(found, float) if self.number else np.array(found)


def make_attribute(column: str, values: Mapping[str, str], number: bool) -> PredictedAttribute:
    """Known values of a column, rare classes left out.

    Raises:
        UserError: Fewer than two values, or too few scans of them.
    """
    known = {case: v for case, v in values.items() if v}
    kinds = sorted(set(known.values()))
    if len(kinds) < 2:
        raise UserError(
            f"--column {column!r} has {len(kinds)} value{'s' if len(kinds) != 1 else ''} among the "
            f"real scans ({format_list(kinds) or 'none'}); an effect needs two. Choose another column."
        )
    if not number:
        known = {c: v for c, v in known.items() if list(known.values()).count(v) >= MIN_SCANS}
        kinds = sorted(set(known.values()))
    if len(kinds) < 2 or len(known) < MIN_SCANS:
        raise UserError(
            f"--column {column!r}: at least two values with {MIN_SCANS} real scans each are needed, "
            f"and {len(known)} scans with {len(kinds)} such values are there. Choose another "
            "column, or more scans."
        )
    return PredictedAttribute(column, known, number)


@dataclass(frozen=True)
class AttributePredictor:
    """Cross-fitted predictors of one attribute: `folds` of the real cases and the predictor that
    has not seen them.
    """

    attribute: PredictedAttribute
    models: Sequence[Pipeline]
    unseen: Mapping[str, int]  # case to the model that has not seen it

    @staticmethod
    def from_scans(
        attribute: PredictedAttribute, scans: Sequence[VolumeMeasurements], seed: int
    ) -> AttributePredictor:
        known = [v for v in scans if v.case in attribute.values]
        cases = [v.case for v in known]
        x, y = np.array([v.regional for v in known]), attribute.target(cases)
        splitter = (KFold if attribute.number else StratifiedKFold)(
            FOLDS, shuffle=True, random_state=seed
        )
        models: list[Pipeline] = []
        unseen: dict[str, int] = {}
        for k, (train, held) in enumerate(splitter.split(x, y)):
            models.append(_predictor(attribute.number).fit(x[train], y[train]))
            unseen |= {cases[i]: k for i in held}
        return AttributePredictor(attribute, models, unseen)

    def predict(self, volumes: Sequence[VolumeMeasurements]) -> tuple[list[str], NDArray[np.float64]]:
        """Cases, and predictions `(n, classes)` or `(n, 1)`; a case that is no real scan is read by
        all predictors.
        """
        cases, made = [], []
        for v in (v for v in volumes if v.case in self.attribute.values):
            models = [self.models[self.unseen[v.case]]] if v.case in self.unseen else self.models
            x = v.regional[None]
            numbers = self.attribute.number
            made.append(
                np.mean(
                    [m.predict(x)[:, None] if numbers else m.predict_proba(x) for m in models], 0
                )[0]
            )
            cases.append(v.case)
        return cases, np.array(made)

    def score(self, measure: str, truth: NDArray[Any], predicted: NDArray[np.float64]) -> float:
        """One of `MEASURES` of predictions against the truth; NaN where it is not defined."""
        if measure == "mean absolute error":
            return float(mean_absolute_error(truth, predicted[:, 0]))
        if measure == "rank correlation":
            varied = np.ptp(truth) > 0 and np.ptp(predicted) > 0
            return float(spearmanr(truth, predicted[:, 0]).statistic) if varied else float("nan")
        classes = self.models[0].classes_
        if len(set(truth)) < len(classes):
            return float("nan")
        if len(classes) == 2:
            return float(roc_auc_score(truth == classes[1], predicted[:, 1]))
        return float(roc_auc_score(truth, predicted, multi_class="ovo", labels=classes))


def _predictor(number: bool) -> Pipeline:
    last = RidgeCV(np.logspace(-2, 4, 13)) if number else LogisticRegression(C=0.1, max_iter=2000)
    return make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), last)


def text_metrics(
    attribute: PredictedAttribute,
    real: Sequence[VolumeMeasurements],
    sets: Mapping[str, Sequence[VolumeMeasurements]],
    draws: int,
    seed: int,
) -> list[Metric]:
    """How well an attribute is read from each set of synthetic volumes, beside real scans and
    shuffled rows.

    Args:
        attribute: Of the cases' own rows.
        real: Scans that the predictor learns from.
        sets: Synthetic volumes by name: those of the own rows, and controls (shuffled prompts,
            empty prompts).
        draws: Shuffles and bootstraps.
        seed: Of the folds and the draws.
    """
    reader = AttributePredictor.from_scans(attribute, real, seed)
    cases, best = reader.predict(real)
    found = []
    for measure in MEASURES[attribute.number]:
        ceiling = reader.score(measure, attribute.target(cases), best)
        for name, volumes in sets.items():
            found += _figure(
                reader,
                measure,
                name,
                volumes,
                ceiling,
                np.random.default_rng([seed, len(volumes)]),
                draws,
            )
    return found


def _figure(
    reader: AttributePredictor,
    measure: str,
    name: str,
    volumes: Sequence[VolumeMeasurements],
    ceiling: float,
    rng: np.random.Generator,
    draws: int,
) -> list[Metric]:
    cases, predicted = reader.predict(volumes)
    if len(cases) < 2:
        return []
    truth, n = reader.attribute.target(cases), len(cases)
    shuffled = np.array(
        [reader.score(measure, rng.permutation(truth), predicted) for _ in range(draws)]
    )
    again = [rng.integers(n, size=n) for _ in range(draws)]
    low, high = _percentiles(
        np.array([reader.score(measure, truth[i], predicted[i]) for i in again]), INTERVAL_PERCENTILES
    )
    error = measure == "mean absolute error"
    floor = (
        float(shuffled[np.isfinite(shuffled)].mean())
        if np.isfinite(shuffled).any()
        else float("nan")
    )
    note = f"{n} volumes" + (
        "; density or texture that is off in all volumes alike counts here" if error else ""
    )
    title = f"{reader.attribute.column} read from {name} ({measure})"
    edge = _percentiles(shuffled, (5 if error else 95,))[0]
    return [
        Metric(
            "text",
            title,
            reader.score(measure, truth, predicted),
            low,
            high,
            floor=floor,
            floor_high=edge,
            ceiling=ceiling,
            better="low" if error else "high",
            note=note,
        )
    ]


def _percentiles(values: NDArray[np.float64], levels: Sequence[float]) -> list[float]:
    finite = values[np.isfinite(values)]
    return (
        [float(v) for v in np.percentile(finite, levels)]
        if finite.size
        else [float("nan")] * len(levels)
    )
