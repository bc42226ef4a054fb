"""Detail inside the lungs (vessels, bronchi, lesions, texture) that identifies a patient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

GRID_MM = 6.0  # voxel of the common grid
FIELD_MM = 384.0  # its side, around the lungs' centre
COARSE_MM = 15.0  # slower variation is density, not detail
DETAIL_HU = (-1000.0, 0.0)  # denser voxels are bone or contrast
EDGE_MM = 6.0  # depth below the pleura from which on voxels count


def _smooth(values: NDArray[Any], weight: NDArray[Any], sigma: NDArray[np.float64]) -> NDArray[Any]:
    """Return the Gaussian mean of the weighted voxels (normalised convolution)."""
    share = ndimage.gaussian_filter(weight, sigma)
    return ndimage.gaussian_filter(values * weight, sigma) / np.maximum(share, 1e-6)


def detail_vector(
    hu: NDArray[np.floating],
    spacing: Sequence[float],
    lungs: NDArray[np.bool_],
    window: tuple[float, float] = DETAIL_HU,
) -> NDArray[np.float32]:
    """Return the detail inside the lungs as a vector of length 1.

    The dot product of two vectors is their correlation. Density coarser than `COARSE_MM` is
    subtracted and the pleura left out, so that neither a shift in HU nor the outline of the lungs
    makes two scans alike. A volume generated from a patient's mask is not a copy for that alone.

    Args:
        hu: `(X, Y, Z)` HU in RAS.
        spacing: Voxel size in mm.
        lungs: Lungs of the same shape.
        window: Lowest and highest value that counts.

    Returns:
        float32 `(n,)` on a common grid around the lungs' centre, n the same for every scan; zeros
        where there are no lungs.
    """
    sides = np.asarray(spacing, float)
    count = round(FIELD_MM / GRID_MM)
    if not lungs.any():
        return np.zeros(count**3, np.float32)
    # Padding gives lungs cut by the border of the volume a pleura there.
    depth = ndimage.distance_transform_edt(np.pad(lungs, 1), sampling=sides)[1:-1, 1:-1, 1:-1]
    weight = (lungs & (depth > max(EDGE_MM, float(sides.min())))).astype(np.float32)
    values = np.clip(hu, *window).astype(np.float32)
    fine = _smooth(values, weight, GRID_MM / 3 / sides)
    detail = (fine - _smooth(values, weight, COARSE_MM / sides)) * weight
    centre = ndimage.center_of_mass(lungs)
    steps = (np.arange(count) - (count - 1) / 2) * GRID_MM
    axes = [c + steps / side for c, side in zip(centre, sides, strict=True)]
    positions = np.meshgrid(*axes, indexing="ij")
    vector = ndimage.map_coordinates(detail, positions, order=1, mode="constant").ravel()
    length = float(np.linalg.norm(vector))
    return (vector / length if length > 0 else vector).astype(np.float32)
