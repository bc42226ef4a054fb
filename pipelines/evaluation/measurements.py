"""Measurements of one volume, from which all metrics of a report are computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PLANES = ("sagittal", "coronal", "axial")  # slices across the first, second and third axis
HU_BINS = np.arange(-1100, 501)  # HU of the lungs' histogram, one bin per HU
UNIT_BINS = np.arange(0, 1001)  # the same of labels in arbitrary units
REGIONS = ("lungs", "left_lung", "right_lung", "upper", "middle", "lower", "core", "rim")
REGION_STATISTICS = ("mean", "sd", "p15")


@dataclass(frozen=True)
class VolumeMeasurements:
    """Measurements of one volume.

    Attributes:
        case: Name of the case.
        planes: Per 2D network, `(3, S, F)` features of S slices in each of `PLANES`.
        whole: Per 3D network, `(F,)` features of the whole volume.
        detail: `(D,)` of `pipelines.evaluation.detail.detail_vector`.
        histogram: `(B,)` lung voxels in each of `HU_BINS`, or of `UNIT_BINS` in arbitrary units.
        density: Densitometry of the lungs, their median, and their texture on the common grid, by
            name.
        regional: `(R,)` mean, SD and 15th percentile in each of `REGIONS`, or of both lungs and
            each label in other modalities; NaN where a region is empty.
        small: `(x, y, z)` the volume on a coarse grid, HU.
        spectrum: `(S,)` logarithm of the lungs' power in `util.metrics.texture.SPECTRUM_BANDS`, in
            HU^2 mm^3; NaN in bands that the grid does not resolve.
        overlap: Dice and distance of the segmented lungs to the mask, by name; empty without a
            mask.
    """

    case: str
    planes: list[NDArray[np.float32]]
    whole: list[NDArray[np.float32]]
    detail: NDArray[np.float16]
    histogram: NDArray[np.int64]
    density: dict[str, float]
    regional: NDArray[np.float64]
    small: NDArray[np.float16]
    spectrum: NDArray[np.float64]
    overlap: dict[str, float]
