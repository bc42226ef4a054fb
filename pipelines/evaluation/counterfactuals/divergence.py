"""Counterfactual latent divergence, a measure of minimality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipelines.evaluation.counterfactuals.measured import MeasuredChange, MeasuredMethod

NUMBER_BINS = 3  # of a numeric attribute, for the divergence
MIN_GROUP = 3  # volumes with a value, for the divergence
# Weights of the two probabilities, of the code of Melistas et al.
CLOSER_WEIGHT, FARTHER_WEIGHT = 0.8, 0.2


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
