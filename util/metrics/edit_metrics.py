"""How well real scans were edited: composition, reversibility, minimality, effectiveness (Monteiro
et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from util.metrics.fidelity import METRIC_COLUMNS

Volume = NDArray[np.floating]
Masks = Mapping[str, NDArray[np.bool_]]
SHOWN = ("lungs", "outside")


def edit_rows(
    case: str,
    real: Volume,
    where: Masks,
    cycles: Mapping[str, Volume],
    edited: Mapping[str, Volume],
    returned: Mapping[str, Volume],
) -> list[dict[str, str | float]]:
    """Rows of metrics.csv for one edited scan.

    Args:
        case: Its id.
        real: `(X, Y, Z)` HU, clipped to the model's window.
        where: Regions; of these `lungs` and `outside` are looked at.
        cycles: The scan inverted and made again without change, by the number of cycles: its
            distance is composition.
        edited: The scan with an attribute changed, by "COLUMN=VALUE": its signed change is the
            effect, and its absolute change outside the lungs should be small (minimality).
        returned: The edited scans edited back: their distance from the scan is reversibility.
    """
    rows: list[dict[str, str | float]] = []
    for region in (r for r in SHOWN if r in where):
        changes = [(f"composition_{n}_mae_hu", v, True) for n, v in cycles.items()]
        changes += [(f"edit_change_mean_hu {name}", v, False) for name, v in edited.items()]
        changes += [(f"edit_change_mae_hu {name}", v, True) for name, v in edited.items()]
        changes += [(f"reversibility_mae_hu {name}", v, True) for name, v in returned.items()]
        for name, volume, absolute in changes:
            change = (volume - real)[where[region]].astype(np.float64)
            value = float((np.abs(change) if absolute else change).mean())
            rows.append(
                dict(zip(METRIC_COLUMNS, (case, region, name, round(value, 4)), strict=True))
            )
    return rows
