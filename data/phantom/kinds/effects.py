"""What each kind of effect does to a chest: change in HU, with its own random draws.

Every function takes a chest and a random generator, which belongs to one patient and one column,
and returns the full effect in HU (X, Y, Z). Sizes of texture are in mm, at least a voxel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from data.phantom.anatomy import LEFT, RIGHT
from data.phantom.effects import EffectTerm
from data.phantom.kinds.chest import Chest
from util.metrics.regions import body_mask

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Effect = Callable[[Chest, np.random.Generator], Array]

HOLE_HU = -985.0  # air in emphysema
RETICULATION_HU = 47.0  # scale of the lines
RETICULATION_MM = 3.0
LOCAL_MM = 15.0  # neighbourhood that a zero mean is taken over
HOLE_MM = 4.0
HOLE_SHARE = 0.125  # of the parenchyma
UPPER_HOLE_SHARE = 0.15  # of the upper half's parenchyma
FIBROSIS_HU = (-450.0, -350.0)
FIBROSIS_MM = 4.0
FIBROSIS_DEPTH_MM = 17.0
FIBROSIS_HEIGHT = 0.5
NODULES = 7
NODULE_MM = 15.0  # diameter
NODULE_HU = 30.0
VESSEL_LOSS = 0.9
MAX_FINE_VESSEL_HU = 300.0
GROUND_GLASS_HU = 150.0
WALL_HU = 250.0
SOFT_TISSUE_HU = (-60.0, 150.0)
FAT_CHANGE_HU = -30.0


def shift(hu: float, pattern: str) -> Effect:
    """Return a smooth shift of the mean; see `data.phantom.effects.EffectTerm`."""

    def effect(chest: Chest, rng: np.random.Generator) -> Array:
        return EffectTerm(hu, pattern).field(chest.anatomy)

    return effect


def right_lung(hu: float) -> Effect:
    """Return a shift of the right lung's mean; the left lung stays."""

    def effect(chest: Chest, rng: np.random.Generator) -> Array:
        right = chest.anatomy.labels == RIGHT
        share = chest.anatomy.share * right
        return share * np.float32(hu * right.sum() / max(float(share.sum()), 1.0))

    return effect


def lower_lungs(hu: float) -> Effect:
    """Return a shift of the lower thirds' mean, with next to nothing in the upper thirds."""

    def effect(chest: Chest, rng: np.random.Generator) -> Array:
        share = chest.anatomy.share
        weight = share / (1 + np.exp((chest.anatomy.height - 0.42) / 0.06))
        lower = chest.lungs & (chest.anatomy.height < 1 / 3)
        return np.asarray(weight * (hu / max(float(weight[lower].mean()), 1e-3)), np.float32)

    return effect


def reticulation(chest: Chest, rng: np.random.Generator) -> Array:
    """Fine lines, as dense as the parenchyma between them is thinned: the local mean stays."""
    field = chest.random_field(rng, RETICULATION_MM)
    lines = np.exp(-np.square(field / 0.5)).astype(np.float32)
    return _without_local_mean(chest, lines * np.float32(2 * RETICULATION_HU))


def emphysema_mean_kept(chest: Chest, rng: np.random.Generator) -> Array:
    """Holes anywhere, and denser parenchyma around them, so that the local mean stays."""
    return _without_local_mean(chest, _holes(chest, rng, chest.parenchyma, HOLE_SHARE))


def upper_emphysema(chest: Chest, rng: np.random.Generator) -> Array:
    """Holes in 15 % of the upper zones."""
    return _holes(chest, rng, chest.parenchyma & (chest.anatomy.height > 0.5), UPPER_HOLE_SHARE)


def fibrosis(chest: Chest, rng: np.random.Generator) -> Array:
    """A quarter of the voxels near the lower pleura at -450 HU or above."""
    anatomy = chest.anatomy
    zone = chest.lungs & (anatomy.depth < FIBROSIS_DEPTH_MM) & (anatomy.height < FIBROSIS_HEIGHT)
    chosen = _densest(chest.random_field(rng, FIBROSIS_MM), zone, 0.25)
    target = rng.uniform(*FIBROSIS_HU, anatomy.hu.shape)
    return np.where(chosen, np.maximum(target - anatomy.hu, 0), 0).astype(np.float32)


