"""Segmentation of the lungs by threshold: parts, sides, and closing over dense lung tissue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from skimage.segmentation import watershed

from data.preparation.airway import Mask, Spacing, segment_airway
from util.metrics.regions import bounding_box

LEFT = 1
RIGHT = 2
AIRWAY = 3
BODY = 4  # everything else of the patient

MAX_LUNG_HU = -400.0
MAX_GAS_HU = -945.0  # parts with a lower median are gas of stomach and bowel
MAX_TISSUE_HU = 250.0  # above is bone
MIN_PART_ML = 30.0  # a smaller part is not a lung
MIN_PART_SHARE = 0.04  # of the largest part
AIRWAY_WALL_MM = 1.5
CLOSING_MM = 10.0
SUBPLEURAL_CLOSING_MM = 35.0  # closes dents at the chest wall of up to twice this width
MIN_LUNG_DISTANCE_MM = 50.0  # between the centres of the two lungs, from side to side
MIN_SEED_SHARE = 0.15  # the smaller lung's seed against the larger one's
EROSIONS_MM = (0, 2, 4, 6, 8, 11, 14, 18, 22, 27)


def segment_lungs(hu: NDArray[np.floating], spacing: Spacing) -> NDArray[np.uint8]:
    """Segment the lungs and the airway.

    Args:
        hu: (X, Y, Z) in RAS, HU.
        spacing: Voxel size in mm; meant for one to six.

    Returns:
        Left lung 1, right lung 2, trachea and main bronchi 3, the rest 0; all 0 without lungs.
    """
    body = body_mask(hu)
    airway = segment_airway(hu, body, spacing)
    wall = _dilate(airway, AIRWAY_WALL_MM, spacing)
    lungs = _lung_parts((hu < MAX_LUNG_HU) & body & ~wall, hu, spacing)
    labels = np.zeros(hu.shape, np.uint8)
    if not lungs.any():
        return labels
    sides = split_sides(lungs, spacing)
    closed: dict[int, Mask] = {}
    for side in (LEFT, RIGHT):
        lung = close_lung(sides == side, spacing)
        lung |= subpleural_tissue(lung, side, spacing) & (hu < MAX_TISSUE_HU)
        closed[side] = lung & ~airway & body
    for side, opposite in ((LEFT, RIGHT), (RIGHT, LEFT)):
        labels[closed[side] & ~(closed[opposite] & (sides != side))] = side
    labels[airway] = AIRWAY
    return labels


def body_mask(hu: NDArray[np.floating]) -> Mask:
    """Return the patient (X, Y, Z): the largest dense part, holes of every axial slice filled.

    The table may stay with it; density tells the air between both from lungs. The padding by one
    voxel keeps thin chest walls of coarse voxels closed.
    """
    parts = label(np.pad(hu > MAX_LUNG_HU, ((1, 1), (1, 1), (0, 0))), connectivity=1)
    sizes = _part_sizes(parts)
    largest = parts == sizes.argmax() if sizes.any() else np.zeros(parts.shape, bool)
    return _fill_slices(largest)[1:-1, 1:-1]


def _part_sizes(parts: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the voxels of every part; the background counts 0."""
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return sizes


def _fill_slices(mask: Mask) -> Mask:
    return np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(mask, 2, 0)], 2)


def _dilate(mask: Mask, by_mm: float, spacing: Spacing) -> Mask:
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask, spacing) <= by_mm)


def _lung_parts(air: Mask, hu: NDArray[np.floating], spacing: Spacing) -> Mask:
    """Return the parts of the air that are lungs: large ones, without gas of stomach and bowel."""
    parts = label(air, connectivity=1)
    sizes = _part_sizes(parts)
    voxel_ml = float(np.prod(spacing)) / 1000
    min_size = max(MIN_PART_ML / voxel_ml, MIN_PART_SHARE * sizes.max(initial=0))
    large = np.flatnonzero(sizes >= min_size)
    return np.isin(parts, [part for part in large if np.median(hu[parts == part]) > MAX_GAS_HU])


