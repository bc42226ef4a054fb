"""Columns of the cohorts with effects of every kind, their groups, and their rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from data.phantom.kinds import effects
from data.phantom.kinds.effects import Effect
from data.phantom.rows import KEY, YES_NO, Row

AGE_RANGE = (40, 85)
MIDDLE_AGE = 62
U_HU = 43.0  # between the middle and an end
RARE_CASES = 4
SEXES = ("Female", "Male")

# A region of `util.metrics.regions`, or of the benchmark, and one of `util.metrics.texture`.
Measure = tuple[str, str]
MEAN = ("lungs", "mean_hu")
DETAIL = ("lungs", "detail_sd_hu")
HOLES = ("lungs", "share_below_-950_hu")
DENSE = ("lungs", "share_above_-700_hu")
TOP = ("lungs", "percentile_99.5_hu")
UPPER = ("upper", "mean_hu")
LOWER = ("lower", "mean_hu")
LEFT_MEAN = ("left_lung", "mean_hu")
RIGHT_MEAN = ("right_lung", "mean_hu")


def is_yes(column: str) -> Callable[[Row], float]:
    """Return the weight of a column: 1 for Yes, else 0."""
    return lambda row: float(row[column] == "Yes")


def _exposed_man(row: Row) -> float:
    return float(row["EXPOSURE"] == "Yes" and row["SEX"] == "Male")


def _u_shape(row: Row) -> float:
    """Return 0 at the middle age, 1 at both ends."""
    age = float(row["AGE"])
    end = AGE_RANGE[0] if age < MIDDLE_AGE else AGE_RANGE[1]
    return ((age - MIDDLE_AGE) / (end - MIDDLE_AGE)) ** 2


@dataclass(frozen=True)
class Contrast:
    """A change of one cell whose effect is measured.

    Attributes:
        start: Its value before.
        end: Its value after.
        setting: Other cells that are set before and after.
    """

    column: str
    start: str
    end: str
    setting: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Column and values for tables."""
        where = "".join(f", {name} {value}" for name, value in self.setting.items())
        values = "" if (self.start, self.end) == YES_NO else f" {self.start} to {self.end}"
        return f"{self.column}{values}{where}"


@dataclass(frozen=True)
class PlantedColumn:
    """A column and what it does.

    Attributes:
        name: Header of the table.
        effect: The full effect; None for a column without one.
        weight: Its factor for a row.
        values: Values, equally frequent; empty for an age.
        rare: `Yes` in `RARE_CASES` training cases alone.
        measures: Regions and statistics in which the effect shows, or must not.
    """

    name: str
    effect: Effect | None
    weight: Callable[[Row], float]
    values: tuple[str, ...] = YES_NO
    rare: bool = False
    measures: tuple[Measure, ...] = (MEAN, DETAIL)


@dataclass(frozen=True)
class Group:
    """Columns that share a cohort.

    Attributes:
        columns: The planted columns; control and null column come on top.
        contrasts: What is measured beside No to Yes of every Yes/No column.
        train_flags: Flags of train.py that the group needs.
    """

    columns: tuple[PlantedColumn, ...]
    contrasts: tuple[Contrast, ...] = ()
    train_flags: tuple[str, ...] = ()

    @property
    def all_columns(self) -> tuple[PlantedColumn, ...]:
        """All columns with those that every cohort has."""
        return (*self.columns, CONTROL, NULL)

    @property
    def all_contrasts(self) -> tuple[Contrast, ...]:
        """All changes that are measured."""
        special = {contrast.column for contrast in self.contrasts}
        plain = [
            Contrast(column.name, *YES_NO)
            for column in self.all_columns
            if column.values == YES_NO and column.name not in special
        ]
        return (*self.contrasts, *plain)


def _planted(
    name: str, effect: Effect | None, *measures: Measure, rare: bool = False
) -> PlantedColumn:
    return PlantedColumn(name, effect, is_yes(name), rare=rare, measures=measures or (MEAN, DETAIL))


CONTROL = _planted("SMOKER", effects.shift(28.0, "upper"), MEAN, UPPER, LOWER)
NULL = _planted("ALLERGY", None)

