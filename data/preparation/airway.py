"""Trachea and main bronchi, by region growing that stops before it leaks into the lungs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label, regionprops

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

MAX_LUMEN_HU = -800  # noisy lumens of the trachea lie below
MAX_WALL_HU = -500  # partial volume at the wall
TRACHEA_AREA_MM2 = (25.0, 900.0)  # in an axial slice
MAX_OFF_CENTRE_MM = 60.0  # from the middle of the body, sideways
MIN_SOLIDITY = 0.7
MIN_TRACHEA_MM = 20.0
MIN_AIRWAY_ML = 3.0  # below, growing has failed
MAX_AIRWAY_ML = 90.0  # above, it has leaked
GROWING_THRESHOLDS_HU = range(-980, -700, 15)
MAX_GROWTH = 1.6  # a step that multiplies the volume by more goes through a bronchial wall


def find_trachea(hu: NDArray[np.floating], body: Mask, spacing: Spacing) -> Mask:
    """Return the longest chain of small round lumens near the middle of the body.

    It is sought in the upper two thirds; the mask is empty where there is none.

    Args:
        hu: (X, Y, Z) in RAS.
        body: The patient, holes filled.
        spacing: Voxel size in mm.
    """
    lumens = np.zeros(hu.shape, bool)
    middle = float(np.flatnonzero(body.any((1, 2))).mean()) if body.any() else hu.shape[0] / 2
    for z in range(hu.shape[2] // 3, hu.shape[2]):
        parts = label((hu[:, :, z] < MAX_LUMEN_HU) & body[:, :, z], connectivity=1)
        for part in regionprops(parts):
            area = part.area * spacing[0] * spacing[1]
            off_centre = abs(part.centroid[0] - middle) * spacing[0]
            if (
                TRACHEA_AREA_MM2[0] <= area <= TRACHEA_AREA_MM2[1]
                and off_centre <= MAX_OFF_CENTRE_MM
                and part.solidity > MIN_SOLIDITY
            ):
                lumens[..., z][parts == part.label] = True
    chains = label(lumens, connectivity=1)
    best_score = -np.inf
    best_label = None
    for chain in regionprops(chains):
        length = (chain.bbox[5] - chain.bbox[2]) * spacing[2]
        score = length - abs(chain.centroid[0] - middle) * spacing[0]
        if length >= MIN_TRACHEA_MM and score > best_score:
            best_score = score
            best_label = chain.label
    if best_label is None:
        return np.zeros(hu.shape, bool)
    return np.asarray(chains == best_label)


def segment_airway(hu: NDArray[np.floating], body: Mask, spacing: Spacing) -> Mask:
    """Segment trachea and main bronchi by growing from the trachea at rising thresholds.

    Growing stops before the threshold at which the volume jumps, where it breaks into the lungs.

    Args:
        hu: (X, Y, Z) in RAS.
        body: The patient, holes filled.
        spacing: Voxel size in mm.

    Returns:
        The mask, empty where no trachea is found.
    """
    seed = find_trachea(hu, body, spacing)
    voxel_ml = float(np.prod(spacing)) / 1000
    grown = np.zeros(hu.shape, bool)
    for threshold in GROWING_THRESHOLDS_HU:
        larger = _connected_to(body & (hu < threshold), seed)
        volume_ml = larger.sum() * voxel_ml
        before_ml = grown.sum() * voxel_ml
        jumps = before_ml > MIN_AIRWAY_ML * 3 and volume_ml > MAX_GROWTH * before_ml
        if volume_ml > MAX_AIRWAY_ML or jumps:
            break
        grown = larger
    if grown.sum() * voxel_ml < MIN_AIRWAY_ML:
        grown = seed
    wall = ndimage.binary_dilation(grown) & body & (hu < MAX_WALL_HU)
    return ndimage.binary_closing(grown | wall)


def _connected_to(mask: Mask, seed: Mask) -> Mask:
    """Return the parts of `mask` that touch the seed."""
    parts = label(mask, connectivity=1)
    touched = np.unique(parts[seed & mask])
    return np.isin(parts, touched[touched > 0])
