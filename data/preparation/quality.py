"""What is measured of a prepared case, and what of it looks wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from data.geometry import Volume, voxel_sizes
from data.preparation.lungs import AIRWAY, LEFT, RIGHT
from data.preparation.pixels import HU

LUNG_LITRES = (
    0.4,
    5.0,
)  # one lung of an adult, from a shrunken fibrotic to a large emphysematous one
BALANCE = (0.5, 2.0)  # right over left
AIRWAY_ML = (5.0, 150.0)
LUNG_MEDIAN = (-960.0, -400.0)
MAIN_PART = 0.95  # of a lung in one piece
EDGE_SHARE = 0.01  # of a lung's voxels on a side of the volume
COARSE_MM = 5.0
PERCENTILES = (1, 50, 99)


def measure(scan: Volume, mask: NDArray[np.uint8]) -> dict[str, Any]:
    """Volumes, densities and shape of a case, for the report.

    Args:
        scan: RAS, int16 HU.
        mask: Labels on the same grid.

    Returns:
        Plain values; litres for lungs, ml for the airway, HU; `parts` is the share of each lung in
        its largest part.
    """
    spacing = voxel_sizes(scan.affine)
    voxel_ml = float(np.prod(spacing)) / 1000
    lungs = (mask == LEFT) | (mask == RIGHT)
    found: dict[str, Any] = {
        "shape": [int(n) for n in scan.shape],
        "spacing_mm": [round(float(s), 4) for s in spacing],
        "extent_mm": [round(float(n * s), 1) for n, s in zip(scan.shape, spacing, strict=True)],
        "labels": [int(v) for v in np.flatnonzero(_counts(mask, 255, 0))],
        **{f"hu_p{p}": v for p, v in _percentiles(scan.array, None).items()},
        "left_l": (mask == LEFT).sum() * voxel_ml / 1000,
        "right_l": (mask == RIGHT).sum() * voxel_ml / 1000,
        "airway_ml": (mask == AIRWAY).sum() * voxel_ml,
        "lung_hu_median": _percentiles(scan.array, lungs).get(50),
    }
    found["parts"] = [_main_part(mask == side) for side in (LEFT, RIGHT)]
    found["side_edges"], found["end_edges"] = _edges(lungs)
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}


def _counts(
    array: NDArray[np.integer], high: int, low: int, where: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    counts = np.zeros(high - low + 1, np.int64)
    for i, plane in enumerate(array):  # plane by plane: a whole scan as int64 takes gigabytes
        values = plane if where is None else plane[where[i]]
        counts += np.bincount(values.astype(np.int64).ravel() - low, minlength=len(counts))
    return counts


def _percentiles(hu: NDArray[np.int16], where: NDArray[np.bool_] | None) -> dict[int, float]:
    share = np.cumsum(_counts(hu, HU[1], HU[0], where))
    if not share[-1]:
        return {}
    return {p: float(HU[0] + np.searchsorted(share, share[-1] * p / 100)) for p in PERCENTILES}


def _main_part(side: NDArray[np.bool_]) -> float:
    small = side[::2, ::2, ::2] if side.size > 2**24 else side
    parts = label(small, connectivity=3)
    sizes = np.bincount(parts.ravel())[1:]
    return float(sizes.max() / sizes.sum()) if sizes.size else 0.0


def _edges(lungs: NDArray[np.bool_]) -> tuple[float, float]:
    """Share of the lungs' voxels on the sides of the volume, and on its first and last slices."""
    total = max(1, int(lungs.sum()))
    sides = sum(int(lungs[i].sum()) + int(lungs[:, i].sum()) for i in (0, -1))
    return sides / total, sum(int(lungs[:, :, i].sum()) for i in (0, -1)) / total


def warnings(found: dict[str, Any], lungs_labelled: bool = True) -> list[str]:
    """What a person should look at. `lungs_labelled`: labels 1, 2 and 3 mean left lung, right lung
    and airway.
    """
    said = []
    if max(found["spacing_mm"]) >= COARSE_MM:
        said.append(f"voxels of up to {max(found['spacing_mm']):g} mm: small structures are lost")
    if not lungs_labelled:
        return said
    left, right = found["left_l"], found["right_l"]
    for name, litres in (("left", left), ("right", right)):
        if not litres:
            said.append(f"there is no {name} lung")
        elif not LUNG_LITRES[0] <= litres <= LUNG_LITRES[1]:
            said.append(
                f"the {name} lung has {litres:.2f} l, expected are {LUNG_LITRES[0]:g} to "
                f"{LUNG_LITRES[1]:g}"
            )
    if left and right and not BALANCE[0] <= right / left <= BALANCE[1]:
        said.append(
            f"the right lung has {right / left:.2f} times the left one's volume: a side may be "
            "missing or mixed up"
        )
    for name, share in zip(("left", "right"), found["parts"], strict=True):
        if 0 < share < MAIN_PART:
            said.append(f"{1 - share:.0%} of the {name} lung lie in separate parts")
    if found["side_edges"] > EDGE_SHARE:
        said.append(
            "the lungs reach the sides of the volume: cut off by the field of view, or leaked"
        )
    if found["end_edges"] > EDGE_SHARE:
        said.append("the lungs reach the first or last slice: not wholly in the scan")
    if not AIRWAY_ML[0] <= found["airway_ml"] <= AIRWAY_ML[1]:
        said.append(
            f"the airway has {found['airway_ml']:.0f} ml, expected are {AIRWAY_ML[0]:g} to "
            f"{AIRWAY_ML[1]:g}: not found, or leaked into the lungs"
        )
    if (median := found["lung_hu_median"]) is not None and not LUNG_MEDIAN[
        0
    ] <= median <= LUNG_MEDIAN[1]:
        said.append(
            f"the lungs' median is {median:.0f} HU, expected are {LUNG_MEDIAN[0]:g} to "
            f"{LUNG_MEDIAN[1]:g}"
        )
    return said
