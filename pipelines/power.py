"""The smallest effect on lung density that a cohort can detect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.cohort import Case
from data.lung_density import lung_means
from options.base_options import DataOptions

POWER, ALPHA = 0.8, 0.05
RARE_SHARE = 0.1  # share of the cases that have the rarer value
MAX_SCANS = 200  # scans are enough for an SD


def detectable_difference(sd: float, cases: int, share: float) -> float:
    """Smallest difference between two groups that a t-test sees with 80 % power, in the unit of
    `sd`.

    Args:
        sd: Standard deviation between cases within a group.
        cases: In both groups together.
        share: Of the cases in the smaller group.
    """
    from statsmodels.stats.power import TTestIndPower  # slow to import, and only needed here

    first = share * cases
    ratio = (cases - first) / first
    return float(
        sd * TTestIndPower().solve_power(nobs1=first, ratio=ratio, alpha=ALPHA, power=POWER)
    )


def describe_smallest_effect(cases: Sequence[Case], options: DataOptions) -> str:
    """A sentence on the smallest effect that these training cases can show (80 % power, two-sided 5
    %).
    """
    distinct = list({case.id: case for case in cases}.values())
    step = -(-len(distinct) // MAX_SCANS)
    found = [means["lungs"] for means in lung_means(distinct[::step], options) if means]
    if len(found) < 4:
        return f"{len(found)} training scans with lungs are too few to tell which effects the cohort can detect."
    sd = float(np.std(found, ddof=1))
    half, rare = (detectable_difference(sd, len(distinct), share) for share in (0.5, RARE_SHARE))
    return (
        f"Smallest effect on mean lung density that {len(distinct)} training cases can detect (80 "
        f"% power, two-sided 5 %, SD between scans {sd:.1f} HU): {half:.1f} HU for a value that "
        f"half of them have, {rare:.1f} HU for one that a tenth of them have."
    )
