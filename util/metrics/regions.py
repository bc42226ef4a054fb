"""Regions of the chest from a label mask: lungs, sides, thirds, rim and core, airway, labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

AIR, TRACHEA = "air", "trachea"  # negative controls, see `data.negative_controls`
CONTROL_LABEL = "control_label_"
# Names for readers; files hold the keys.
REGION_NAMES = {
    "lungs": "both lungs",
    "left_lung": "left lung",
    "right_lung": "right lung",
    "upper": "upper thirds",
    "middle": "middle thirds",
    "lower": "lower thirds",
    "rim": "subpleural lung",
    "core": "central lung",
    "airway": "airways",
    "outside": "outside the lungs",
    AIR: "air outside the body",
    TRACHEA: "air in the trachea",
}
# Depths in the names of places, such as "right lower third, subpleural".
DEPTH_NAMES = {"rim": "subpleural", "core": "central"}
RIM_MM = 10.0  # depth of the subpleural rim; one voxel where voxels are larger


def bounding_box(mask: NDArray[Any], margin: Sequence[int] = (0, 0, 0)) -> tuple[slice, ...]:
    """Return the smallest box that holds a mask, wider by a margin within the volume.

    Args:
        mask: A mask that is not empty.
        margin: Voxels along each axis.
    """
    (box,) = ndimage.find_objects((mask != 0).astype(np.uint8))
    return tuple(
        slice(max(0, side.start - more), side.stop + more)
        for side, more in zip(box, margin, strict=True)
    )


def region_name(region: str) -> str:
    """Return the name of a region for readers; `label_3` becomes "label 3"."""
    return REGION_NAMES.get(region, region.replace("_", " "))


def control_region(label: int) -> str:
    """Return the region of a label that is a negative control."""
    return f"{CONTROL_LABEL}{label}"


def is_negative_control(region: str) -> bool:
    """Return whether disease of the lungs cannot change a region."""
    return region in (AIR, TRACHEA) or region.startswith(CONTROL_LABEL)


def chest_regions(
    labels: NDArray[np.integer],
    spacing: Sequence[float],
    lung_labels: Sequence[int] = (1, 2),
    airway_label: int = 3,
) -> dict[str, Mask]:
    """Return the regions that effects and metrics are measured in.

    Args:
        labels: Label mask `(X, Y, Z)` in RAS; the last axis runs from foot to head.
        spacing: Voxel size in mm.
        lung_labels: Labels of the left and the right lung, or of more parts, whose sides follow
            from where they lie; a single label tells no sides.

    Returns:
        Masks `(X, Y, Z)` by name; those without a voxel are left out. `lungs`, `left_lung`,
        `right_lung`, `upper`, `middle`, `lower` (thirds of the lungs' own extent), `rim` (at most
        `RIM_MM` from the pleura), `core` (the rest), `airway`, `outside` (neither lung nor
        airway), `label_<k>`.
    """
    lungs = np.isin(labels, lung_labels)
    airway = labels == airway_label
    masks: dict[str, Mask] = {"lungs": lungs}
    masks |= _lung_sides(labels, lungs, lung_labels)
    if lungs.any():
        masks |= _thirds(lungs)
        masks |= _split_by_depth(lungs, airway, spacing)
    masks["airway"] = airway
    masks["outside"] = ~lungs & ~airway
    for label in np.unique(labels):
        masks[f"label_{label}"] = labels == label
    return {name: mask for name, mask in masks.items() if mask.any()}


def _lung_sides(
    labels: NDArray[np.integer], lungs: Mask, lung_labels: Sequence[int]
) -> dict[str, Mask]:
    """Return both sides of the lungs, none of a single label, which may be both."""
    if len(lung_labels) < 2:
        return {}
    is_left = np.isin(labels, left_labels(labels, lung_labels))
    return {"left_lung": lungs & is_left, "right_lung": lungs & ~is_left}


def left_labels(labels: NDArray[np.integer], lung_labels: Sequence[int]) -> list[int]:
    """Return the labels of the left lung: the first of two, of more by where their centres lie."""
    if len(lung_labels) == 2 or not np.isin(labels, lung_labels).any():
        return [lung_labels[0]]
    middle = _centre(np.isin(labels, lung_labels))
    return [k for k in lung_labels if (labels == k).any() and _centre(labels == k) < middle]


def _centre(mask: Mask) -> float:
    """Return the middle of a mask's extent along the first axis, which runs from left to right."""
    extent = bounding_box(mask)[0]
    return (extent.start + extent.stop - 1) / 2


def label_regions(labels: NDArray[np.integer], target_labels: Sequence[int]) -> dict[str, Mask]:
    """Return the regions of a mask that is not of a chest, masks `(X, Y, Z)` by name.

    `lungs` is the union of the target labels, which tables call `labelled`; `outside` is the rest,
    and `label_<k>` each label. Those without a voxel are left out.
    """
    targets = np.isin(labels, target_labels)
    masks = {"lungs": targets, "outside": ~targets}
    for label in np.unique(labels):
        masks[f"label_{label}"] = labels == label
    return {name: mask for name, mask in masks.items() if mask.any()}


def label_names(regions: Iterable[str]) -> list[str]:
    """Return the regions that are labels other than the background, in their order."""
    return [name for name in regions if re.fullmatch(r"label_[1-9]\d*", name)]


def _thirds(lungs: Mask) -> dict[str, Mask]:
    extent = bounding_box(lungs)[2]
    edges = np.linspace(extent.start, extent.stop, 4)
    z = np.arange(lungs.shape[2]) + 0.5
    return {
        name: lungs & ((z >= low) & (z < high))
        for name, low, high in zip(("lower", "middle", "upper"), edges[:-1], edges[1:], strict=True)
    }


def _split_by_depth(lungs: Mask, airway: Mask, spacing: Sequence[float]) -> dict[str, Mask]:
    # Airways inside the lungs are not pleura; the padding makes the volume's border pleura.
    filled = np.pad(lungs | airway, 1)
    depth = ndimage.distance_transform_edt(filled, sampling=spacing)[1:-1, 1:-1, 1:-1]
    rim = lungs & (depth <= max(RIM_MM, *spacing))
    return {"rim": rim, "core": lungs & ~rim}


def body_mask(hu: NDArray[np.floating]) -> Mask:
    """Return the patient's voxels, without table and surrounding air.

    Voxels above -400 HU are opened; the largest part is filled slice by slice.
    """
    dense = ndimage.binary_opening(np.pad(hu > -400.0, ((1, 1), (1, 1), (0, 0))))
    parts, count = ndimage.label(dense)
    if count == 0:
        return np.ones(hu.shape, bool)
    largest = parts == 1 + np.argmax(ndimage.sum_labels(dense, parts, range(1, count + 1)))
    filled = np.stack([ndimage.binary_fill_holes(s) for s in np.moveaxis(largest, 2, 0)], 2)
    return filled[1:-1, 1:-1]
