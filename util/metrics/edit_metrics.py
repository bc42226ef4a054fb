"""Metrics of edited real scans, and of generated volumes that are changed back.

Composition, reversibility, minimality and effectiveness as defined by Monteiro et al. 2023.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from util.metrics.fidelity import METRIC_COLUMNS

Volume = NDArray[np.floating]
Masks = Mapping[str, NDArray[np.bool_]]
Row = dict[str, str | float]
REGIONS = ("lungs", "outside")


def edit_rows(
    case: str,
    real: Volume,
    masks: Masks,
    cycles: Mapping[str, Volume],
    edited: Mapping[str, Volume],
    returned: Mapping[str, Volume],
) -> list[Row]:
    """Return the rows of metrics.csv for one edited scan.

    Args:
        case: Id of the case.
        real: The scan, `(X, Y, Z)` in HU, clipped to the model's window.
        masks: Masks of the regions; `lungs` and `outside` are used.
        cycles: The scan inverted and regenerated without change, by the number of cycles. Its
            distance from the scan is the composition.
        edited: The scan with one attribute changed, by "COLUMN=VALUE". Its signed change is the
            effect; its absolute change outside the lungs should be small (minimality).
        returned: The edited scans edited back. Their distance from the scan is the reversibility.
    """
    rows: list[Row] = []
    for region in REGIONS:
        if region not in masks:
            continue
        changes = [(f"composition_{n}_mae_hu", v, True) for n, v in cycles.items()]
        changes += [(f"edit_change_mean_hu {name}", v, False) for name, v in edited.items()]
        changes += [(f"edit_change_mae_hu {name}", v, True) for name, v in edited.items()]
        changes += [(f"reversibility_mae_hu {name}", v, True) for name, v in returned.items()]
        for name, volume, absolute in changes:
            change = (volume - real)[masks[region]].astype(np.float64)
            value = float((np.abs(change) if absolute else change).mean())
            rows.append(_row(case, region, name, value))
    return rows


def reversal_rows(
    case: str, factual: Volume, masks: Masks, returned: Mapping[str, Volume]
) -> list[Row]:
    """Return the rows of metrics.csv for one generated volume that is changed and changed back.

    Args:
        case: Id of the case.
        factual: The volume of the factual row, `(X, Y, Z)` in HU.
        masks: Masks of the regions; `lungs` and `outside` are used.
        returned: The volume of the row changed to "COLUMN=VALUE" and back, by that name.
    """
    rows: list[Row] = []
    for region in REGIONS:
        for name, volume in returned.items() if region in masks else ():
            change = np.abs((volume - factual)[masks[region]].astype(np.float64))
            rows.append(_row(case, region, f"reversibility_mae_hu {name}", float(change.mean())))
    return rows


def _row(case: str, region: str, metric: str, value: float) -> Row:
    return dict(zip(METRIC_COLUMNS, (case, region, metric, round(value, 4)), strict=True))
