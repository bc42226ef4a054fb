"""Classic segmentation of the lungs: threshold, parts, sides, and rims closed over nodules and
consolidation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from skimage.segmentation import watershed

from data.preparation.airway import airway

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

LEFT, RIGHT, AIRWAY = 1, 2, 3
LUNG_HU = -400.0
SMALLEST_ML = 30.0  # a part below this, or below a share of the largest, is no lung
SMALLEST_SHARE = 0.04
GAS_HU = -945.0
CLOSE_MM = 10.0
RIM_MM = 35.0  # consolidation at the chest wall is closed over up to twice this width
BONE_HU = 250.0
WALL_MM = 1.5
APART_MM = 50.0  # the centres of two lungs lie further apart than this, from side to side
SEEDS_SHARE = 0.15  # the smaller lung's seed against the larger one's


def segment(hu: NDArray[np.floating], spacing: Spacing) -> NDArray[np.uint8]:
    """Left lung 1, right lung 2, trachea and main bronchi 3, the rest 0; all 0 where there are no
    lungs.

    Args:
        hu: (X, Y, Z) in RAS, HU.
        spacing: Voxel size in mm; meant for one to six.
    """
    body = body_of(hu)
    tube = airway(hu, body, spacing)
    wall = _grown(tube, WALL_MM, spacing) if tube.any() else tube
    lungs = _parts((hu < LUNG_HU) & body & ~wall, hu, spacing)
    labels = np.zeros(hu.shape, np.uint8)
    if not lungs.any():
        return labels
    sides = split(lungs, spacing)
    closed = {side: close(sides == side, spacing) for side in (LEFT, RIGHT)}
    closed = {
        side: lung | (subpleural(lung, side, spacing) & (hu < BONE_HU))
        for side, lung in closed.items()
    }
    closed = {side: lung & ~tube & body for side, lung in closed.items()}
    for side, other in ((LEFT, RIGHT), (RIGHT, LEFT)):
        labels[closed[side] & ~(closed[other] & (sides != side))] = side
    labels[tube] = AIRWAY
    return labels


def body_of(hu: NDArray[np.floating]) -> Mask:
    """The patient (X, Y, Z): the largest dense part, filled slice by slice; thin chest walls of
    coarse voxels hold.

    The table may stay with it; the air between both is told from lungs by its density.
    """
    parts = label(np.pad(hu > LUNG_HU, ((1, 1), (1, 1), (0, 0))), connectivity=1)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest = parts == sizes.argmax() if sizes.any() else np.zeros(parts.shape, bool)
    return _filled(largest)[1:-1, 1:-1]


def _filled(mask: Mask) -> Mask:
    """Holes of every axial slice filled."""
    return np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(mask, 2, 0)], 2)


def _grown(mask: Mask, by_mm: float, spacing: Spacing) -> Mask:
    return (
        np.asarray(ndimage.distance_transform_edt(~mask, spacing) <= by_mm) if mask.any() else mask
    )


def _parts(air: Mask, hu: NDArray[np.floating], spacing: Spacing) -> Mask:
    """The parts of the air that are lungs: large ones, without gas of stomach and bowel."""
    parts = label(air, connectivity=1)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    voxel_ml = float(np.prod(spacing)) / 1000
    least = max(SMALLEST_ML / voxel_ml, SMALLEST_SHARE * sizes.max(initial=0))
    large = [k for k in np.flatnonzero(sizes >= least) if np.median(hu[parts == k]) > GAS_HU]
    return np.isin(parts, large)


def split(lungs: Mask, spacing: Spacing) -> NDArray[np.uint8]:
    """Left 1 and right 2, also where the lungs touch: seeds that erosion takes apart, and a
    watershed between them.

    A single lung, or parts on one side alone, are named by the side of the volume's middle they lie
    on.
    """
    depth = ndimage.distance_transform_edt(lungs, spacing)
    seeds = _seeds(depth, spacing)
    if seeds is None:
        middle = (lungs.shape[0] - 1) / 2
        side = LEFT if ndimage.center_of_mass(lungs)[0] < middle else RIGHT
        return np.where(lungs, np.uint8(side), np.uint8(0))
    sides = watershed(-depth, seeds, mask=lungs)
    left = lungs & (sides == 0)  # parts without a seed go to the nearer lung
    if left.any():
        nearest = ndimage.distance_transform_edt(
            sides == 0, spacing, return_distances=False, return_indices=True
        )
        sides[left] = sides[tuple(n[left] for n in nearest)]
    return np.asarray(sides, np.uint8)


def _seeds(depth: NDArray[np.floating], spacing: Spacing) -> NDArray[np.int32] | None:
    """One core in each lung, labelled by side, at the weakest erosion that separates two; None if
    nothing does.
    """
    for by_mm in (0, 2, 4, 6, 8, 11, 14, 18, 22, 27):
        parts = label(depth > by_mm, connectivity=1)
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        order = np.argsort(sizes)[::-1][:2]
        if len(order) < 2 or sizes[order[1]] < SEEDS_SHARE * sizes[order[0]]:
            continue
        at = [ndimage.center_of_mass(parts == k)[0] * spacing[0] for k in order]
        if abs(at[0] - at[1]) > APART_MM:
            left, right = order if at[0] < at[1] else order[::-1]
            seeds = np.zeros(depth.shape, np.int32)
            seeds[parts == left], seeds[parts == right] = LEFT, RIGHT
            return seeds
    return None


def _around(mask: Mask, by_mm: float, spacing: Spacing) -> tuple[slice, ...]:
    """The box of a mask, wider by some mm: distances within it take much less time."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(
        slice(max(0, b.start - int(by_mm / s) - 2), b.stop + int(by_mm / s) + 2)
        for b, s in zip(box, spacing, strict=True)
    )


def _closed(mask: Mask, by_mm: float, spacing: Spacing) -> Mask:
    """Morphological closing with a ball of `by_mm`."""
    return np.asarray(ndimage.distance_transform_edt(_grown(mask, by_mm, spacing), spacing) > by_mm)


def close(lung: Mask, spacing: Spacing, by_mm: float = CLOSE_MM) -> Mask:
    """Takes in what the threshold left out: vessels, and nodules at the pleura."""
    if not lung.any():
        return lung
    around, out = _around(lung, by_mm, spacing), lung.copy()
    out[around] |= _closed(lung[around], by_mm, spacing)
    return _filled(out)


def subpleural(lung: Mask, side: int, spacing: Spacing) -> Mask:
    """Dense tissue between a lung and the ribs, such as consolidation and fibrosis, which leave
    wide dents in its outline.

    In every axial slice the outline is closed widely, but only to the outside, where a healthy lung
    is convex: what has lung between itself and the ribs (heart, hilum, diaphragm) is left alone.
    """
    out = np.zeros_like(lung)
    if not lung.any():
        return out
    flat = (*spacing[:2], 1e4)  # distances within a slice
    around = _around(lung, 0, spacing)
    pad = [(int(RIM_MM / s) + 2,) * 2 for s in spacing[:2]] + [(0, 0)]
    inner = lung[around]
    closed = _closed(np.pad(inner, pad), RIM_MM, flat)[
        pad[0][0] : -pad[0][0], pad[1][0] : -pad[1][0]
    ]
    step = -1 if side == RIGHT else 1  # looking inwards from the ribs: the right ones are at high x
    out[around] = closed & ~np.logical_or.accumulate(inner[::step], axis=0)[::step]
    return out
