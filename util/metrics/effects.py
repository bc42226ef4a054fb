"""Effects of a changed attribute: differences in HU by region."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

EFFECT_COLUMNS = (
    "case",
    "column",
    "from",
    "to",
    "region",
    "voxels",
    "mean_diff_hu",
    "sd_over_voxels_hu",
)


def effect_rows(
    difference: NDArray[np.floating],
    regions: Mapping[str, NDArray[np.bool_]],
    case: str,
    column: str,
    from_value: str,
    to_value: str,
) -> list[dict[str, str | float]]:
    """Return the rows of effects.csv for one pair of volumes.

    Args:
        difference: Volume of `to_value` minus volume of `from_value`, `(X, Y, Z)` in HU.
        regions: Masks by name, see `util.metrics.regions.chest_regions`.
        case: Id of the case.
        column: Column whose value was changed.
        from_value: Value of the first volume.
        to_value: Value of the second volume.
    """
    rows: list[dict[str, str | float]] = []
    for region, mask in regions.items():
        inside = difference[mask].astype(np.float64)
        cells = (
            case,
            column,
            from_value,
            to_value,
            region,
            len(inside),
            round(float(inside.mean()), 4),
            round(float(inside.std()), 4),
        )
        rows.append(dict(zip(EFFECT_COLUMNS, cells, strict=True)))
    return rows
