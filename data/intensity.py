"""Arbitrary units: the scale of scans whose intensities are not HU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.geometry import Volume
from options.base_options import DataOptions
from util.modality import UNIT_WINDOW


@dataclass(frozen=True)
class IntensityScale:
    """How the intensities of a scan become arbitrary units, 0 and 1000 at two of its values.

    MR intensities have no common unit: scanners multiply them by gains of their own. Percentiles of
    each scan make them comparable (Nyul and Udupa 2000, doi 10.1109/42.836373).

    Attributes:
        window: Intensities at 0 and 1000, the same in all scans; None for percentiles.
        percentiles: Percentiles of each scan at 0 and 1000. Voxels with its lowest value do not
            count, because padding and removed skulls have it.
    """

    window: tuple[float, float] | None
    percentiles: tuple[float, float]

    @classmethod
    def from_options(cls, options: DataOptions) -> IntensityScale | None:
        """Return how scans of a cohort are scaled; None for HU."""
        if options.terms.is_ct:
            return None
        return cls(options.intensity_window, options.percentiles)

    @property
    def key(self) -> list[object]:
        """Return the settings that scaled values depend on; prepared volumes are named by them."""
        return ["window", self.window] if self.window else ["percentiles", self.percentiles]

    def ends(self, intensities: np.ndarray) -> tuple[float, float]:
        """Return the intensities of a scan at 0 and 1000 a.u."""
        if self.window is not None:
            return self.window
        counted = intensities[intensities > intensities.min()]
        if not counted.size:
            return float(intensities.flat[0]), float(intensities.flat[0])
        low, high = np.percentile(counted, self.percentiles)
        return float(low), float(high)

    def __call__(self, scan: Volume) -> Volume:
        """Return a scan in arbitrary units, rounded to whole ones; what lies beyond stays so."""
        low, high = self.ends(scan.array)
        bottom, top = UNIT_WINDOW
        width = high - low or 1.0
        scaled = (scan.array.astype(np.float32) - low) * ((top - bottom) / width) + bottom
        limits = np.iinfo(np.int16)
        return Volume(np.rint(scaled).clip(limits.min, limits.max).astype(np.int16), scan.affine)
