"""Small turns and scalings of a patch; a chest is never flipped left to right, for its organs have
sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from data.geometry import crop

MAX_DEGREES, SCALE = 5.0, 0.05


def random_affine(
    image: np.ndarray,
    mask: np.ndarray,
    start: Sequence[int],
    size: Sequence[int],
    air: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """A patch of CT and mask, turned and scaled alike about its centre.

    Args:
        image: CT in HU (X, Y, Z).
        mask: Labels (X, Y, Z).
        start: First voxel of the patch; may be negative.
        size: (x, y, z) of the patch.
        air: HU outside the volume.
        rng: Draws the angles (up to 5 degrees about each axis, in voxels) and the scales (up to 5 %
            along each).

    Returns:
        CT float32 (cubic splines, which keep the noise better than lines) and labels (nearest), (x,
        y, z) each.
    """
    turned = Rotation.from_euler(
        "xyz", rng.uniform(-MAX_DEGREES, MAX_DEGREES, 3), degrees=True
    ).as_matrix()
    matrix = turned * (1 + rng.uniform(-SCALE, SCALE, 3))
    half = (np.array(size) - 1) / 2
    reach = (
        np.ceil(np.abs(matrix) @ half - half).clip(0).astype(int) + 2
    )  # what the turned patch needs around it
    first, wide = np.array(start) - reach, np.array(size) + 2 * reach
    offset = half + reach - matrix @ half
    hu = crop(image, first, wide, air).astype(np.float32)
    labels = crop(mask, first, wide, 0)
    low, high = hu.min(), hu.max()
    hu = affine_transform(
        hu, matrix, offset, output_shape=tuple(size), order=3, mode="nearest"
    ).clip(low, high)
    return hu, affine_transform(
        labels, matrix, offset, output_shape=tuple(size), order=0, mode="nearest"
    )
