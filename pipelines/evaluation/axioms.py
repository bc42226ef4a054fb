"""Axioms of counterfactuals, measured on volumes with a changed attribute.

Effectiveness, composition and reversibility as Monteiro et al. 2023 (arXiv 2303.01274) define them,
minimality and realism as Melistas et al. 2024 (arXiv 2403.20287) add them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pipelines.evaluation.baselines import INTERVAL_PERCENTILES, finite_percentiles
from pipelines.evaluation.counterfactual_sets import CYCLED, REVERSED, Counterfactual
from pipelines.evaluation.distances import FrechetDistance
from pipelines.evaluation.measurements import PLANES, VolumeMeasurements
from pipelines.evaluation.text_effect import AUC, AttributePredictor, Prediction

AXIOMS = ("effectiveness", "composition", "reversibility", "minimality", "realism")
CHANGED, OTHER = "changed attribute", "other attribute"
LUNGS, OUTSIDE = "lungs", "outside"
MEAN_CHANGE = "mean absolute change (HU)"
DIVERGENCE = "counterfactual divergence"
FID = "2.5D FID"
PREDICTION_SHIFT = "change of the prediction"
NUMBER_BINS = 3  # of a numeric attribute, for the divergence
MIN_GROUP = 3  # volumes with a value, for the divergence
# Weights of the two probabilities, of the code of Melistas et al.
CLOSER_WEIGHT, FARTHER_WEIGHT = 0.8, 0.2

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AxiomRow:
    """One row of counterfactuals.csv.

    Attributes:
        method: Name of the method.
        column: The attribute that was changed; "" for measures of a change of nothing.
        axiom: One of `AXIOMS`.
        of: What is measured: the changed or another attribute, or a region.
        measure: The measure, with its unit.
        value: Mean over volumes.
        low: Lower end of the 95 % bootstrap interval over cases; `high` is its upper end.
        reference: The value to compare with.
        reference_is: What `reference` is.
        volumes: Number of volumes.
        better: high, low, or near (the reference).
        note: A remark for the reader.
    """

    method: str
    column: str
    axiom: str
    of: str
    measure: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    reference: float = float("nan")
    reference_is: str = ""
    volumes: int = 0
    better: str = "low"
    note: str = ""

    def row(self) -> dict[str, Any]:
        """Return the row by column of counterfactuals.csv."""
        return asdict(self)


COLUMNS = tuple(AxiomRow.__dataclass_fields__)


@dataclass(frozen=True)
class MeasuredChange:
    """One counterfactual, measured.

    Attributes:
        counterfactual: The volume.
        value: Its new value as the text shows it.
        row: The changed row, "" where a value is not known or contradicted.
        volume: Measurements of the volume.
        change_hu: Mean absolute change in HU by region, against the factual volume.
    """

    counterfactual: Counterfactual
    value: str
    row: Mapping[str, str]
    volume: VolumeMeasurements
    change_hu: Mapping[str, float]

    @property
    def case(self) -> str:
        """The case."""
        return self.counterfactual.case


@dataclass(frozen=True)
class MeasuredMethod:
    """The measured counterfactuals of one method.

    Attributes:
        name: Name of the method.
        factual: Measurements of the unchanged volume by case.
        rows: Formatted factual row by case.
        changes: The counterfactuals by changed attribute.
        composition_hu: Mean absolute difference of the null intervention from the scan, in HU, by
            case and region.
        reported: See `CounterfactualSet.reported`.
        edits_scans: See `CounterfactualSet.edits_scans`.
        is_reference: See `CounterfactualSet.is_reference`.
    """

    name: str
    factual: Mapping[str, VolumeMeasurements]
    rows: Mapping[str, Mapping[str, str]]
    changes: Mapping[str, Sequence[MeasuredChange]]
    composition_hu: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reported: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    edits_scans: bool = False
    is_reference: bool = False


@dataclass(frozen=True)
class CaseBootstrap:
    """Bootstrap over cases: all volumes of a case are drawn together."""

    resamples: int
    seed: int

    def interval(
        self, cases: Sequence[str], statistic: Callable[[NDArray[np.intp]], float]
    ) -> tuple[float, float]:
        """Return the 95 % interval of a statistic of rows, whose cases are given."""
        rows: dict[str, list[int]] = {}
        for i, case in enumerate(cases):
            rows.setdefault(case, []).append(i)
        if len(rows) < 2:
            return float("nan"), float("nan")
        groups = [np.array(one) for one in rows.values()]
        rng = np.random.default_rng([self.seed, len(groups)])
        values = []
        for _ in range(self.resamples):
            drawn = rng.integers(len(groups), size=len(groups))
            values.append(statistic(np.concatenate([groups[i] for i in drawn])))
        low, high = finite_percentiles(np.array(values, float), INTERVAL_PERCENTILES)
        return low, high

    def mean(self, cases: Sequence[str], values: Array) -> tuple[float, float, float]:
        """Return the mean over volumes and its interval."""
        low, high = self.interval(cases, lambda index: float(values[index].mean()))
        return float(values.mean()), low, high


def score_prediction(
    predictor: AttributePredictor, measure: str, truth: NDArray[Any], predicted: Array
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
    judged = [c for c in changes if attribute.number or c.value in predictor.models[0].classes_]
    if not judged:
        return []
    truth = np.array([c.value for c in judged])
    if attribute.number:
        truth = truth.astype(float)
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

        value = score(np.arange(len(judged)))
        low, high = bootstrap.interval(cases, score)
        rows.append(
            AxiomRow(
                name,
                column,
                "effectiveness",
                CHANGED,
                measure,
                value,
                low,
                high,
                score_prediction(predictor, measure, best.truth, best.values),
                "read from real scans",
                len(judged),
                "low" if "error" in measure else "high",
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
        if not change.row.get(other) or factual.get(column) == change.value:
            continue
        if attribute.number or change.row[other] in predictor.models[0].classes_:
            judged.append(change)
    if not judged:
        return []
    truth = np.array([change.row[other] for change in judged])
    if attribute.number:
        truth = truth.astype(float)
    after = predictor.read([change.volume for change in judged])
    before = predictor.read([method.factual[change.case] for change in judged])
    cases = [change.case for change in judged]
    measure = attribute.measures[0]

    def score(index: NDArray[np.intp]) -> float:
        return score_prediction(predictor, measure, truth[index], after[index])

    low, high = bootstrap.interval(cases, score)
    unit = "SD of the column"
    if attribute.number:
        spread = float(np.std([float(v) for v in attribute.values.values()])) or 1.0
        moved = np.abs(after - before)[:, 0] / spread
    else:
        moved, unit = 0.5 * np.abs(after - before).sum(1), "probability"
    mean, moved_low, moved_high = bootstrap.mean(cases, moved)
    every = np.arange(len(judged))
    return [
        AxiomRow(
            method.name,
            column,
            "effectiveness",
            f"{OTHER}: {other}",
            measure,
            score(every),
            low,
            high,
            score_prediction(predictor, measure, truth, before),
            "before the change",
            len(judged),
            "near",
        ),
        AxiomRow(
            method.name,
            column,
            "effectiveness",
            f"{OTHER}: {other}",
            f"{PREDICTION_SHIFT} ({unit})",
            mean,
            moved_low,
            moved_high,
            0.0,
            "no change",
            len(judged),
        ),
    ]


def composition_rows(method: MeasuredMethod, bootstrap: CaseBootstrap) -> list[AxiomRow]:
    """Return how far an intervention that changes nothing is from the scan."""
    rows = []
    note = ""
    if not method.edits_scans:
        note = "generated from mask and row, not from the scan: nothing of the scan is kept"
    for region in (LUNGS, OUTSIDE):
        by_case = {case: v[region] for case, v in method.composition_hu.items() if region in v}
        rows += _mean_rows(method.name, "", "composition", region, by_case, bootstrap, note)
    cycles = sorted({name for name, _, _ in method.reported if name.startswith(CYCLED)})
    for name in cycles:
        count = name.removeprefix(CYCLED).partition("_")[0]
        if count == "1":
            continue
        for region in (LUNGS, OUTSIDE):
            by_case = {c: v for (n, c, r), v in method.reported.items() if (n, r) == (name, region)}
            text = f"after {count} cycles"
            rows += _mean_rows(method.name, "", "composition", region, by_case, bootstrap, text)
    return rows


def reversibility_rows(method: MeasuredMethod, bootstrap: CaseBootstrap) -> list[AxiomRow]:
    """Return how far a volume that is changed and changed back is from where it began."""
    rows = []
    for column in method.changes:
        for region in (LUNGS, OUTSIDE):
            if method.is_reference:
                values = {(case, ""): 0.0 for case in method.factual}
                note = "by construction"
            else:
                values = {}
                for (name, case, of), value in method.reported.items():
                    if of == region and name.startswith(f"{REVERSED}{column}="):
                        values[case, name] = value
                note = ""
            if not values:
                continue
            array = np.array(list(values.values()), float)
            mean, low, high = bootstrap.mean([case for case, _ in values], array)
            rows.append(
                AxiomRow(
                    method.name,
                    column,
                    "reversibility",
                    region,
                    MEAN_CHANGE,
                    mean,
                    low,
                    high,
                    0.0,
                    "no change",
                    len(array),
                    note=note,
                )
            )
    return rows


def _mean_rows(
    method: str,
    column: str,
    axiom: str,
    region: str,
    by_case: Mapping[str, float],
    bootstrap: CaseBootstrap,
    note: str,
) -> list[AxiomRow]:
    if not by_case:
        return []
    mean, low, high = bootstrap.mean(list(by_case), np.array(list(by_case.values()), float))
    row = AxiomRow(method, column, axiom, region, MEAN_CHANGE, mean, low, high, 0.0, "no change")
    return [AxiomRow(**(row.row() | {"volumes": len(by_case), "note": note}))]


def minimality_rows(method: MeasuredMethod, bootstrap: CaseBootstrap) -> list[AxiomRow]:
    """Return how large changes are, inside and outside the lungs, and their divergence."""
    rows = []
    for column, changes in method.changes.items():
        moved = [c for c in changes if method.rows.get(c.case, {}).get(column) != c.value]
        cases = [c.case for c in moved]
        for region in (LUNGS, OUTSIDE):
            known = [(c.case, c.change_hu[region]) for c in moved if region in c.change_hu]
            if not known:
                continue
            values = np.array([value for _, value in known], float)
            mean, low, high = bootstrap.mean([case for case, _ in known], values)
            note = "the attribute cannot act there" if region == OUTSIDE else ""
            rows.append(
                AxiomRow(
                    method.name,
                    column,
                    "minimality",
                    region,
                    MEAN_CHANGE,
                    mean,
                    low,
                    high,
                    volumes=len(known),
                    note=note,
                )
            )
        scores = [divergence(method, column, change) for change in moved]
        finite = np.isfinite(scores)
        if finite.any():
            values = np.array(scores, float)[finite]
            of = [case for case, ok in zip(cases, finite, strict=True) if ok]
            mean, low, high = bootstrap.mean(of, values)
            rows.append(
                AxiomRow(
                    method.name,
                    column,
                    "minimality",
                    "whole volume",
                    DIVERGENCE,
                    mean,
                    low,
                    high,
                    float(np.log(CLOSER_WEIGHT + FARTHER_WEIGHT * np.e)),
                    "a scan that is not changed",
                    len(values),
                    note="0 to 1; features of the first 3D network",
                )
            )
    return rows


def divergence(method: MeasuredMethod, column: str, change: MeasuredChange) -> float:
    """Return the counterfactual latent divergence of one volume, 0 (best) to 1.

    It is log(0.8 exp P(S' <= d) + 0.2 exp P(S >= d)), where d is the distance of the counterfactual
    from its factual volume, and S and S' are distances from this volume to the factual volumes of
    other cases with its own value, and with the new one (Sanchez and Tsaftaris 2022; Melistas et
    al. 2024). A change as large as the step to another patient is not minimal; one smaller than
    between patients with the same value is none.
    """
    factual = method.factual[change.case].whole[0]
    own = method.rows.get(change.case, {}).get(column, "")
    if not own:
        return float("nan")
    known = {case: row[column] for case, row in method.rows.items() if row.get(column)}
    group = _grouping(list(known.values()))
    distances: dict[str, list[float]] = {"own": [], "new": []}
    for case, value in known.items():
        if case == change.case or case not in method.factual:
            continue
        distance = float(np.linalg.norm(method.factual[case].whole[0] - factual))
        if group(value) == group(own):
            distances["own"].append(distance)
        if group(value) == group(change.value):
            distances["new"].append(distance)
    if min(map(len, distances.values())) < MIN_GROUP:
        return float("nan")
    d = float(np.linalg.norm(change.volume.whole[0] - factual))
    closer = float(np.mean(np.array(distances["new"]) <= d))
    farther = float(np.mean(np.array(distances["own"]) >= d))
    return float(np.log(CLOSER_WEIGHT * np.exp(closer) + FARTHER_WEIGHT * np.exp(farther)))


def _grouping(values: Sequence[str]) -> Callable[[str], Any]:
    """Return what decides whether two values are alike: tertiles of numbers, else the value."""
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        return str
    if len(set(values)) <= NUMBER_BINS:
        return str
    edges = np.quantile(numbers, np.arange(1, NUMBER_BINS) / NUMBER_BINS)
    return lambda value: int(np.searchsorted(edges, float(value)))


def realism_rows(method: MeasuredMethod, real: Sequence[VolumeMeasurements]) -> list[AxiomRow]:
    """Return the FID of counterfactuals, beside that of the method's own factual volumes.

    Each value's volumes are as many as the factual ones, because FID depends on the number.
    """
    rows = []
    for column, changes in method.changes.items():
        by_value: dict[str, list[VolumeMeasurements]] = {}
        for change in changes:
            by_value.setdefault(change.value, []).append(change.volume)
        cases = dict.fromkeys(change.case for change in changes)
        factual = [method.factual[case] for case in cases]
        values = [_fid(real, volumes) for volumes in by_value.values() if len(volumes) > 1]
        if not values or len(factual) < 2:
            continue
        note = "made from real scans" if method.edits_scans else ""
        rows.append(
            AxiomRow(
                method.name,
                column,
                "realism",
                "whole volume",
                FID,
                float(np.mean(values)),
                reference=_fid(real, factual),
                reference_is="before the change",
                volumes=len(changes),
                note=note,
            )
        )
    return rows


def _fid(real: Sequence[VolumeMeasurements], volumes: Sequence[VolumeMeasurements]) -> float:
    """Return the 2.5D FID of the first network."""
    features = np.stack([v.planes[0] for v in (*real, *volumes)])
    first, second = np.arange(len(real)), np.arange(len(real), len(features))
    distances = [FrechetDistance(features[:, i])(first, second) for i in range(len(PLANES))]
    return float(np.mean(distances))


def axiom_rows(
    method: MeasuredMethod,
    predictors: Mapping[str, AttributePredictor],
    real: Sequence[VolumeMeasurements],
    bootstrap: CaseBootstrap,
) -> list[AxiomRow]:
    """Return all rows of a method."""
    return [
        *effectiveness_rows(method, predictors, real, bootstrap),
        *composition_rows(method, bootstrap),
        *reversibility_rows(method, bootstrap),
        *minimality_rows(method, bootstrap),
        *realism_rows(method, real),
    ]
