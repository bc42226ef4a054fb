"""The strongest regions of a map, with their location in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from util.cli import counted
from util.metrics.regions import DEPTH_NAMES, REGION_NAMES, Mask, region_name

Array = NDArray[np.floating]
Row = dict[str, str | float]

# A region is every voxel around a peak that reaches this share of the peak ...
MIN_SHARE_OF_PEAK = 0.5
# ... and this many spreads, because the voxels around a low peak are chance.
MIN_SPREADS = 3.0
NEIGHBOURS = np.ones((3, 3, 3), bool)
# Of each group, the region that holds most of a finding's voxels names its place.
GROUPS = (("right_lung", "left_lung"), ("upper", "middle", "lower"), ("rim", "core"))
PLACE_NAMES = {
    **DEPTH_NAMES,
    "upper": "upper third",
    "middle": "middle third",
    "lower": "lower third",
}
FINDING_COLUMNS = (
    "case",
    "number",
    "strong",
    "place",
    "peak_spreads",
    "mean_diff_hu",
    "volume_ml",
    "x_mm",
    "y_mm",
    "z_mm",
    "marked_share",
)


@dataclass(frozen=True)
class Finding:
    """One region of a map.

    Attributes:
        voxels: `(X, Y, Z)` its voxels.
        at: Voxel of its peak.
        peak: Value of the map there.
        place: Its location in words.
        strong: Whether the peak exceeds the threshold.
    """

    voxels: Mask
    at: tuple[int, int, int]
    peak: float
    place: str
    strong: bool


def top_regions(
    deviation: Array, regions: Mapping[str, Mask], threshold: float, count: int
) -> list[Finding]:
    """Return the regions around the highest absolute values of a map, which do not touch.

    Args:
        deviation: `(X, Y, Z)`, in normal spreads, see `pipelines.anomaly.normal_model`.
        regions: Masks by name, see `util.metrics.regions.chest_regions`.
        threshold: The peak of a strong region exceeds it.
        count: Largest number of regions.
    """
    remaining = deviation.copy()
    findings: list[Finding] = []
    while len(findings) < count and remaining.any():
        at = np.unravel_index(int(np.abs(remaining).argmax()), remaining.shape)
        peak = float(remaining[at])
        level = max(MIN_SHARE_OF_PEAK * abs(peak), min(MIN_SPREADS, abs(peak)))
        parts, _ = ndimage.label(remaining * np.sign(peak) >= level, NEIGHBOURS)
        voxels = parts == parts[at]
        x, y, z = (int(i) for i in at)
        place = _describe_place(voxels, regions)
        findings.append(Finding(voxels, (x, y, z), peak, place, abs(peak) > threshold))
        remaining[ndimage.binary_dilation(voxels, NEIGHBOURS)] = 0
    return findings


def _describe_place(voxels: Mask, regions: Mapping[str, Mask]) -> str:
    """Return the location of voxels: lung, third, subpleural or central."""
    words = []
    for group in GROUPS:
        counts = {name: (regions[name] & voxels).sum() for name in group if name in regions}
        if counts and max(counts.values()):
            name = max(counts, key=lambda n: counts[n])
            words.append(PLACE_NAMES.get(name, region_name(name)))
    return ", ".join(words) or REGION_NAMES["outside"]


def label_regions(findings: Sequence[Finding], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return the regions as labels 1, 2, ... `(X, Y, Z)`, the strongest first."""
    labels = np.zeros(tuple(shape), np.uint8)
    for number, finding in enumerate(findings, start=1):
        labels[finding.voxels] = number
    return labels


def finding_rows(
    case: str,
    findings: Sequence[Finding],
    difference: Array,
    affine: NDArray[np.floating],
    annotated: Mask | None = None,
) -> list[Row]:
    """Return rows of findings.csv.

    Args:
        case: Name of the case.
        findings: Its regions.
        difference: Scan minus generated mean, HU.
        affine: Voxel index to RAS mm, for the location of the peak.
        annotated: Voxels of known findings, for their share of each region.
    """
    millilitres = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    rows = []
    for number, finding in enumerate(findings, start=1):
        x, y, z = (round(float(v), 1) for v in (affine @ [*finding.at, 1])[:3])
        share: str | float = ""
        if annotated is not None:
            share = round(float(annotated[finding.voxels].mean()), 3)
        row: Row = {
            "case": case,
            "number": number,
            "strong": "yes" if finding.strong else "no",
            "place": finding.place,
            "peak_spreads": round(finding.peak, 2),
            "mean_diff_hu": round(float(difference[finding.voxels].mean()), 1),
            "volume_ml": round(float(finding.voxels.sum() * millilitres), 2),
            "x_mm": x,
            "y_mm": y,
            "z_mm": z,
            "marked_share": share,
        }
        rows.append(row)
    return rows


def finding_sentence(row: Row) -> str:
    """Return a row of findings.csv as a sentence."""
    return f"Region {row['number']}: {_finding_words(row)}"


def strongest_row(rows: Sequence[Row]) -> Row:
    """Return the row of findings.csv with the largest peak, denser or less dense."""
    return max(rows, key=lambda row: abs(float(row["peak_spreads"])))


def strongest_sentence(rows: Sequence[Row], scans: int) -> str:
    """Return the outcome over all scans in a sentence.

    Args:
        rows: Rows of findings.csv.
        scans: Number of scans that were searched.
    """
    strong = {row["case"] for row in rows if row["strong"] == "yes"}
    text = f"A strong region in {len(strong)} of {counted(scans, 'scan')}"
    if not rows:
        return f"{text}; no region stands out."
    row = strongest_row(rows)
    words = _finding_words(row)
    return f"{text}; the highest peak is in region {row['number']} of {row['case']}: {words}"


def _finding_words(row: Row) -> str:
    change = float(row["mean_diff_hu"])
    direction = "denser" if change > 0 else "less dense"
    strength = "strong" if row["strong"] == "yes" else "weak: calibration scans show peaks as high"
    annotated = ""
    if row["marked_share"] not in ("", 0.0):
        annotated = f"; {float(row['marked_share']):.0%} of it marked as known"
    height = float(row["peak_spreads"])
    peak = f"{height:+.1f}".replace("-", "−")
    if change * height < 0:  # the generator errs in the same direction in other scans, by more
        usual = "denser" if height > 0 else "less dense"
        direction = f"{direction} than generated but {usual}"
    return (
        f"{row['place']}, {abs(change):.0f} HU {direction} than expected, "
        f"{float(row['volume_ml']):.3g} ml, peak {peak} usual spreads ({strength}){annotated}."
    )
