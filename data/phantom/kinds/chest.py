"""A chest, drawn or scanned, with the maps that tell effects where to act."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data.phantom.anatomy import AIRWAY, BLOOD_HU, LEFT, RIGHT, Anatomy
from util.metrics.regions import bounding_box

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

BACKGROUND_MM = 12.0  # sigma of the parenchyma's smooth background
MAX_PARENCHYMA_HU = -650.0  # denser voxels do not count for that background


@dataclass(frozen=True)
class Chest:
    """One patient without effects; arrays are (X, Y, Z) in RAS.

    Attributes:
        anatomy: HU, labels, and the maps of place; `share` is 1 in parenchyma and 0 in vessels.
        spacing: Voxel size, mm.
    """

    anatomy: Anatomy
    spacing: Spacing

    @classmethod
    def from_scan(cls, hu: Array, labels: NDArray[np.uint8], spacing: Spacing) -> Chest:
        """Derive the maps from a CT and its mask (1 left lung, 2 right lung, 3 airway)."""
        lungs = (labels == LEFT) | (labels == RIGHT)
        background = _parenchyma(hu, lungs, spacing)
        vessel = (hu - background) / (BLOOD_HU - background)
        share = np.where(lungs, np.clip(1 - vessel, 0, 1), 0)
        filled = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(lungs, 2), iterations=2))
        padded = filled | np.pad(labels == AIRWAY, 2)
        depth = ndimage.distance_transform_edt(padded, spacing)[2:-2, 2:-2, 2:-2]
        anatomy = Anatomy(
            labels,
            hu=np.asarray(hu, np.float32),
            share=np.asarray(share, np.float32),
            height=relative_position(lungs, 2),
            front=relative_position(lungs, 1),
            depth=np.asarray(depth, np.float32),
        )
        return cls(anatomy, spacing)

    @cached_property
    def lungs(self) -> Mask:
        """Voxels of both lungs."""
        return (self.anatomy.labels == LEFT) | (self.anatomy.labels == RIGHT)

    @cached_property
    def parenchyma(self) -> Mask:
        """Voxels of the lungs that are mostly parenchyma."""
        return self.anatomy.share > 0.75

    @cached_property
    def vessels(self) -> Array:
        """HU above the parenchyma's background, within the lungs."""
        hu = self.anatomy.hu
        excess = hu - _parenchyma(hu, self.lungs, self.spacing)
        return np.where(self.lungs, np.maximum(excess, 0), 0).astype(np.float32)

    @cached_property
    def airway_distance(self) -> Array:
        """Distance to the airways' lumen, mm; infinite without an airway."""
        airway = self.anatomy.labels == AIRWAY
        if not airway.any():
            return np.full(airway.shape, np.inf, np.float32)
        return np.asarray(ndimage.distance_transform_edt(~airway, self.spacing), np.float32)

    def smooth(self, values: Array, sigma_mm: float) -> Array:
        """Return a Gaussian of values, at least half a voxel wide."""
        sigma = [max(sigma_mm / side, 0.5) for side in self.spacing]
        return np.asarray(ndimage.gaussian_filter(values, sigma), np.float32)

    def random_field(self, rng: np.random.Generator, grain_mm: float) -> Array:
        """Return a smooth Gaussian field of SD 1, with grains of a size."""
        field = self.smooth(rng.standard_normal(self.lungs.shape, np.float32), grain_mm)
        return field / field.std()


def relative_position(lungs: Mask, axis: int) -> Array:
    """Return 0 to 1 along an axis, over the extent of the lungs."""
    if not lungs.any():
        return np.zeros(lungs.shape, np.float32)
    extent = bounding_box(lungs)[axis]
    steps = max(extent.stop - 1 - extent.start, 1)
    position = np.clip((np.arange(lungs.shape[axis]) - extent.start) / steps, 0, 1)
    shape = [1, 1, 1]
    shape[axis] = -1
    return np.broadcast_to(position.reshape(shape).astype(np.float32), lungs.shape)


def _parenchyma(hu: Array, lungs: Mask, spacing: Spacing) -> Array:
    """Return the smooth density of parenchyma without its vessels, HU."""
    counted = lungs & (hu < MAX_PARENCHYMA_HU)
    mean = _local_mean(hu, counted, spacing)
    return _local_mean(hu, counted & (hu <= mean), spacing)


def _local_mean(hu: Array, counted: Mask, spacing: Spacing) -> Array:
    sigma = [max(BACKGROUND_MM / side, 0.5) for side in spacing]
    weight = ndimage.gaussian_filter(counted.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(np.where(counted, hu, 0).astype(np.float32), sigma)
    mean = float(hu[counted].mean()) if counted.any() else MAX_PARENCHYMA_HU
    return np.where(weight > 0.01, total / np.maximum(weight, 0.01), mean).astype(np.float32)
