"""Domain shift: scans unlike those that a run was trained on, whose maps show no disease.

Another scanner, kernel, voxel size or segmentation makes the whole of a scan differ from what the
run expects. It shows in properties that need no generated volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from data.volume_dataset import VolumeSample
from util.cli import counted, format_list
from util.metrics.texture import region_statistics

MIN_REFERENCE_SCANS = 4
MAX_REFERENCE_SCANS = 40  # more hardly move the limits
LEVEL = 0.001  # of the prediction interval, so that few scans of the same kind are outside

Properties = Mapping[str, float]


@dataclass(frozen=True)
class _Property:
    """A property, with its words, unit, and the least SD between scans: of its log, or in HU."""

    words: str
    unit: str
    least_sd: float
    is_log: bool = True


PROPERTIES = {
    "smallest_side_mm": _Property("smallest voxel side", "mm", 0.03),
    "largest_side_mm": _Property("largest voxel side", "mm", 0.03),
    "lung_ml": _Property("lung volume in the mask", "ml", 0.1),
    "mean_hu": _Property("mean of the lungs", "HU", 10.0, is_log=False),
    "detail_sd_hu": _Property("SD of the detail in the lungs", "HU", 0.05),
}


def scan_properties(sample: VolumeSample, lung_labels: Sequence[int]) -> Properties:
    """Return the `PROPERTIES` of a scan; empty without a scan or lungs."""
    lungs = np.isin(sample.labels, lung_labels)
    if sample.image is None or not lungs.any():
        return {}
    sides = sample.spacing
    statistics = region_statistics(sample.to_hu(sample.image[0]), lungs, sides)
    return {
        "smallest_side_mm": min(sides),
        "largest_side_mm": max(sides),
        "lung_ml": float(lungs.sum() * np.prod(sides) / 1000),
        "mean_hu": statistics["mean_hu"],
        "detail_sd_hu": max(statistics["detail_sd_hu"], 1.0),
    }


def prediction_interval(name: str, values: Sequence[float]) -> tuple[float, float]:
    """Return the limits that a further scan of the same kind exceeds with probability `LEVEL`.

    Student's prediction interval, of the logarithm but for the mean in HU.
    """
    one = PROPERTIES[name]
    known = np.log(values) if one.is_log else np.asarray(values)
    sd = max(float(known.std(ddof=1)), one.least_sd)
    half = float(stats.t.ppf(1 - LEVEL / 2, len(known) - 1)) * sd * np.sqrt(1 + 1 / len(known))
    low, high = float(known.mean() - half), float(known.mean() + half)
    return (float(np.exp(low)), float(np.exp(high))) if one.is_log else (low, high)


@dataclass(frozen=True)
class DomainShift:
    """Scans that differ from those of the run.

    Attributes:
        searched: Number of scans that were compared.
        reference: What they were compared with, in words.
        limits: Prediction interval by property.
        outside: Value by scan, for each property that some scan has outside its limits.
    """

    searched: int
    reference: str
    limits: Mapping[str, tuple[float, float]]
    outside: Mapping[str, Mapping[str, float]]

    @classmethod
    def from_properties(
        cls,
        searched: Mapping[str, Properties],
        reference: Sequence[Properties],
        reference_name: str,
    ) -> DomainShift:
        """Compare scans with those of the run; nothing is outside where these are too few.

        Args:
            searched: Properties by case.
            reference: Properties of scans of the run.
            reference_name: What these are, such as "training scans of the run".
        """
        known = [properties for properties in reference if properties]
        limits, outside = {}, {}
        if len(known) >= MIN_REFERENCE_SCANS:
            limits = {
                name: prediction_interval(name, [scan[name] for scan in known])
                for name in PROPERTIES
            }
        for name, (low, high) in limits.items():
            values = {case: scan[name] for case, scan in searched.items() if scan}
            far = {case: value for case, value in values.items() if not low <= value <= high}
            if far:
                outside[name] = far
        return cls(len(searched), f"{len(known)} {reference_name}", limits, outside)

    @property
    def cases(self) -> list[str]:
        """The scans that differ, each once."""
        return list(dict.fromkeys(case for values in self.outside.values() for case in values))

    def sentence(self) -> str:
        """Return how many scans differ, in a sentence; "" for none."""
        if not self.outside:
            return ""
        return (
            f"{len(self.cases)} of {counted(self.searched, 'scan')} "
            f"{'is' if len(self.cases) == 1 else 'are'} unlike the {self.reference}"
        )

    def warning(self) -> str:
        """Return what differs, what it means, and what to do; "" where nothing differs."""
        if not self.outside:
            return ""
        parts = []
        for name, values in self.outside.items():
            one = PROPERTIES[name]
            low, high = (f"{limit:.3g}" for limit in self.limits[name])
            first, last = (f"{end(values.values()):.3g}" for end in (min, max))
            seen = first if first == last else f"{first} to {last}"
            parts.append(
                f"{one.words} {seen} {one.unit} (expected {low} to {high}) in {len(values)}"
            )
        return (
            f"{self.sentence()}: {'; '.join(parts)}. Scans: {format_list(self.cases)}. What is "
            "unusual there may be the scanner, the kernel, the voxel size or the segmentation, and "
            "not disease; disease of the whole lung does the same to a single scan. Prepare scans "
            "and masks as those of the training, or train on scans like these."
        )