GROUPS: dict[str, Group] = {
    "texture": Group(
        (
            _planted("RETICULATION", effects.reticulation, DETAIL, MEAN),
            _planted("EMPHYSEMA", effects.emphysema_mean_kept, HOLES, MEAN, DETAIL),
        )
    ),
    "sparse": Group(
        (
            _planted("FIBROSIS", effects.fibrosis, MEAN, LOWER, UPPER, DENSE, DETAIL),
            _planted("EMPHYSEMA", effects.upper_emphysema, MEAN, UPPER, LOWER, HOLES),
            _planted("NODULES", effects.nodules, TOP, MEAN),
        ),
        # Fibrosis is as dense as nodules, and would hide them from the 99.5th percentile.
        (Contrast("NODULES", *YES_NO, {"FIBROSIS": "No"}),),
    ),
    "interaction": Group(
        (
            PlantedColumn("SEX", None, lambda row: 0.0, SEXES),
            PlantedColumn("EXPOSURE", effects.shift(38.0, "uniform"), _exposed_man),
            _planted("ASPIRATION", effects.right_lung(29.0), LEFT_MEAN, RIGHT_MEAN),
            PlantedColumn("AGE", effects.shift(U_HU, "uniform"), _u_shape, ()),
        ),
        (
            Contrast("EXPOSURE", *YES_NO, {"SEX": "Female"}),
            Contrast("EXPOSURE", *YES_NO, {"SEX": "Male"}),
            Contrast("AGE", str(AGE_RANGE[0]), str(MIDDLE_AGE)),
            Contrast("AGE", str(MIDDLE_AGE), str(AGE_RANGE[1])),
        ),
    ),
    "rare": Group(
        (
            _planted("DRUG TOXICITY", effects.lower_lungs(80.0), UPPER, LOWER, rare=True),
            _planted("PULMONARY HYPERTENSION", effects.vessel_pruning),
            _planted("LOBAR PNEUMONIA", effects.ground_glass, UPPER, LOWER, LEFT_MEAN, RIGHT_MEAN),
            _planted("BRONCHITIS", effects.wall_thickening, ("near_airways", "mean_hu"), MEAN, TOP),
        )
    ),
    "fat": Group(
        (_planted("OBESITY", effects.soft_tissue_fat, ("body", "mean_hu"), MEAN),),
        train_flags=("--text_region", "everywhere"),
    ),
}


def draw_rows(
    group: Group,
    cases: Sequence[str],
    rng: np.random.Generator,
    with_rare: bool = True,
    counts: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Row]:
    """Draw the rows of one split: all combinations of values equally often, in random order.

    The columns are therefore independent up to the remainder; ages and rare values are drawn apart.

    Args:
        group: The planted columns.
        cases: Ids.
        rng: Decides the order.
        with_rare: Whether rare values occur.
        counts: Number of cases with `Yes` of columns that are to be less frequent.
    """
    crossed = [column for column in group.all_columns if column.values and not column.rare]
    combinations = list(itertools.product(*(column.values for column in crossed)))
    rounds = -(-len(cases) // len(combinations))
    order = np.concatenate([rng.permutation(len(combinations)) for _ in range(rounds)])
    order = rng.permutation(order[: len(cases)])
    ages = rng.permutation(np.linspace(*AGE_RANGE, len(cases)).round().astype(int))
    rare = set(rng.permutation(len(cases))[: RARE_CASES * with_rare].tolist())
    rows: dict[str, Row] = {}
    for i, case in enumerate(cases):
        row = {KEY: case}
        for column in group.all_columns:
            if column.rare:
                row[column.name] = YES_NO[i in rare]
            elif not column.values:
                row[column.name] = str(ages[i])
        row |= dict(zip((c.name for c in crossed), combinations[order[i]], strict=True))
        rows[case] = row
    for name, count in counts.items():
        chosen = {cases[k] for k in rng.permutation(len(cases))[:count]}
        for case, row in rows.items():
            row[name] = YES_NO[case in chosen]
    return rows
