"""Associated attributes: how closely, the cautions, and how much wider their intervals become."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipelines.atlas.statistics import cautions, intervals
from pipelines.atlas.statistics.associations import (
    Association,
    measure_association,
    widen_intervals,
)
from pipelines.atlas.statistics.contrasts import AtlasAttribute, Kind

A = AtlasAttribute("A", "exposure", "category", ("no", "yes"), {"no": 50, "yes": 50})
B = AtlasAttribute(
    "B", "exposure", "category", ("low", "mid", "high"), {"low": 50, "mid": 25, "high": 25}
)
AGE = AtlasAttribute("AGE", "demographic", "number", ("40", "60", "80"), {"60": 100})
STRONG = Association("A", "B", "Cramer's V", 0.7, 90)
# Of those without A one in five has B high, of those with A four in five.
TABLE = pd.DataFrame(
    {
        "A": ["no"] * 5 + ["yes"] * 5 + ["", "yes"],
        "B": ["low"] * 4 + ["high"] * 5 + ["low", "high", ""],
        "AGE": ["50"] * 5 + ["70"] * 5 + ["60", ""],
    }
)


def effects() -> pd.DataFrame:
    """Effects of A +10 HU, B high +30, B mid -5, AGE -1 per year; intervals 4 HU to both sides."""
    rows = [
        ("A", "category", "no", "yes", 10.0),
        ("B", "category", "low", "mid", -5.0),
        ("B", "category", "low", "high", 30.0),
        ("AGE", "quantiles", "40", "80", -40.0),
        ("AGE", "slope", "", "", -1.0),
    ]
    frame = pd.DataFrame(
        [
            {
                "contrast": f"{column}={end}",
                "column": column,
                "kind": kind,
                "from": start,
                "to": end,
                "outcome": "mean",
                "region": region,
                "generated": hu * factor,
            }
            for region, factor in (("lungs", 1.0), ("upper", 2.0))
            for column, kind, start, end, hu in rows
        ]
    )
    return frame.assign(refit_low=frame["generated"] - 4, refit_high=frame["generated"] + 4)


def of(widened: pd.DataFrame, contrast: str, region: str = "lungs") -> tuple[float, float]:
    """Return by how much an interval is wider than that over refits, below and above; HU."""
    row = widened[(widened["contrast"] == contrast) & (widened["region"] == region)].iloc[0]
    below, above = (
        row["refit_low"] - (row["generated"] - 4),
        row["refit_high"] - (row["generated"] + 4),
    )
    assert (row["tied_low"], row["tied_high"]) == pytest.approx((below, above))
    return below, above


def measured(first: pd.Series, second: pd.Series, *kinds: Kind) -> Association:
    """Return the association of two columns of these kinds."""
    table = pd.DataFrame({"first": first, "second": second})
    attributes = [
        AtlasAttribute(column, "exposure", kind, (), {})
        for column, kind in zip(table, kinds, strict=True)
    ]
    return measure_association(table, *attributes)


def test_associations_are_measured_for_every_kind_of_pair() -> None:
    rng = np.random.default_rng(0)
    a = pd.Series(rng.choice(["x", "y", "z"], 300))
    b = a.where(rng.random(300) < 0.7, rng.choice(["x", "y", "z"], 300))
    number = pd.Series(rng.normal(size=300) + 3 * (a == "x")).astype(str)
    strong = measured(a, b, "category", "category")
    assert strong.measure == "Cramer's V" and strong.value == pytest.approx(0.7, abs=0.08)
    assert measured(a, pd.Series(rng.permutation(a)), "category", "category").value < 0.12
    mixed = measured(a, number, "category", "number")
    assert mixed.measure == "correlation ratio" and mixed.value == pytest.approx(0.82, abs=0.06)
    same = measured(number, number, "number", "number")
    assert same.measure == "Spearman" and same.value == pytest.approx(1)
    empty = measured(a, pd.Series([""] * 300), "category", "category")
    assert (empty.value, empty.cases) == (0.0, 0)


def test_cramers_v_is_that_of_scipy_but_for_the_correction_of_its_bias() -> None:
    rng = np.random.default_rng(1)
    a = pd.Series(rng.choice(["x", "y"], 40_000))
    b = a.where(rng.random(40_000) < 0.6, pd.Series(rng.choice(["x", "y"], 40_000)))
    raw = stats.contingency.association(pd.crosstab(a, b).to_numpy(), method="cramer")
    assert measured(a, b, "category", "category").value == pytest.approx(raw, abs=1e-3)


def test_a_strong_association_forbids_both_and_a_weak_one_warns() -> None:
    pairs = [replace(STRONG, value=value) for value in (0.7, 0.4, 0.1)]
    strong, weak = cautions.association_cautions(pairs, {}, "AB")
    assert strong.forbids and not weak.forbids and "neither is claimed" in strong.text
    assert not cautions.association_cautions([replace(STRONG, cases=5)], {}, "AB")
    roles = {"A": "exposure", "B": "outcome"}
    outcome = cautions.association_cautions(pairs[:1], roles, "AB")[0]
    assert outcome.forbids and (outcome.column, outcome.other) == ("B", "")
    assert "B, which comes after" in outcome.text


def test_intervals_are_said_to_show_an_association_of_studied_columns_alone() -> None:
    said = "intervals reach as far as the association allows"
    (both,) = cautions.association_cautions([STRONG], {}, "AB")
    assert said in both.text
    (one,) = cautions.association_cautions([STRONG], {}, "A")
    assert said not in one.text and "because B is not studied" in one.text
    widened = widen_intervals(effects(), [STRONG], TABLE, [A, AGE], {})
    assert of(widened, "A=yes") == (0, 0)


def test_an_interval_reaches_as_far_as_the_association_allows() -> None:
    widened = widen_intervals(effects(), [STRONG], TABLE, [A, B, AGE], {})
    both = 4 / 5 - 1 / 5  # how much more often those with the one have the other
    assert of(widened, "A=yes") == pytest.approx((-10 * both**2, 30 * both))
    assert of(widened, "A=yes", "upper") == pytest.approx((-20 * both**2, 60 * both))
    assert of(widened, "B=high") == pytest.approx((-30 * both**2, 10 * both))
    assert of(widened, "B=mid") == (0, 0)  # nobody has it: nothing is known of how it goes with A
    assert of(widened, "AGE=80") == (0, 0)


def test_an_opposite_effect_widens_to_one_side() -> None:
    widened = widen_intervals(effects(), [replace(STRONG, other="AGE")], TABLE, [A, B, AGE], {})
    assert of(widened, "A=yes") == pytest.approx(
        (-20 - 10, 0)
    )  # those with A are 20 years older: -20 HU
    assert of(widened, "AGE=80") == pytest.approx(
        (0, 40 + 10 * 40 / 20)
    )  # in 20 years all have A, in 40 twice that
    assert of(widened, "AGE=") == pytest.approx((0, 1 + 10 / 20))


def test_only_effects_in_doubt_are_widened() -> None:
    assert of(
        widen_intervals(effects(), [replace(STRONG, value=0.4)], TABLE, [A, B, AGE], {}), "A=yes"
    ) == (
        0,
        0,
    )
    assert of(
        widen_intervals(effects(), [replace(STRONG, cases=5)], TABLE, [A, B, AGE], {}), "A=yes"
    ) == (
        0,
        0,
    )
    later = widen_intervals(effects(), [STRONG], TABLE, [A, B, AGE], {"B": "outcome"})
    assert of(later, "A=yes") == (0, 0) and of(later, "B=high") == pytest.approx((-10.8, 6))
    assert of(widen_intervals(effects(), [STRONG], TABLE, [A, AGE], {}), "A=yes") == (
        0,
        0,
    )  # the effect of B was not studied


def test_without_refits_there_is_still_no_interval() -> None:
    none = pd.DataFrame(columns=["refit", "kind", "contrast", "outcome", "region", "effect"])
    widened = widen_intervals(
        intervals.add_refits(effects().drop(columns=["refit_low", "refit_high"]), none),
        [STRONG],
        TABLE,
        [A, B],
        {},
    )
    assert widened["refit_low"].isna().all() and widened["tied_high"].max() > 0


def ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Regress so that associated effects divide the same way in every sample.

    This is how a network behaves that stops early.
    """
    centred = x - x.mean(0)
    return np.linalg.solve(centred.T @ centred + 3 * np.eye(2), centred.T @ (y - y.mean()))


