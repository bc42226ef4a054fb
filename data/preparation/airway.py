"""Trachea and main bronchi: found in the upper slices, grown until the next step would leak into
the lungs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label, regionprops

Mask = NDArray[np.bool_]

AIR_HU = -800  # the lumen of the trachea lies below, whatever the noise
AREA_MM2 = (25.0, 900.0)  # of the trachea in an axial slice
MIDDLE_MM = 60.0  # how far from the body's middle it may lie
SHORTEST_MM = 20.0
GROWN_ML = (3.0, 90.0)  # below: not found; above: leaked
STEP_HU = 15
LEAK = 1.6  # a step that multiplies the volume by this much goes through a bronchial wall


def trachea(hu: NDArray[np.floating], body: Mask, spacing: tuple[float, float, float]) -> Mask:
    """The longest chain of small round lumens near the body's middle in the upper two thirds; empty
    if there is none.

    Args:
        hu: (X, Y, Z) in RAS.
        body: The patient, holes filled.
        spacing: Voxel size in mm.
    """
    chain = np.zeros(hu.shape, bool)
    middle = float(np.flatnonzero(body.any((1, 2))).mean()) if body.any() else hu.shape[0] / 2
    for z in range(hu.shape[2] // 3, hu.shape[2]):
        parts = label((hu[:, :, z] < AIR_HU) & body[:, :, z], connectivity=1)
        for part in regionprops(parts):
            area = part.area * spacing[0] * spacing[1]
            aside = abs(part.centroid[0] - middle) * spacing[0]
            if AREA_MM2[0] <= area <= AREA_MM2[1] and aside <= MIDDLE_MM and part.solidity > 0.7:
                chain[..., z][parts == part.label] = True
    parts = label(chain, connectivity=1)
    found = [
        part
        for part in regionprops(parts)
        if (part.bbox[5] - part.bbox[2]) * spacing[2] >= SHORTEST_MM
    ]
    if not found:
        return np.zeros(hu.shape, bool)
    best = max(
        found,
        key=lambda part: (
            (part.bbox[5] - part.bbox[2]) * spacing[2] - abs(part.centroid[0] - middle) * spacing[0]
        ),
    )
    return np.asarray(parts == best.label)


def airway(hu: NDArray[np.floating], body: Mask, spacing: tuple[float, float, float]) -> Mask:
    """Trachea and main bronchi, by region growing from the trachea at rising thresholds; empty
    where none is found.

    Growing stops before the threshold at which the volume jumps, which is where it breaks into the
    lungs.
    """
    seed = trachea(hu, body, spacing)
    voxel_ml = float(np.prod(spacing)) / 1000
    grown = np.zeros(hu.shape, bool)
    for level in range(-980, -700, STEP_HU):
        next_ = _reached(body & (hu < level), seed)
        volume, before = next_.sum() * voxel_ml, grown.sum() * voxel_ml
        if volume > GROWN_ML[1] or (before > GROWN_ML[0] * 3 and volume > LEAK * before):
            break
        grown = next_
    if grown.sum() * voxel_ml < GROWN_ML[0]:
        grown = seed
    return ndimage.binary_closing(grown | (ndimage.binary_dilation(grown) & body & (hu < -500)))


def _reached(free: Mask, seed: Mask) -> Mask:
    """The parts of `free` that touch the seed."""
    parts = label(free, connectivity=1)
    touched = np.unique(parts[seed & free])
    return np.isin(parts, touched[touched > 0])
