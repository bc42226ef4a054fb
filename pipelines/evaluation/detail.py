"""What is a patient's own inside the lungs: vessels, bronchi, lesions, texture, apart from the
shape of the lungs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

GRID_MM = 6.0  # voxel of the common grid
FIELD_MM = 384.0  # its side, around the lungs' centre
COARSE_MM = 15.0  # what varies more slowly than this is density, not detail
EDGE_MM = 6.0  # depth below the pleura from which on voxels count


def _smooth(values: NDArray[Any], weight: NDArray[Any], sigma: NDArray[np.float64]) -> NDArray[Any]:
    """Gaussian mean of the voxels with weight alone (normalised convolution)."""
    share = ndimage.gaussian_filter(weight, sigma)
    return ndimage.gaussian_filter(values * weight, sigma) / np.maximum(share, 1e-6)


def detail_vector(
    hu: NDArray[np.floating], spacing: Sequence[float], lungs: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """The detail inside the lungs as a vector of length 1: the dot product of two is their
    correlation.

    Density below `COARSE_MM` is taken out and the pleura left out, so that neither a shift in HU
    nor the lungs' outline makes two scans alike: a volume generated from a patient's own mask is no
    copy for that.

    Args:
        hu: `(X, Y, Z)` HU in RAS.
        spacing: Voxel size in mm.
        lungs: Lungs of the same shape.

    Returns:
        float32 `(n,)` on a common grid around the lungs' centre, n the same for every scan; zeros
        where no lungs are.
    """
    sides = np.asarray(spacing, float)
    count = round(FIELD_MM / GRID_MM)
    if not lungs.any():
        return np.zeros(count**3, np.float32)
    # Padding gives lungs cut by the border of the volume a pleura there.
    depth = ndimage.distance_transform_edt(np.pad(lungs, 1), sampling=sides)[1:-1, 1:-1, 1:-1]
    weight = (lungs & (depth > max(EDGE_MM, float(sides.min())))).astype(np.float32)
    values = np.clip(hu, -1000, 0).astype(np.float32)
    fine = _smooth(values, weight, GRID_MM / 3 / sides)
    detail = (fine - _smooth(values, weight, COARSE_MM / sides)) * weight
    centre = np.asarray(ndimage.center_of_mass(lungs))
    steps = (np.arange(count) - (count - 1) / 2) * GRID_MM
    places = np.meshgrid(
        *(c + steps / s for c, s in zip(centre, sides, strict=True)), indexing="ij"
    )
    vector = ndimage.map_coordinates(detail, places, order=1, mode="constant").ravel()
    length = float(np.linalg.norm(vector))
    return (vector / length if length > 0 else vector).astype(np.float32)
