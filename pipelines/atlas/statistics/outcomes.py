"""Outcomes of the atlas: the numbers that describe a region of one volume.

Each volume is measured before volumes are compared: a contrast of the 95th percentile is a
difference of percentiles, not a percentile of differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

# Values of one volume by (outcome, region).
Values = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Outcome:
    """A number that describes a region.

    Attributes:
        name: Its name in all tables.
        label: Its name for readers.
        statistic: Its name in `util.metrics.texture.STATISTICS`.
        unit: HU, or points (percentage points of the region's voxels).
        scale: The statistic times this is in that unit.
        negligible: A real interval within minus and plus this shows that there is no effect.
        more: Words for a rise; "" for the mean, whose change needs none.
        less: Words for a fall.
    """

    name: str
    label: str
    statistic: str
    unit: str = "HU"
    scale: float = 1.0
    negligible: float = 10.0
    more: str = ""
    less: str = ""

    def words(self, change: float) -> str:
        """Return words for a change of this sign."""
        return self.more if change >= 0 else self.less


def _share(name: str, side: str, hu: int) -> Outcome:
    place = f"{side} {hu} HU".replace("-", "\N{MINUS SIGN}")
    return Outcome(
        name,
        f"share {place}",
        f"share_{side}_{hu}_hu",
        unit="points",
        scale=100.0,
        negligible=2.0,
        more=f"more of the lung lies {place}",
        less=f"less of the lung lies {place}",
    )


def _percentile(number: str, negligible: float, tissue: str) -> Outcome:
    name = f"the {number}th percentile ({tissue})"
    return Outcome(
        f"percentile_{number}",
        f"{number}th percentile",
        f"percentile_{number}_hu",
        negligible=negligible,
        more=f"{name} is denser",
        less=f"{name} is less dense",
    )


MEAN = "mean"
# Outcomes that have a value in every voxel, and so a map.
DETAIL_SD, LOW_SHARE, HIGH_SHARE = "detail_sd", "share_below_950", "share_above_700"
# Measured with --without_vessels; a variant of the mean that no verdict rests on.
MEAN_WITHOUT_VESSELS = "mean_without_vessels"
OUTCOMES: dict[str, Outcome] = {
    outcome.name: outcome
    for outcome in (
        Outcome(MEAN, "mean", "mean_hu"),
        Outcome(
            DETAIL_SD,
            "detail SD",
            "detail_sd_hu",
            negligible=5.0,
            more="texture is coarser (SD of the detail)",
            less="texture is smoother (SD of the detail)",
        ),
        _percentile("5", 10.0, "the least dense tissue"),
        _percentile("95", 20.0, "dense tissue"),
        _percentile("99.5", 40.0, "the densest tissue"),
        _share("share_below_950", "below", -950),
        _share("share_below_910", "below", -910),
        _share("share_above_700", "above", -700),
    )
}
ALL_OUTCOMES = OUTCOMES | {
    MEAN_WITHOUT_VESSELS: Outcome(MEAN_WITHOUT_VESSELS, "mean without vessels", "mean_hu")
}
# What a change of image noise or of sharpness alone moves, too.
TEXTURE_OUTCOMES = tuple(name for name in OUTCOMES if name != MEAN)


def outcome_frame(values: Mapping[str, Values], cases: Sequence[str] | None = None) -> pd.DataFrame:
    """Return one row per case and one column per (outcome, region).

    Args:
        values: Values by case.
        cases: The rows and their order; default: the cases of `values`.
    """
    names = ["outcome", "region"]
    index = pd.Index(list(values) if cases is None else list(cases), dtype=object)
    keys = list(dict.fromkeys(key for one in values.values() for key in one))
    columns = (
        pd.MultiIndex.from_tuples(keys, names=names)
        if keys
        else pd.MultiIndex.from_arrays([[], []], names=names)
    )
    rows = [[values.get(case, {}).get(key) for key in keys] for case in index]
    return pd.DataFrame(rows, index=index, columns=columns, dtype=float)
