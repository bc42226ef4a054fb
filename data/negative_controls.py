"""Negative controls: parts of a scan that no disease of the lungs can change.

Air outside the patient, air in the trachea, and labels such as the aorta differ between groups of
patients only where scans were acquired differently (Lipsitch, Tchetgen Tchetgen and Cohen 2010,
Epidemiology 21, 383).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data.body import find_body
from util.metrics.regions import AIR, TRACHEA, Mask, bounding_box, control_region
from util.metrics.texture import detail

COARSE_MM = 4.0  # grid on which the patient is found
MARGIN_MM = 12.0  # least distance of air from the patient
MAX_AIR_HU = -850.0  # denser voxels outside the patient are table, blanket or tubes
MAX_SLICES = 16  # in which air is measured
DEPTH_MM = 3.0  # least distance of tracheal air from its wall, and of a label's from its border
MIN_VOXELS = 60

Hu = NDArray[np.floating]
# Mean and SD of the noise, HU, by region.
ControlValues = dict[str, tuple[float, float]]


def measure_controls(
    hu: Hu,
    labels: NDArray[np.integer],
    spacing: Sequence[float],
    airway_label: int,
    control_labels: Sequence[int] = (),
) -> ControlValues:
    """Return mean and noise SD of each control, HU; those with hardly a voxel are left out.

    Args:
        hu: The scan `(X, Y, Z)` in RAS, not clipped.
        labels: Mask labels of the same shape.
        spacing: Voxel size in mm.
        control_labels: Labels that disease cannot change, such as aorta or muscle.
    """
    values = {}
    air = _air_values(hu, labels > 0, spacing)
    if air is not None:
        values[AIR] = air
    for region, label in [
        (TRACHEA, airway_label),
        *((control_region(n), n) for n in control_labels),
    ]:
        inside = _deep_values(hu, labels == label, spacing)
        if inside is not None:
            values[region] = inside
    return values


def _air_values(hu: Hu, labelled: Mask, spacing: Sequence[float]) -> tuple[float, float] | None:
    """Measure the air outside the patient in some axial slices, by their noise within a slice."""
    steps = [max(1, int(COARSE_MM / side + 0.01)) for side in spacing]
    sparse = tuple(slice(None, None, step) for step in steps)
    sides = np.multiply(spacing, steps)
    patient = find_body(hu[sparse], labelled[sparse], sides.tolist())
    if not patient.any():
        return None
    far = ndimage.distance_transform_edt(~patient, sampling=sides) > MARGIN_MM
    values, noise = [], []
    picked = np.unique(np.linspace(0, far.shape[2] - 1, MAX_SLICES).astype(int))
    for index in picked:
        plane = hu[:, :, index * steps[2] : index * steps[2] + 1]
        outside = np.repeat(np.repeat(far[:, :, index], steps[0], 0), steps[1], 1)
        outside = outside[: plane.shape[0], : plane.shape[1], None]
        air = outside & (plane <= MAX_AIR_HU) & ~_padding(plane)
        air = ndimage.binary_erosion(air, np.ones((3, 3, 1), bool), border_value=True)
        values.append(plane[air])
        noise.append(detail(plane, air, spacing)[air])
    return _mean_and_sd(np.concatenate(values), np.concatenate(noise))


def _padding(plane: Hu) -> Mask:
    """Return constant patches, with which scanners and programs fill what was not measured."""
    size = (3, 3, 1)
    highest = ndimage.maximum_filter(plane, size, mode="nearest")
    constant = highest == ndimage.minimum_filter(plane, size, mode="nearest")
    return np.asarray(ndimage.binary_dilation(constant, np.ones(size, bool)))


def _deep_values(hu: Hu, mask: Mask, spacing: Sequence[float]) -> tuple[float, float] | None:
    """Measure the voxels of a label that its border does not blur."""
    if not mask.any():
        return None
    box = bounding_box(mask)
    depth = ndimage.distance_transform_edt(np.pad(mask[box], 1), sampling=spacing)
    deep = depth[1:-1, 1:-1, 1:-1] > max(DEPTH_MM, *spacing)
    inside = hu[box]
    return _mean_and_sd(inside[deep], detail(inside, deep, spacing)[deep])


def _mean_and_sd(values: Hu, noise: Hu) -> tuple[float, float] | None:
    if len(values) < MIN_VOXELS or noise.std() == 0:
        return None
    return float(values.mean(dtype=np.float64)), float(noise.std())
