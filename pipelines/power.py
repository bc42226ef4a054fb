"""The smallest effect on lung density that a cohort can detect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.cohort import Case
from data.lung_density import lung_means
from options.base_options import DataOptions
from util.cli import counted

POWER = 0.8
ALPHA = 0.05
RARE_SHARE = 0.1  # share of the cases that have the rarer value
MAX_SCANS = 200  # scans that the SD is estimated from
MIN_SCANS = 4


def detectable_difference(sd: float, cases: int, share: float) -> float:
    """Return the smallest difference between two groups that a t-test detects with 80 % power.

    Args:
        sd: Standard deviation between cases within a group.
        cases: Cases in both groups together.
        share: Share of the cases in the smaller group.

    Returns:
        The difference in the unit of `sd`.
    """
    from statsmodels.stats.power import TTestIndPower  # slow to import, and only needed here

    first = share * cases
    ratio = (cases - first) / first
    effect_size = TTestIndPower().solve_power(nobs1=first, ratio=ratio, alpha=ALPHA, power=POWER)
    return float(sd * effect_size)


def describe_smallest_effect(cases: Sequence[Case], options: DataOptions) -> str:
    """Return a sentence on the smallest effect that training cases can show.

    Args:
        cases: The training cases; repeated ones count once.
        options: How the cohort is read.
    """
    distinct = list({case.id: case for case in cases}.values())
    step = -(-len(distinct) // MAX_SCANS)
    densities = [means["lungs"] for means in lung_means(distinct[::step], options) if means]
    if len(densities) < MIN_SCANS:
        return (
            f"{counted(len(densities), 'training scan')} with lungs: too few to estimate which "
            "effects the cohort can detect."
        )
    sd = float(np.std(densities, ddof=1))
    half = detectable_difference(sd, len(distinct), 0.5)
    rare = detectable_difference(sd, len(distinct), RARE_SHARE)
    return (
        f"Smallest effect on mean lung density that {len(distinct)} training cases can detect (80 "
        f"% power, two-sided 5 %, SD between scans {sd:.1f} HU): {half:.1f} HU for a value that "
        f"half of them have, {rare:.1f} HU for one that a tenth of them have."
    )
