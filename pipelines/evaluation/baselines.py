"""Baselines and intervals of metrics: random parts of the real scans and resampled volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.integer]
Distance = Callable[[Index, Index], float]
Progress = Callable[[Iterable[Any]], Iterable[Any]]

INTERVAL_PERCENTILES = (2.5, 97.5)
MIN_BOOTSTRAPS = 200  # resamples of a mean, which cost little
COLUMN_NAMES = {"baseline": "floor", "baseline_high": "floor_high"}  # in tables, where they differ


@dataclass(frozen=True)
class Metric:
    """One metric of the report beside its baseline.

    Attributes:
        group: The section it belongs to.
        name: The measured quantity with its unit.
        value: Over all volumes.
        low: Lower end of the 95 % bootstrap interval over volumes; `high` is its upper end.
        matched: The same between as many volumes as two random parts of the real scans hold, so
            that it can be compared with the baseline.
        baseline: The value of equal sets, such as the mean between two random parts of the real
            scans; `baseline_high` is the 95th percentile over the random parts.
        ceiling: The value of real scans, where more is better.
        better: "low" (the smaller the better), "high", "near" (the nearer to the baseline the
            better), or "zero".
        note: A remark for the reader.
    """

    group: str
    name: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    matched: float = float("nan")
    baseline: float = float("nan")
    baseline_high: float = float("nan")
    ceiling: float = float("nan")
    better: str = "low"
    note: str = ""

    def row(self) -> dict[str, Any]:
        """Return the metric as a row of figures.csv."""
        return {COLUMN_NAMES.get(name, name): value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class ResamplingPlan:
    """The volumes of every resample: real scans are 0 to n - 1, synthetic ones n to n + m - 1.

    Attributes:
        real: Indices of all real scans.
        synthetic: Indices of all synthetic volumes.
        parts: Pairs of random parts of the real scans that share none: halves, or parts as large
            as the synthetic set where that is smaller than a half.
        matched: Pairs of such a part and as many synthetic volumes.
        bootstrap: Pairs of bootstrap resamples of both sets.
    """

    real: Index
    synthetic: Index
    parts: tuple[tuple[Index, Index], ...]
    matched: tuple[tuple[Index, Index], ...]
    bootstrap: tuple[tuple[Index, Index], ...]

    @classmethod
    def from_counts(cls, n: int, m: int, resamples: int, seed: int) -> ResamplingPlan:
        """Draw `resamples` pairs of each kind for `n` real scans and `m` synthetic volumes."""
        rng = np.random.default_rng([seed, n, m])
        real = np.arange(n)
        synthetic = np.arange(n, n + m)
        size = min(n // 2, m)
        parts = []
        matched = []
        bootstrap = []
        for _ in range(resamples):
            order = rng.permutation(real)
            parts.append((order[:size], order[size : 2 * size]))
            matched.append((order[:size], rng.choice(synthetic, size, replace=False)))
            bootstrap.append((rng.choice(real, n), rng.choice(synthetic, m)))
        return cls(real, synthetic, tuple(parts), tuple(matched), tuple(bootstrap))


def centred_interval(value: float, resampled: NDArray[np.floating]) -> tuple[float, float]:
    """Return the bootstrap's 2.5th to 97.5th percentile, moved so that its mean lies on the value.

    Drawing with replacement raises a distance between distributions by itself, so only the spread
    of the resamples is used.
    """
    if not np.isfinite(resampled).any():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(resampled, INTERVAL_PERCENTILES) - np.nanmean(resampled)
    return value + float(low), value + float(high)


def compare_with_baseline(
    group: str,
    name: str,
    distance: Distance,
    plan: ResamplingPlan,
    note: str = "",
    lower_bound: float = float("-inf"),
    progress: Progress = iter,
) -> Metric:
    """Return a distance between all real and all synthetic volumes with interval and baseline.

    Args:
        group: Section of the report.
        name: The metric's name.
        distance: A function of two groups of indices into real and then synthetic volumes.
        plan: The resamples.
        note: See `Metric`.
        lower_bound: Smallest possible distance; the interval is cut there.
        progress: Wraps the loop over resamples, for a progress bar.
    """
    value = distance(plan.real, plan.synthetic)
    kinds = (plan.parts, plan.matched, plan.bootstrap)
    distances = np.full((3, max(len(plan.parts), 1)), np.nan)
    for i in progress(range(len(plan.parts))):
        for row, kind in zip(distances, kinds, strict=True):
            first, second = kind[i]
            if len(first) and len(second):
                row[i] = distance(first, second)
    parts, matched, bootstrap = distances
    low, high = centred_interval(value, bootstrap)
    return Metric(
        group,
        name,
        value,
        max(low, lower_bound),
        high,
        matched=finite_mean(matched),
        baseline=finite_mean(parts),
        baseline_high=finite_percentiles(parts, (95,))[0],
        note=note,
    )


def finite_mean(values: NDArray[np.floating]) -> float:
    """Return the mean of the finite values, NaN where there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def finite_percentiles(values: NDArray[np.floating], levels: Sequence[float]) -> list[float]:
    """Return percentiles of the finite values, NaN where there are none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return [float("nan")] * len(levels)
    return [float(value) for value in np.percentile(finite, levels)]


def bootstrap_mean(values: NDArray[np.floating], resamples: int, seed: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of the finite ones of values `(n,)`."""
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng([seed, len(finite)])
    size = (max(resamples, MIN_BOOTSTRAPS), len(finite))
    means = finite[rng.integers(len(finite), size=size)].mean(1)
    low, high = np.percentile(means, INTERVAL_PERCENTILES)
    return float(low), float(high)


class Estimate(NamedTuple):
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


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

    def mean(self, cases: Sequence[str], values: Sequence[float] | NDArray[np.float64]) -> Estimate:
        """Return the mean over volumes and its interval."""
        array = np.array(values, float)
        low, high = self.interval(cases, lambda index: float(array[index].mean()))
        return Estimate(float(array.mean()), low, high)