def nodules(chest: Chest, rng: np.random.Generator) -> Array:
    """Solid balls at random places of the parenchyma.

    A single ball of 13 mm has three voxels of 6 x 6 x 9 mm, too few for the 99.5th percentile.
    """
    anatomy = chest.anatomy
    places = np.argwhere(chest.parenchyma & (anatomy.depth > NODULE_MM / 2))
    if not len(places):
        return np.zeros_like(anatomy.hu)
    filled = np.zeros_like(anatomy.hu)
    axes = [
        np.arange(n, dtype=np.float32) * s
        for n, s in zip(anatomy.hu.shape, chest.spacing, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    voxel = float(np.mean(chest.spacing))
    for place in places[rng.integers(len(places), size=NODULES)]:
        centre = (place + rng.uniform(-0.5, 0.5, 3)) * chest.spacing
        distance = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
        ball = np.clip(0.5 - (distance - NODULE_MM / 2) / voxel, 0, 1)
        np.maximum(filled, ball, out=filled)
    rise = np.maximum(NODULE_HU - anatomy.hu, 0)
    return np.where(chest.lungs, filled * rise, 0).astype(np.float32)


def vessel_pruning(chest: Chest, rng: np.random.Generator) -> Array:
    """Fine vessels lose most of their contrast; thick ones, and the hila, stay."""
    fine = np.minimum(chest.vessels, MAX_FINE_VESSEL_HU)
    fine = np.where(chest.vessels < 2 * MAX_FINE_VESSEL_HU, fine, 0)
    inside = chest.lungs & (chest.anatomy.depth > max(chest.spacing))
    return np.where(inside, -VESSEL_LOSS * fine, 0).astype(np.float32)


def ground_glass(chest: Chest, rng: np.random.Generator) -> Array:
    """Haze in the right upper region, with a soft lower edge."""
    right = chest.anatomy.labels == RIGHT
    edge = 1 / (1 + np.exp((0.62 - chest.anatomy.height) / 0.03))
    return np.asarray(GROUND_GLASS_HU * chest.anatomy.share * right * edge, np.float32)


def wall_thickening(chest: Chest, rng: np.random.Generator) -> Array:
    """Denser lung beside the airways."""
    reach = max(8.0, 1.5 * max(chest.spacing))
    near = np.clip(1.5 - chest.airway_distance / reach, 0, 1) * chest.lungs
    return np.asarray(WALL_HU * near * chest.anatomy.share, np.float32)


def soft_tissue_fat(chest: Chest, rng: np.random.Generator) -> Array:
    """Fat in the soft tissue outside the lungs, which lowers its density."""
    hu = chest.anatomy.hu
    low, high = SOFT_TISSUE_HU
    outside = body_mask(hu) & (chest.anatomy.labels == 0)
    return np.where(outside & (hu > low) & (hu < high), FAT_CHANGE_HU, 0).astype(np.float32)


def _densest(field: Array, zone: Mask, share: float) -> Mask:
    """Return the share of a zone's voxels where a field is largest."""
    if not zone.any():
        return zone
    return np.asarray(zone & (field > np.quantile(field[zone], 1 - share)))


def _holes(chest: Chest, rng: np.random.Generator, zone: Mask, share: float) -> Array:
    chosen = _densest(chest.random_field(rng, HOLE_MM), zone, share)
    depth = np.minimum(HOLE_HU - chest.anatomy.hu, 0)
    return np.where(chosen, depth, 0).astype(np.float32)


def _without_local_mean(chest: Chest, change: Array) -> Array:
    """Return a change within the parenchyma whose local mean, and mean in each lung, is zero."""
    share = chest.anatomy.share * chest.parenchyma
    change = change * share
    weight = np.maximum(chest.smooth(share, LOCAL_MM), 1e-3)
    change -= share * chest.smooth(change, LOCAL_MM) / weight
    for label in (LEFT, RIGHT):
        side = share * (chest.anatomy.labels == label)
        excess = float((change * (side > 0)).sum()) / max(float(side.sum()), 1.0)
        change -= side * np.float32(excess)
    return change
