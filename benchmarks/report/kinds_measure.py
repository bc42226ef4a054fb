"""Measurements of generated volumes against planted effects of every kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data.phantom.cohort import PhantomScan
from data.phantom.kinds.cohort import KindsCohort
from data.phantom.kinds.columns import Contrast
from data.phantom.rows import Row
from util.metrics.regions import Mask, body_mask, chest_regions
from util.metrics.texture import (
    detail_correlation,
    detail_ratio,
    radial_power,
    statistics_by_region,
    vessel_share,
)

Hu = NDArray[np.float32]
# Case, row and number of the noise draw in, HU (X, Y, Z) on the grid of the cohort out.
Generate = Callable[[str, Row, int], Hu]
Statistics = dict[str, dict[str, float]]

REGIONS = ("lungs", "left_lung", "right_lung", "upper", "middle", "lower")
NEAR_AIRWAYS_MM = 15.0


class CaseStatistics:
    """Statistics of one case for every row and draw, each volume rendered or generated once.

    Args:
        generate: What is measured.
    """

    def __init__(self, cohort: KindsCohort, case: str, generate: Generate) -> None:
        self._cohort = cohort
        self._case = case
        self._generate = generate
        scan = cohort.render(case)
        self._masks = region_masks(scan, cohort.chest(case).airway_distance)
        self._spacing = scan.spacing
        self._true: dict[tuple[str, ...], Statistics] = {}
        self._generated: dict[tuple[tuple[str, ...], int], Statistics] = {}

    def true(self, changes: Mapping[str, str]) -> Statistics:
        """Return the statistics of the case as rendered with cells changed."""
        key = tuple(self._row(changes).values())
        if key not in self._true:
            self._true[key] = self._statistics(self._cohort.render(self._case, changes).hu)
        return self._true[key]

    def generated(self, changes: Mapping[str, str], draw: int) -> Statistics:
        """Return the statistics of the volume generated for a changed row."""
        row = self._row(changes)
        key = (tuple(row.values()), draw)
        if key not in self._generated:
            self._generated[key] = self._statistics(self._generate(self._case, row, draw))
        return self._generated[key]

    def _row(self, changes: Mapping[str, str]) -> Row:
        return {**self._cohort.rows[self._case], **changes}

    def _statistics(self, hu: Hu) -> Statistics:
        return statistics_by_region(hu, self._masks, self._spacing)


def region_masks(scan: PhantomScan, airway_distance: Hu) -> dict[str, Mask]:
    """Return the regions that are measured: `REGIONS`, near_airways, and body without lungs."""
    masks = chest_regions(scan.mask, scan.spacing)
    tissues = {name: masks[name] for name in ("airway", "outside") if name in masks}
    selected = {name: masks[name] for name in REGIONS if name in masks} | tissues
    selected["near_airways"] = masks["lungs"] & (airway_distance < NEAR_AIRWAYS_MM)
    selected["body"] = body_mask(scan.hu) & masks["outside"]
    return {name: mask for name, mask in selected.items() if mask.any()}


def measure_effects(cohort: KindsCohort, generate: Generate, draws: int) -> dict[str, Any]:
    """Return true and generated effects by contrast, region and statistic.

    Each is a mean over the test cases: `start`, the true value before the change, `true`, the true
    change, `generated`, the change over all draws, and `error`, its Monte-Carlo error over draws
    (None with one draw).
    """
    cases = [CaseStatistics(cohort, case, generate) for case in cohort.splits["test"]]
    return {
        contrast.name: _measure_contrast(cases, contrast, draws)
        for contrast in cohort.columns.all_contrasts
    }


def _measure_contrast(
    cases: Sequence[CaseStatistics], contrast: Contrast, draws: int
) -> dict[str, dict[str, dict[str, float | None]]]:
    start, end = (
        {**contrast.setting, contrast.column: value} for value in (contrast.start, contrast.end)
    )
    before = [case.true(start) for case in cases]
    true = [_difference(case.true(end), case.true(start)) for case in cases]
    generated = [
        [_difference(case.generated(end, d), case.generated(start, d)) for case in cases]
        for d in range(draws)
    ]
    measured: dict[str, dict[str, dict[str, float | None]]] = {}
    for region in true[0]:
        for statistic in true[0][region]:
            by_draw = [_mean(of_draw, region, statistic) for of_draw in generated]
            error = float(np.std(by_draw, ddof=1) / np.sqrt(draws)) if draws > 1 else None
            measured.setdefault(region, {})[statistic] = {
                "start": _mean(before, region, statistic),
                "true": _mean(true, region, statistic),
                "generated": float(np.mean(by_draw)),
                "error": error,
            }
    return measured


def _difference(end: Statistics, start: Statistics) -> Statistics:
    return {
        region: {name: end[region][name] - value for name, value in values.items()}
        for region, values in start.items()
    }


def _mean(cases: Sequence[Statistics], region: str, statistic: str) -> float:
    """Return the mean over the cases that have the region."""
    return float(np.mean([case[region][statistic] for case in cases if region in case]))


def measure_texture(cohort: KindsCohort, generate: Generate) -> dict[str, float]:
    """Return how volumes for the cases' own rows compare with the scans.

    `detail ratio` (generated/real SD), `seed correlation` of the detail and `seed SD` of the lungs'
    voxels in HU between two draws are means over cases. `power LOW-HIGH mm` (by period) and `vessel
    ratio` (share of dense voxels) are ratios of means, because single scans may have none. A ratio
    is NaN where no scan has any.
    """
    means: list[dict[str, float]] = []
    generated: list[dict[str, float]] = []
    real: list[dict[str, float]] = []
    for case in cohort.splits["test"]:
        scan = cohort.render(case)
        spacing = scan.spacing
        lungs = chest_regions(scan.mask, spacing)["lungs"]
        first, second = (generate(case, cohort.rows[case], draw) for draw in (0, 1))
        means.append(
            {
                "detail ratio": detail_ratio(first, scan.hu, lungs, spacing) or np.nan,
                "seed correlation": detail_correlation(first, second, lungs, spacing),
                "seed SD": float((first - second)[lungs].std() / np.sqrt(2)),
            }
        )
        generated.append(_spectrum(first, lungs, spacing))
        real.append(_spectrum(scan.hu, lungs, spacing))
    ratios = pd.DataFrame(generated).mean() / pd.DataFrame(real).mean().replace(0, np.nan)
    averages = pd.concat([pd.DataFrame(means).mean(), ratios])
    return {str(name): float(value) for name, value in averages.items()}


def _spectrum(hu: Hu, lungs: Mask, spacing: Sequence[float]) -> dict[str, float]:
    power = {
        f"power {1 / low:.0f}-{1 / high:.0f} mm": density
        for (low, high), density in radial_power(hu, lungs, spacing).items()
    }
    return {"vessel ratio": vessel_share(hu, lungs), **power}