def split_sides(lungs: Mask, spacing: Spacing) -> NDArray[np.uint8]:
    """Return left 1 and right 2, also where the lungs touch.

    Erosion separates a seed in each lung, and a watershed grows them again. A single lung, or parts
    on one side alone, are named by the side of the volume's middle where they lie.
    """
    depth = ndimage.distance_transform_edt(lungs, spacing)
    seeds = _side_seeds(depth, spacing)
    if seeds is None:
        middle = (lungs.shape[0] - 1) / 2
        side = LEFT if ndimage.center_of_mass(lungs)[0] < middle else RIGHT
        return np.where(lungs, np.uint8(side), np.uint8(0))
    sides = watershed(-depth, seeds, mask=lungs)
    unassigned = lungs & (sides == 0)  # parts without a seed go to the nearer lung
    if unassigned.any():
        nearest = ndimage.distance_transform_edt(
            sides == 0, spacing, return_distances=False, return_indices=True
        )
        sides[unassigned] = sides[tuple(index[unassigned] for index in nearest)]
    return np.asarray(sides, np.uint8)


def _side_seeds(depth: NDArray[np.floating], spacing: Spacing) -> NDArray[np.int32] | None:
    """Return a seed in each lung, labelled by side, at the weakest erosion that separates two.

    Args:
        depth: Distance to the outline in mm.
        spacing: Voxel size in mm.

    Returns:
        The seeds, None where no erosion separates two lungs.
    """
    for erosion_mm in EROSIONS_MM:
        parts = label(depth > erosion_mm, connectivity=1)
        sizes = _part_sizes(parts)
        largest = np.argsort(sizes)[::-1][:2]
        if len(largest) < 2 or sizes[largest[1]] < MIN_SEED_SHARE * sizes[largest[0]]:
            continue
        centres = [ndimage.center_of_mass(parts == part)[0] * spacing[0] for part in largest]
        if abs(centres[0] - centres[1]) > MIN_LUNG_DISTANCE_MM:
            left, right = largest if centres[0] < centres[1] else largest[::-1]
            seeds = np.zeros(depth.shape, np.int32)
            seeds[parts == left] = LEFT
            seeds[parts == right] = RIGHT
            return seeds
    return None


def _close(mask: Mask, by_mm: float, spacing: Spacing) -> Mask:
    """Close a mask with a ball of radius `by_mm`."""
    dilated = _dilate(mask, by_mm, spacing)
    return np.asarray(ndimage.distance_transform_edt(dilated, spacing) > by_mm)


def close_lung(lung: Mask, spacing: Spacing, by_mm: float = CLOSING_MM) -> Mask:
    """Return a lung with what the threshold left out: vessels, and nodules at the pleura."""
    if not lung.any():
        return lung
    # Distances within the box take much less time.
    box = bounding_box(lung, [int(by_mm / size) + 2 for size in spacing])
    closed = lung.copy()
    closed[box] |= _close(lung[box], by_mm, spacing)
    return _fill_slices(closed)


def subpleural_tissue(lung: Mask, side: int, spacing: Spacing) -> Mask:
    """Return the dense tissue between a lung and the ribs, such as consolidation and fibrosis.

    It leaves wide dents in the outline of the lung. In every axial slice the outline is closed
    widely, but only to the outside, where a healthy lung is convex: tissue that has lung between
    itself and the ribs (heart, hilum, diaphragm) stays out.

    Args:
        lung: One lung (X, Y, Z) in RAS.
        side: `LEFT` or `RIGHT`.
        spacing: Voxel size in mm.
    """
    tissue = np.zeros_like(lung)
    if not lung.any():
        return tissue
    within_slices = (spacing[0], spacing[1], 1e4)
    box = bounding_box(lung, (2, 2, 2))
    cropped = lung[box]
    pad_x, pad_y = (int(SUBPLEURAL_CLOSING_MM / size) + 2 for size in spacing[:2])
    padded = np.pad(cropped, ((pad_x, pad_x), (pad_y, pad_y), (0, 0)))
    closed = _close(padded, SUBPLEURAL_CLOSING_MM, within_slices)[pad_x:-pad_x, pad_y:-pad_y]
    inwards = -1 if side == RIGHT else 1  # from the ribs; the right ones are at high x
    behind_lung = np.logical_or.accumulate(cropped[::inwards], axis=0)[::inwards]
    tissue[box] = closed & ~behind_lung
    return tissue
