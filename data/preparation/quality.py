"""Measurements of a prepared case, and warnings of what looks wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from data.geometry import Volume
from data.preparation.lungs import AIRWAY, LEFT, RIGHT
from data.preparation.pixels import HU_RANGE

# One lung of an adult, from a shrunken fibrotic to a large emphysematous one.
EXPECTED_LUNG_LITRES = (0.4, 5.0)
EXPECTED_RIGHT_TO_LEFT = (0.5, 2.0)  # volumes
EXPECTED_AIRWAY_ML = (5.0, 150.0)
EXPECTED_MEDIAN_HU = (-960.0, -400.0)  # of the lungs
MIN_MAIN_PART = 0.95  # share of a lung in its largest part
MAX_EDGE_SHARE = 0.01  # share of the lungs' voxels at the edges of the volume
MAX_SPACING_MM = 5.0
MAX_CONNECTED_SIZE = 2**24  # voxels; the parts of larger volumes are counted on every other voxel
PERCENTILES = (1, 50, 99)
LUNG_MEASURES = ("left_l", "right_l", "airway_ml", "lung_hu_median")


def measure_labels(scan: Volume, mask: NDArray[np.uint8]) -> dict[str, Any]:
    """Measure the labels and intensities of a case that is not chest CT, for the report.

    Args:
        scan: RAS, in its own intensities.
        mask: Labels on the same grid.

    Returns:
        Plain values as those of `measure_case`, with `label_ml`, the volume of each label in ml.
    """
    values = np.percentile(scan.array, PERCENTILES)
    return {
        **_geometry(scan, mask),
        **{f"p{p}": round(float(value), 3) for p, value in zip(PERCENTILES, values, strict=True)},
        "label_ml": _label_ml(scan, mask),
        "lung_hu_median": None,
    }


def _label_ml(scan: Volume, mask: NDArray[np.uint8]) -> dict[str, float]:
    counts = _counts(mask, (0, 255))
    voxel_ml = float(np.prod(scan.spacing)) / 1000
    return {str(k): round(counts[k] * voxel_ml, 3) for k in np.flatnonzero(counts) if k}


def _geometry(scan: Volume, mask: NDArray[np.uint8]) -> dict[str, Any]:
    spacing = scan.spacing
    return {
        "shape": [int(n) for n in scan.shape],
        "spacing_mm": [round(float(size), 4) for size in spacing],
        "extent_mm": [round(float(extent), 1) for extent in np.multiply(scan.shape, spacing)],
        "labels": [int(value) for value in np.flatnonzero(_counts(mask, (0, 255)))],
    }


def measure_case(
    scan: Volume, mask: NDArray[np.uint8], lungs_labelled: bool = True
) -> dict[str, Any]:
    """Measure volumes, densities and shape of a case, for the report.

    Args:
        scan: RAS, int16 HU.
        mask: Labels on the same grid.
        lungs_labelled: Labels 1, 2 and 3 mean left lung, right lung and airway; where they do not,
            lungs and airway are None, and `label_ml` is the volume of each label in ml.

    Returns:
        Plain values; litres for lungs, ml for the airway, HU; `parts` is the share of each lung in
        its largest part.
    """
    if not lungs_labelled:
        return {
            **_geometry(scan, mask),
            **{f"hu_p{p}": value for p, value in _percentiles(scan.array).items()},
            **dict.fromkeys(LUNG_MEASURES),
            "label_ml": _label_ml(scan, mask),
        }
    voxel_ml = float(np.prod(scan.spacing)) / 1000
    lungs = (mask == LEFT) | (mask == RIGHT)
    side_edges, end_edges = _edge_shares(lungs)
    measures: dict[str, Any] = {
        **_geometry(scan, mask),
        **{f"hu_p{p}": value for p, value in _percentiles(scan.array).items()},
        "left_l": (mask == LEFT).sum() * voxel_ml / 1000,
        "right_l": (mask == RIGHT).sum() * voxel_ml / 1000,
        "airway_ml": (mask == AIRWAY).sum() * voxel_ml,
        "lung_hu_median": _percentiles(scan.array, lungs).get(50),
        "parts": [_main_part_share(mask == side) for side in (LEFT, RIGHT)],
        "side_edges": side_edges,
        "end_edges": end_edges,
    }
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in measures.items()}


def _counts(
    array: NDArray[np.integer],
    value_range: tuple[int, int],
    where: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Return how often each value of a range occurs."""
    low, high = value_range
    counts = np.zeros(high - low + 1, np.int64)
    for i, plane in enumerate(array):  # plane by plane: a whole scan as int64 takes gigabytes
        values = plane if where is None else plane[where[i]]
        counts += np.bincount(values.astype(np.int64).ravel() - low, minlength=len(counts))
    return counts


