"""Vessels of the lungs, as a mask that disease hardly enters.

Vessels are found by their shape, not by their density: a threshold on density takes fibrosis and
consolidation with them. Structures count that are tubes at the scale of vessels (Frangi et al.
1998, by SimpleITK), long, and not subpleural, where honeycombing lies and vessels are thin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label

from util.metrics.regions import bounding_box

Mask = NDArray[np.bool_]
Hu = NDArray[np.floating]

SCALES_MM = (1.5, 2.5)  # SDs of the Gaussians; about the radii of the vessels that are found
MIN_TUBE_HU = 15.0  # response to a tube, in HU of its second derivative at its scale
# Tolerances of Frangi's ratios. Smaller than usual for blobs and larger for plates, so that the
# surface of a consolidation, which is bent, is no tube.
PLATE, BLOB = 0.7, 0.25
MIN_LENGTH_MM = 25.0  # diagonal of a structure's box
MARGIN = 3  # voxels around the lungs' box


def find_vessels(hu: Hu, regions: Mapping[str, Mask], spacing: Sequence[float]) -> Mask:
    """Return the vessels in the central lung, `(X, Y, Z)`.

    Args:
        hu: The volume `(X, Y, Z)`, HU.
        regions: Regions of `util.metrics.regions.chest_regions`, with `lungs` and `core`.
        spacing: Voxel size in mm.
    """
    vessels = np.zeros(hu.shape, bool)
    if "core" not in regions:
        return vessels
    box = bounding_box(regions["lungs"], (MARGIN, MARGIN, MARGIN))
    lungs = regions["lungs"][box]
    # Without its surroundings, the border of a lung is no structure.
    inside = np.where(lungs, hu[box], np.median(hu[box][lungs])).astype(np.float32)
    if min(inside.shape) < 4:  # the recursive Gaussian needs four voxels
        return vessels
    tubes = _tubeness(inside, spacing) > MIN_TUBE_HU
    parts = label(tubes & regions["core"][box], connectivity=3)
    is_long = [False]
    for part in ndimage.find_objects(parts):
        sides = [(side.stop - side.start) * mm for side, mm in zip(part, spacing, strict=True)]
        is_long.append(float(np.linalg.norm(sides)) >= MIN_LENGTH_MM)
    vessels[box] = np.asarray(is_long)[parts]
    return vessels


def _tubeness(hu: Hu, spacing: Sequence[float]) -> NDArray[np.float32]:
    """Return the largest response to bright tubes over `SCALES_MM`, HU, `(X, Y, Z)`."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(hu.T))
    image.SetSpacing([float(side) for side in spacing])
    best = np.zeros(hu.shape, np.float32)
    for scale in SCALES_MM:
        smooth = sitk.SmoothingRecursiveGaussian(image, scale)
        response = sitk.ObjectnessMeasure(smooth, alpha=PLATE, beta=BLOB)
        # Times the variance, so that scales can be compared (Lindeberg 1998).
        np.maximum(best, scale**2 * sitk.GetArrayFromImage(response).T, out=best)
    return best
