"""Small rotations and scalings of a patch; never a flip, because left and right lungs differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import affine_transform

from data.geometry import crop

MAX_DEGREES = 5.0
MAX_SCALING = 0.05


def random_affine(
    image: np.ndarray,
    mask: np.ndarray,
    start: Sequence[int],
    size: Sequence[int],
    air: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a patch of CT and mask, rotated and scaled alike about its centre.

    Args:
        image: CT in HU (X, Y, Z).
        mask: Labels (X, Y, Z).
        start: First voxel of the patch; may be negative.
        size: (x, y, z) of the patch.
        air: HU outside the volume.
        rng: Draws the angles (up to 5 degrees about each axis, in voxels) and the scales (up to 5 %
            along each).

    Returns:
        CT float32 and labels, (x, y, z) each. The CT is interpolated by cubic splines, which keep
        its noise better than linear interpolation; labels take the nearest voxel.
    """
    from scipy.spatial.transform import Rotation  # slow to import

    angles = rng.uniform(-MAX_DEGREES, MAX_DEGREES, 3)
    scales = 1 + rng.uniform(-MAX_SCALING, MAX_SCALING, 3)
    matrix = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * scales
    half = (np.array(size) - 1) / 2
    margin = np.ceil(np.abs(matrix) @ half - half).clip(0).astype(int) + 2
    box_start = np.array(start) - margin
    box_size = np.array(size) + 2 * margin
    offset = half + margin - matrix @ half
    hu = crop(image, box_start, box_size, air).astype(np.float32)
    labels = crop(mask, box_start, box_size, 0)
    low = hu.min()
    high = hu.max()
    shape = tuple(size)
    hu = affine_transform(hu, matrix, offset, output_shape=shape, order=3, mode="nearest")
    labels = affine_transform(labels, matrix, offset, output_shape=shape, order=0, mode="nearest")
    return hu.clip(low, high), labels  # splines overshoot