def _percentiles(hu: NDArray[np.int16], where: NDArray[np.bool_] | None = None) -> dict[int, float]:
    cumulated = np.cumsum(_counts(hu, HU_RANGE, where))
    if not cumulated[-1]:
        return {}
    ranks = [cumulated[-1] * p / 100 for p in PERCENTILES]
    values = HU_RANGE[0] + np.searchsorted(cumulated, ranks)
    return dict(zip(PERCENTILES, values.astype(float).tolist(), strict=True))


def _main_part_share(lung: NDArray[np.bool_]) -> float:
    small = lung[::2, ::2, ::2] if lung.size > MAX_CONNECTED_SIZE else lung
    sizes = np.bincount(label(small, connectivity=3).ravel())[1:]
    return float(sizes.max() / sizes.sum()) if sizes.size else 0.0


def _edge_shares(lungs: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the share of voxels on the sides of the volume, and on its first and last slices."""
    total = max(1, int(lungs.sum()))
    sides = sum(int(lungs[i].sum()) + int(lungs[:, i].sum()) for i in (0, -1))
    ends = sum(int(lungs[:, :, i].sum()) for i in (0, -1))
    return sides / total, ends / total


def quality_warnings(measures: dict[str, Any], lungs_labelled: bool = True) -> list[str]:
    """Return what a person should look at.

    Args:
        measures: Measurements of `measure_case`.
        lungs_labelled: Labels 1, 2 and 3 mean left lung, right lung and airway.
    """
    warnings = []
    if max(measures["spacing_mm"]) >= MAX_SPACING_MM:
        warnings.append(
            f"voxels of up to {max(measures['spacing_mm']):g} mm: small structures are lost"
        )
    if not lungs_labelled:
        return warnings
    warnings += _volume_warnings(measures["left_l"], measures["right_l"])
    for name, share in zip(("left", "right"), measures["parts"], strict=True):
        if 0 < share < MIN_MAIN_PART:
            warnings.append(f"{1 - share:.0%} of the {name} lung lie in separate parts")
    if measures["side_edges"] > MAX_EDGE_SHARE:
        warnings.append(
            "the lungs reach the sides of the volume: cut off by the field of view, or leaked"
        )
    if measures["end_edges"] > MAX_EDGE_SHARE:
        warnings.append("the lungs reach the first or last slice: not wholly in the scan")
    if not _is_within(measures["airway_ml"], EXPECTED_AIRWAY_ML):
        warnings.append(
            f"the airway has {measures['airway_ml']:.0f} ml, expected are "
            f"{_range_text(EXPECTED_AIRWAY_ML)}: not found, or leaked into the lungs"
        )
    median = measures["lung_hu_median"]
    if median is not None and not _is_within(median, EXPECTED_MEDIAN_HU):
        warnings.append(
            f"the lungs' median is {median:.0f} HU, expected are {_range_text(EXPECTED_MEDIAN_HU)}"
        )
    return warnings


def _volume_warnings(left: float, right: float) -> list[str]:
    """Return warnings of the lungs' volumes in litres."""
    warnings = []
    for name, litres in (("left", left), ("right", right)):
        if not litres:
            warnings.append(f"there is no {name} lung")
        elif not _is_within(litres, EXPECTED_LUNG_LITRES):
            warnings.append(
                f"the {name} lung has {litres:.2f} l, expected are "
                f"{_range_text(EXPECTED_LUNG_LITRES)}"
            )
    if left and right and not _is_within(right / left, EXPECTED_RIGHT_TO_LEFT):
        warnings.append(
            f"the right lung has {right / left:.2f} times the left one's volume: a side may be "
            "missing or mixed up"
        )
    return warnings


def _is_within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]


def _range_text(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:g} to {bounds[1]:g}"
