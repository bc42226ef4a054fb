"""Regions of the chest from a label mask: lungs, sides, thirds, core and rim, airway, outside,
every label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

# the rim is what lies at most this far from the pleura (or one voxel, where voxels are larger)
RIM_MM = 10.0


def regions(
    labels: NDArray[np.integer],
    spacing: Sequence[float],
    lung_labels: Sequence[int] = (1, 2),
    airway_label: int = 3,
) -> dict[str, Mask]:
    """The regions that effects and metrics are measured in; those without a voxel are left out.

    Args:
        labels: `(X, Y, Z)` in RAS: the last axis runs from foot to head.
        spacing: Voxel size in mm.
        lung_labels: Labels of the left and the right lung.
        airway_label: Label of the airways.

    Returns:
        `lungs`, `left_lung`, `right_lung`, `upper`, `middle`, `lower` (thirds of the lungs' own
        extent), `rim` (at most `RIM_MM` from the pleura), `core` (the rest), `airway`, `outside`
        (neither lung nor airway), `label_<k>`; each `(X, Y, Z)` bool.
    """
    lungs = np.isin(labels, lung_labels)
    airway = labels == airway_label
    found: dict[str, Mask] = {"lungs": lungs}
    found |= {
        side: labels == k for side, k in zip(("left_lung", "right_lung"), lung_labels, strict=False)
    }
    if lungs.any():
        found |= _thirds(lungs)
        found |= _rim_and_core(lungs, airway, spacing)
    found |= {"airway": airway, "outside": ~lungs & ~airway}
    found |= {f"label_{k}": labels == k for k in np.unique(labels)}
    return {name: mask for name, mask in found.items() if mask.any()}


def _thirds(lungs: Mask) -> dict[str, Mask]:
    heights = np.flatnonzero(lungs.any((0, 1)))
    edges = np.linspace(heights[0], heights[-1] + 1, 4)
    z = np.arange(lungs.shape[2]) + 0.5
    return {
        name: lungs & ((z >= low) & (z < high))
        for name, low, high in zip(("lower", "middle", "upper"), edges[:-1], edges[1:], strict=True)
    }


def _rim_and_core(lungs: Mask, airway: Mask, spacing: Sequence[float]) -> dict[str, Mask]:
    # Airways inside the lungs are no pleura; padding gives lungs cut by the border of the volume a
    # pleura there.
    filled = np.pad(lungs | airway, 1)
    depth = ndimage.distance_transform_edt(filled, sampling=spacing)[1:-1, 1:-1, 1:-1]
    rim = lungs & (depth <= max(RIM_MM, *spacing))
    return {"rim": rim, "core": lungs & ~rim}


def body_mask(hu: NDArray[np.floating]) -> Mask:
    """The patient without table and surrounding air: above -400 HU, opened, largest part, filled
    slice by slice.
    """
    dense = ndimage.binary_opening(np.pad(hu > -400.0, ((1, 1), (1, 1), (0, 0))))
    parts, count = ndimage.label(dense)
    if count == 0:
        return np.ones(hu.shape, bool)
    largest = parts == 1 + np.argmax(ndimage.sum_labels(dense, parts, range(1, count + 1)))
    filled = np.stack([ndimage.binary_fill_holes(s) for s in np.moveaxis(largest, 2, 0)], 2)
    return filled[1:-1, 1:-1]
