"""Clinical rows of the phantom cohort: consistency, and strength of the confounding."""

from __future__ import annotations

import pytest
from scipy.stats import contingency

from data.phantom.rows import LEVELS, draw_rows


def test_rows_are_possible() -> None:
    rows = draw_rows([str(i) for i in range(300)], 4, 0.0).values()
    for row in rows:
        assert bool(row["PACK-YEARS"]) == (row["SMOKING HISTORY"] != "Never smoker")
        assert bool(row["SMOKING HISTORY STOP DATE"]) == (row["SMOKING HISTORY"] == "Ex smoker")
        has_ctd = row["DIAGNOSIS"] == "CTD-ILD"
        assert bool(row["TYPE CTD"]) == bool(row["CTD DIAG DATE"]) == has_ctd
        assert bool(row["TYPE CTD OTHER"]) == (row["TYPE CTD"] == "Other")
        assert 40 <= int(row["AGE"]) <= 90
        assert all(not row[c] or row[c] in values for c, values in LEVELS.items())


@pytest.mark.parametrize(
    ("confounding", "low", "high"), [(0.0, 0.0, 0.15), (0.5, 0.35, 0.65), (1.0, 0.99, 1.0)]
)
def test_confounding_couples_smoking_and_diagnosis(
    confounding: float, low: float, high: float
) -> None:
    rows = draw_rows([str(i) for i in range(300)], 1, confounding).values()
    pairs = [(r["SMOKING HISTORY"], r["DIAGNOSIS"]) for r in rows]
    counts = contingency.crosstab(*zip(*pairs, strict=True)).count
    assert low <= contingency.association(counts, method="cramer") <= high
