"""What a distance would be between equals, and how sure it is: random halves of the real scans, and
resampled volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.integer]
Distance = Callable[[Index, Index], float]
INTERVAL_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Metric:
    """One figure of the report beside its floor.

    Attributes:
        group: The section it belongs to.
        name: What was measured, with its unit.
        value: Over all volumes.
        low: Lower end of the 95 % bootstrap interval over volumes; `high` its upper end.
        matched: The same between as many volumes as a half of the real scans holds, so that it can
            be set beside the floor.
        floor: What equals would give, such as the mean between two random halves of the real scans;
            `floor_high` is the draws' 95th percentile.
        ceiling: What real scans reach, where more is better.
        better: "low" (the smaller the better), "high", or "near" (the nearer to the floor the
            better).
        note: What a reader must know.
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
        return asdict(self)


@dataclass(frozen=True)
class ResamplingPlan:
    """Which volumes each draw takes: real scans are 0 to n - 1, synthetic ones n to n + m - 1."""

    real: Index
    synthetic: Index
    halves: tuple[tuple[Index, Index], ...]
    matched: tuple[tuple[Index, Index], ...]
    bootstrap: tuple[tuple[Index, Index], ...]

    @staticmethod
    def from_counts(n: int, m: int, count: int, seed: int) -> ResamplingPlan:
        """`count` draws of each kind."""
        rng = np.random.default_rng([seed, n, m])
        real, synthetic = np.arange(n), np.arange(n, n + m)
        half, halves, matched, bootstrap = n // 2, [], [], []
        for _ in range(count):
            order = rng.permutation(real)
            halves.append((order[:half], order[half : 2 * half]))
            matched.append((order[:half], rng.choice(synthetic, min(half, m), replace=False)))
            bootstrap.append((rng.choice(real, n), rng.choice(synthetic, m)))
        return ResamplingPlan(real, synthetic, tuple(halves), tuple(matched), tuple(bootstrap))


def centred_interval(value: float, drawn: NDArray[np.floating]) -> tuple[float, float]:
    """The bootstrap's 2.5th to 97.5th percentile, moved so that its mean lies on the value.

    Drawing with repeats raises a distance between distributions by itself; only the spread of the
    draws is used.
    """
    if not np.isfinite(drawn).any():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(drawn, INTERVAL_PERCENTILES) - np.nanmean(drawn)
    return value + float(low), value + float(high)


def compare_with_baseline(
    group: str,
    name: str,
    distance: Distance,
    draws: ResamplingPlan,
    better: str = "low",
    note: str = "",
    least: float = float("-inf"),
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Metric:
    """A distance between all real and all synthetic volumes, its interval, and its floor.

    Args:
        group: Section of the report.
        name: What it is.
        distance: Takes two groups of indices into real and then synthetic volumes.
        draws: What to draw.
        better: See `Figure`.
        note: See `Figure`.
        least: What the distance cannot fall below; the interval is cut there.
        progress: Wraps the draws, for a progress bar.
    """
    value = distance(draws.real, draws.synthetic)
    kinds = (draws.halves, draws.matched, draws.bootstrap)
    found = np.full((3, max(len(draws.halves), 1)), np.nan)
    for i in progress(range(len(draws.halves))):
        for j, kind in enumerate(kinds):
            found[j, i] = distance(*kind[i]) if all(len(part) for part in kind[i]) else np.nan
    halves, matched, bootstrap = found
    low, high = centred_interval(value, bootstrap)
    return Metric(
        group,
        name,
        value,
        max(low, least),
        high,
        matched=_mean(matched),
        floor=_mean(halves),
        floor_high=_percentile(halves, 95),
        better=better,
        note=note,
    )


def _mean(values: NDArray[np.floating]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _percentile(values: NDArray[np.floating], level: float) -> float:
    finite = values[np.isfinite(values)]
    return float(np.percentile(finite, level)) if finite.size else float("nan")


def bootstrap_mean(values: NDArray[np.floating], draws: int, seed: int) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of values `(n,)`, absent ones left out."""
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng([seed, len(finite)])
    means = finite[rng.integers(len(finite), size=(max(draws, 200), len(finite)))].mean(1)
    low, high = np.percentile(means, INTERVAL_PERCENTILES)
    return float(low), float(high)
