"""The strongest regions of a map, with their place in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from util.metrics.regions import Mask

Array = NDArray[np.floating]

EXTENT = 0.5  # a region is what reaches this share of its peak around it ...
MIN_SPREADS = 3.0  # ... and so many usual spreads, for the voxels round a low peak are chance
NEIGHBOURS = np.ones((3, 3, 3), bool)
# Of each group the region that holds most of a finding's voxels names its place.
GROUPS = (("right_lung", "left_lung"), ("upper", "middle", "lower"), ("rim", "core"))
SPOKEN = {
    "rim": "near the pleura",
    "core": "away from the pleura",
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
    """One region: its voxels, the voxel and the value of its peak, and its place in words."""

    voxels: Mask
    at: tuple[int, int, int]
    peak: float
    place: str
    strong: bool


def top_regions(
    found: Array, regions: Mapping[str, Mask], threshold: float, most: int
) -> list[Finding]:
    """The regions round the highest absolute values, one after the other; they do not touch.

    Args:
        found: `(X, Y, Z)`, in usual spreads, see `pipelines.anomaly.normal_model`.
        regions: Masks by name, see `util.metrics.fidelity.regions.regions`.
        threshold: What a strong region's peak exceeds.
        most: How many regions.
    """
    left = found.copy()
    made: list[Finding] = []
    while len(made) < most and left.any():
        at = np.unravel_index(int(np.abs(left).argmax()), left.shape)
        peak = float(left[at])
        level = max(EXTENT * abs(peak), min(MIN_SPREADS, abs(peak)))
        parts, _ = ndimage.label(left * np.sign(peak) >= level, NEIGHBOURS)
        voxels = parts == parts[at]
        x, y, z = (int(i) for i in at)
        made.append(
            Finding(voxels, (x, y, z), peak, _place(voxels, regions), abs(peak) > threshold)
        )
        left[ndimage.binary_dilation(voxels, NEIGHBOURS)] = 0
    return made


def _place(voxels: Mask, regions: Mapping[str, Mask]) -> str:
    """Where voxels lie: lung, third, rim or core."""
    words = []
    for group in GROUPS:
        shares = {name: (regions[name] & voxels).sum() for name in group if name in regions}
        if shares and max(shares.values()):
            name = max(shares, key=lambda n: shares[n])
            words.append(SPOKEN.get(name, name.replace("_", " ")))
    return ", ".join(words) or "outside the lungs"


def label_regions(findings: Sequence[Finding], shape: Sequence[int]) -> NDArray[np.uint8]:
    """The regions as labels 1, 2, ... `(X, Y, Z)`, the strongest first."""
    labels = np.zeros(tuple(shape), np.uint8)
    for number, finding in enumerate(findings, start=1):
        labels[finding.voxels] = number
    return labels


def finding_rows(
    case: str,
    findings: Sequence[Finding],
    difference: Array,
    affine: NDArray[np.floating],
    marked: Mask | None = None,
) -> list[dict[str, str | float]]:
    """Rows of findings.csv.

    Args:
        case: The scan.
        findings: Its regions.
        difference: Scan minus generated mean, HU.
        affine: Voxel index to RAS mm; the peak's place is given in it.
        marked: Voxels of known findings; the share of each region's voxels among them is told.
    """
    millilitre = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    rows: list[dict[str, str | float]] = []
    for number, f in enumerate(findings, start=1):
        x, y, z = (affine @ [*f.at, 1])[:3]
        share = "" if marked is None else round(float(marked[f.voxels].mean()), 3)
        change, volume = float(difference[f.voxels].mean()), float(f.voxels.sum() * millilitre)
        values = (
            case,
            number,
            "yes" if f.strong else "no",
            f.place,
            round(f.peak, 2),
            round(change, 1),
            round(volume, 2),
            *(round(float(v), 1) for v in (x, y, z)),
            share,
        )
        rows.append(dict(zip(FINDING_COLUMNS, values, strict=True)))
    return rows


def finding_sentence(row: Mapping[str, str | float]) -> str:
    """A row of findings.csv for reading."""
    change = float(row["mean_diff_hu"])
    strength = "strong" if row["strong"] == "yes" else "weak: calibration scans show peaks as high"
    marked = (
        f"; {float(row['marked_share']):.0%} of it marked as known"
        if row["marked_share"] not in ("", 0.0)
        else ""
    )
    return (
        f"Region {row['number']}: {row['place']}, {abs(change):.0f} HU "
        f"{'denser' if change > 0 else 'less dense'} than expected, {row['volume_ml']} ml, peak "
        f"{float(row['peak_spreads']):+.1f} usual spreads ({strength}){marked}.".replace("-", "−")
    )
