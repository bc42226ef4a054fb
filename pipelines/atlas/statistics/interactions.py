"""Interactions that the generator shows: its effect of one attribute at two values of another.

The real scans' tests are in `additivity`. Here the generated effects of the patients are compared
by their demographic columns, so that a reader sees whether the network learned what the scans show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipelines.atlas.statistics.additivity import INTERACTION
from pipelines.atlas.statistics.contrasts import Contrast
from pipelines.atlas.statistics.intervals import permuted_null, refit_interval
from pipelines.atlas.statistics.regression import MAIN_PLACE

MIN_GROUP = 3  # patients with a value, or with a number
PLACE = ("outcome", "region")
GENERATED_COLUMNS = (
    "generated_cases",
    "generated_first",
    "generated_second",
    "generated_difference",
    "generated_low",
    "generated_high",
    "generated_permuted_p",
)

Row = dict[str, Any]


def add_generated(
    tests: pd.DataFrame,
    effects: Sequence[Mapping[str, Any]],
    refits: Sequence[Mapping[str, Any]],
    rows: pd.DataFrame,
    contrasts: Sequence[Contrast],
) -> pd.DataFrame:
    """Return additivity.csv with the generator's own interactions beside the real scans' tests.

    The contrast and the two values are those that the real scans were told at; where they could
    not tell, the contrast that differs most in the generator, at its patients' values.

    Args:
        tests: Table of `additivity.additivity_tests`.
        effects: Rows of effects_by_case.csv.
        refits: Rows of the refits' effects by case, with `refit` and `kind`.
        rows: Formatted rows of the generated cases, indexed by case.
    """
    by_case = _in_lungs(effects)
    by_refit = _in_lungs(refits)
    added = []
    for test in tests.to_dict("records"):
        shown: Row = {}
        if test["test"] == INTERACTION and test["other"] in rows:
            known = pd.notna(test["contrast"])
            of_column = [
                c.id
                for c in contrasts
                if c.kind != "slope"
                and (c.id == test["contrast"] if known else c.column == test["column"])
            ]
            points = (test["at_first"], test["at_second"]) if known else None
            shown = _shown(of_column, by_case, by_refit, rows[str(test["other"])], points)
        added.append({str(name): value for name, value in test.items()} | shown)
    return pd.DataFrame(added).reindex(columns=[*tests.columns, *GENERATED_COLUMNS])


def _in_lungs(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the effects on the mean of both lungs."""
    frame = pd.DataFrame(rows, columns=["refit", "kind", "contrast", "case", *PLACE, "effect"])
    return frame[(frame["outcome"] == MAIN_PLACE[0]) & (frame["region"] == MAIN_PLACE[1])]


def _shown(
    contrasts: Sequence[str],
    by_case: pd.DataFrame,
    by_refit: pd.DataFrame,
    other: pd.Series,
    points: tuple[str, str] | None,
) -> Row:
    """Return the interaction of the contrast that differs most; nothing where none can be told."""
    best: Row = {}
    for contrast in contrasts:
        effects = by_case[by_case["contrast"] == contrast].set_index("case")["effect"]
        values = other.reindex(effects.index).fillna("")
        at = points or _common_points(values[values != ""])
        pair = at and effects_at(effects, values, at)
        if not at or not pair:
            continue
        difference = pair[1] - pair[0]
        if best and abs(difference) <= abs(best["generated_difference"]):
            continue
        replicates: dict[str, list[float]] = {"resampled": [], "permuted": []}
        of_contrast = by_refit[by_refit["contrast"] == contrast]
        for (_, kind), part in of_contrast.groupby(["refit", "kind"], sort=False):
            refitted = effects_at(part.set_index("case")["effect"], values, at)
            if refitted and kind in replicates:
                replicates[str(kind)].append(refitted[1] - refitted[0])
        interval = refit_interval(difference, replicates["resampled"])
        null = permuted_null(difference, replicates["permuted"])
        best = {
            "contrast": contrast,
            "at_first": at[0],
            "at_second": at[1],
            "generated_cases": int((values != "").sum()),
            "generated_first": pair[0],
            "generated_second": pair[1],
            "generated_difference": difference,
            "generated_low": interval.get("refit_low"),
            "generated_high": interval.get("refit_high"),
            "generated_permuted_p": null.get("permuted_p"),
        }
    return best


def _common_points(values: pd.Series) -> tuple[str, str] | None:
    """Return the outer quantiles of numbers, or the two most frequent values."""
    numbers = pd.to_numeric(values, errors="coerce")
    if len(values) and numbers.notna().all() and numbers.nunique() > 2:
        first, second = (f"{value:g}" for value in numbers.quantile([0.1, 0.9]))
        return first, second
    common = values.value_counts().index[:2]
    return (str(common[0]), str(common[1])) if len(common) == 2 else None


def effects_at(
    effects: pd.Series, values: pd.Series, points: tuple[str, str]
) -> tuple[float, float] | None:
    """Return a generated effect at two values of another column; None with too few patients.

    Args:
        effects: Effect by case, HU.
        values: The other column by case, "" where it is not known.
        points: Two of its values. Of a number the effect there is that of a straight line through
            all patients.
    """
    values = values.reindex(effects.index).fillna("")
    known = values != ""
    numbers = pd.to_numeric(values[known], errors="coerce")
    if numbers.notna().all() and numbers.nunique() > 2:
        if len(numbers) < MIN_GROUP:
            return None
        slope, start = np.polyfit(numbers.astype(float), effects[known].astype(float), 1)
        first, second = (float(start + slope * float(point)) for point in points)
        return first, second
    groups = [effects[(values == point).to_numpy()] for point in points]
    if min(map(len, groups)) < MIN_GROUP:
        return None
    return float(groups[0].mean()), float(groups[1].mean())