def test_where_associations_hide_the_truth_the_intervals_still_hold_it() -> None:
    rng, held, without = np.random.default_rng(0), 0, 0
    yes_no = [AtlasAttribute(c, "exposure", "category", ("no", "yes"), {}) for c in "AB"]
    for _ in range(20):
        a = rng.random(90) < 0.5
        x = np.column_stack([a, np.where(rng.random(90) < 0.8, a, rng.random(90) < 0.5)]).astype(
            float
        )
        hu = x @ (40, 10) + rng.normal(0, 10, 90)
        drawn = [ridge(x[i], hu[i]) for i in rng.integers(0, 90, (6, 90))]
        rows = pd.DataFrame(
            [
                {
                    "contrast": c,
                    "column": c,
                    "kind": "category",
                    "from": "no",
                    "to": "yes",
                    "outcome": "mean",
                    "region": "lungs",
                    "generated": hu_of,
                    **intervals.refit_interval(hu_of, [d[i] for d in drawn]),
                }
                for i, (c, hu_of) in enumerate(zip("AB", ridge(x, hu), strict=True))
            ]
        )
        table = pd.DataFrame(np.where(x > 0, "yes", "no"), columns=["A", "B"])
        held += holding(widen_intervals(rows, [STRONG], table, yes_no, {}))
        without += holding(rows)
    assert held >= 38 > without


def holding(intervals: pd.DataFrame) -> int:
    """Return how many of the two intervals contain the truth."""
    return int(((intervals["refit_low"] <= (40, 10)) & (intervals["refit_high"] >= (40, 10))).sum())
