"""Effects of a changed attribute: differences in HU, and changes of texture, by region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from util.metrics.texture import STATISTICS

# Change of each statistic of a region; that of the mean is `mean_diff_hu`.
CHANGE_COLUMNS = tuple(f"change_{name}" for name in STATISTICS if name != "mean_hu")
EFFECT_COLUMNS = (
    "case",
    "column",
    "from",
    "to",
    "region",
    "voxels",
    "mean_diff_hu",
    "sd_over_voxels_hu",
    "draws",
    "mc_error_hu",
    *CHANGE_COLUMNS,
)

Volume = NDArray[np.floating]
Masks = Mapping[str, NDArray[np.bool_]]
# Values by name, by region.
RegionValues = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Contrast:
    """What is compared: `case` with `to_value` minus `case` with `from_value`, both of `column`."""

    case: str
    column: str
    from_value: str
    to_value: str


def region_effects(
    difference: Volume, before: RegionValues, after: RegionValues, regions: Masks
) -> dict[str, dict[str, float]]:
    """Return the effect in every region for one noise, by column of effects.csv.

    Args:
        difference: Second volume minus first volume, `(X, Y, Z)` in HU.
        before: Statistics of the first volume, see `util.metrics.texture.statistics_by_region`.
        after: The same of the second volume.
        regions: Masks by name, see `util.metrics.regions.chest_regions`.
    """
    effects = {}
    for region, mask in regions.items():
        inside = difference[mask].astype(np.float64)
        values = {"mean_diff_hu": inside.mean(), "sd_over_voxels_hu": inside.std()}
        for name, column in zip(_changed_statistics(), CHANGE_COLUMNS, strict=True):
            values[column] = after[region][name] - before[region][name]
        effects[region] = {column: float(value) for column, value in values.items()}
    return effects


def effect_rows(
    contrast: Contrast, draws: Sequence[RegionValues], regions: Masks
) -> list[dict[str, str | float]]:
    """Return the rows of effects.csv for one contrast: means over draws of the noise.

    Args:
        contrast: What is compared.
        draws: Result of `region_effects` for each noise.
        regions: Masks by name.
    """
    rows: list[dict[str, str | float]] = []
    for region, mask in regions.items():
        row: dict[str, str | float] = dict.fromkeys(EFFECT_COLUMNS, "")
        row["case"] = contrast.case
        row["column"] = contrast.column
        row["from"] = contrast.from_value
        row["to"] = contrast.to_value
        row["region"] = region
        row["voxels"] = int(mask.sum())
        row["draws"] = len(draws)
        for column in draws[0][region]:
            row[column] = round(float(np.mean([draw[region][column] for draw in draws])), 5)
        if len(draws) > 1:  # one draw has no error that could be estimated
            means = [draw[region]["mean_diff_hu"] for draw in draws]
            row["mc_error_hu"] = round(float(np.std(means, ddof=1)) / len(draws) ** 0.5, 5)
        rows.append(row)
    return rows


def _changed_statistics() -> list[str]:
    return [column.removeprefix("change_") for column in CHANGE_COLUMNS]
