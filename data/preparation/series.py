"""DICOM slices to series: grouping, order by position, and checks of the geometry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.preparation.headers import SliceHeader
from data.volumes import LPS_TO_RAS
from util.cli import UserError, format_list

# Relative to the median step between slices.
STEP_TOLERANCE = 0.03  # headers are rounded, and tables creep
DUPLICATE_TOLERANCE = 0.01
MAX_UNBROKEN_STEP = 1.5  # a longer one has room for a missing slice

MAX_GAP_MM = 10.0  # a wider gap is never interpolated
MIN_STEP_MM = 1e-3
MAX_TILT_DEGREES = 0.5


@dataclass(frozen=True)
class DicomSeries:
    """Files of one series that share size, orientation, voxel size and kernel.

    Attributes:
        headers: The slices.
        copies: Number of further files that repeat one of the slices.
    """

    headers: tuple[SliceHeader, ...]
    copies: int = 0

    @property
    def first(self) -> SliceHeader:
        """Its first header, for what all of them share."""
        return self.headers[0]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector (3,) across the slices, LPS."""
        return np.cross(self.first.orientation[:3], self.first.orientation[3:])

    @property
    def title(self) -> str:
        """Its number, modality and size, without the UID that identifies it."""
        number = self.first.series_number or "?"
        modality = self.first.modality or "?"
        return f"series {number} ({modality}, {len(self.headers)} slices)"


@dataclass(frozen=True)
class SliceStack:
    """Checked slices in the order of their positions.

    Attributes:
        headers: The N slices.
        positions: Their positions (N,) across the slices in mm.
        step: Vector (3,) from one slice to the next in mm, LPS.
        warnings: Remarks for the report.
    """

    headers: tuple[SliceHeader, ...]
    positions: NDArray[np.float64]
    step: NDArray[np.float64]
    warnings: tuple[str, ...] = ()

    @property
    def is_even(self) -> bool:
        """Whether all steps are the same within `STEP_TOLERANCE`."""
        gaps = np.diff(self.positions)
        return bool(np.allclose(gaps, np.linalg.norm(self.step), rtol=STEP_TOLERANCE))

    def affine(self) -> NDArray[np.float64]:
        """Return the affine (4, 4) from index (column, row, slice) to RAS mm."""
        first = self.headers[0]
        affine = np.eye(4)
        affine[:3, 0] = np.array(first.orientation[:3]) * first.spacing[1]
        affine[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
        affine[:3, 2] = self.step
        affine[:3, 3] = first.position
        return LPS_TO_RAS @ affine


def group_series(headers: Sequence[SliceHeader]) -> list[DicomSeries]:
    """Group slices to series in a stable order; a slice that occurs twice is taken once."""
    groups: dict[tuple[object, ...], dict[str, SliceHeader]] = defaultdict(dict)
    copies: dict[tuple[object, ...], int] = defaultdict(int)
    for header in sorted(headers, key=lambda h: str(h.path)):
        key = (
            header.study,
            header.series,
            header.modality,
            header.sop_class,
            header.size,
            header.kernel,
            tuple(round(v, 3) for v in header.spacing),
            tuple(round(v, 2) for v in header.orientation),
        )
        copies[key] += header.instance in groups[key]
        groups[key].setdefault(header.instance or str(header.path), header)
    return [DicomSeries(tuple(groups[k].values()), copies[k]) for k in sorted(groups, key=str)]


def stack_slices(series: DicomSeries, uneven: str = "error") -> SliceStack:
    """Return the slices of a series in the order of their positions, checked.

    highdicom's `get_volume_from_series` gives the same geometry, but does not replace this code:
    it needs a frame of reference, refuses steps that differ by 2 %, accepts a tilt tag and absent
    rescale tags, has one message for missing, doubled and uneven slices, and keeps whole headers.

    Args:
        series: One series.
        uneven: "error", or "resample": doubled slices are dropped and gaps up to `MAX_GAP_MM`
            are left for `pixels` to interpolate.

    Raises:
        UserError: Several frames in a file, no rescale tags, no position, a tilted gantry; doubled
            or missing slices and uneven steps, unless they are resampled.
    """
    _check_headers(series)
    distances = [float(np.dot(header.position, series.normal)) for header in series.headers]
    order = np.argsort(distances, kind="stable")
    headers = [series.headers[i] for i in order]
    positions = np.array(distances)[order]
    step = _median_step(series, positions)
    _check_tilt(series, headers)
    problems: list[str] = []
    doubled = np.flatnonzero(np.diff(positions) < DUPLICATE_TOLERANCE * step) + 1
    if len(doubled):
        problems.append(
            f"{len(doubled)} slices lie at the place of another one, the first at "
            f"{positions[doubled[0]]:.2f} mm"
        )
        headers = [headers[i] for i in np.delete(np.arange(len(headers)), doubled)]
        positions = np.delete(positions, doubled)
    problems += _step_problems(positions, step)
    if problems:
        _check_repairable(series, problems, float(np.diff(positions).max()), uneven)
    else:
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
    repairs = [f"{problem}: interpolated" for problem in problems]
    warnings = (*repairs, *_number_warnings(headers))
    return SliceStack(tuple(headers), positions, series.normal * step, warnings)


def _check_headers(series: DicomSeries) -> None:
    if any(header.frames > 1 for header in series.headers):
        raise UserError(
            f"{series.title} has several frames in a file. Export it as single-frame CT, one slice "
            "per file."
        )
    if any(header.rescale is None for header in series.headers):
        raise UserError(
            f"{series.title} has no rescale slope or intercept, so its values are not in HU. "
            "Export it again from the scanner or archive, with all its tags."
        )
    if not all(h.position and h.orientation and h.spacing for h in series.headers):
        raise UserError(
            f"{series.title} does not say where its slices lie (position, orientation or pixel "
            "spacing is missing). Export the original series again."
        )
    if min(series.first.spacing) <= 0 or min(series.first.size) < 1:
        raise UserError(
            f"{series.title} has pixels of size {series.first.spacing} mm. Export it again."
        )
    if len(series.headers) < 2:
        raise UserError(f"{series.title} has one slice only; a volume needs several.")


def _median_step(series: DicomSeries, positions: NDArray[np.float64]) -> float:
    steps = np.diff(positions)
    if np.ptp(positions) <= MIN_STEP_MM or not (steps > MIN_STEP_MM).any():
        raise UserError(f"{series.title}: all slices lie at one place. Export the series again.")
    return float(np.median(steps[steps > MIN_STEP_MM]))


def _check_tilt(series: DicomSeries, headers: Sequence[SliceHeader]) -> None:
    normal = np.cross(headers[0].orientation[:3], headers[0].orientation[3:])
    moved = np.subtract(headers[-1].position, headers[0].position)
    cosine = np.clip(np.dot(moved, normal) / np.linalg.norm(moved), -1, 1)
    tilt = max(float(np.degrees(np.arccos(cosine))), *(abs(h.tilt) for h in headers))
    if tilt > MAX_TILT_DEGREES:
        raise UserError(
            f"{series.title} was taken with a gantry tilted by {tilt:.1f} degrees, so its slices "
            "are not a straight stack. Correct the tilt first, for example with dcm2niix, and "
            "prepare its volumes."
        )


def _step_problems(positions: NDArray[np.float64], step: float) -> list[str]:
    """Return problems of the steps between slices at different positions."""
    gaps = np.diff(positions)
    missing = np.flatnonzero(gaps > MAX_UNBROKEN_STEP * step)
    if len(missing):
        count = int(np.rint(gaps[missing] / step - 1).sum())
        return [f"{count} slices are missing, the first after {positions[missing[0]]:.2f} mm"]
    if not np.allclose(gaps, step, rtol=STEP_TOLERANCE):
        return [f"the steps between slices run from {gaps.min():.3g} to {gaps.max():.3g} mm"]
    return []


def _check_repairable(
    series: DicomSeries, problems: Sequence[str], widest_gap: float, uneven: str
) -> None:
    if uneven == "error":
        raise UserError(
            f"{series.title}: {'; '.join(problems)}. Export the complete series again, or "
            "interpolate with --uneven resample."
        )
    if widest_gap > MAX_GAP_MM:
        raise UserError(
            f"{series.title}: {'; '.join(problems)}; a gap of {widest_gap:.1f} mm is not "
            f"interpolated (at most {MAX_GAP_MM:g} mm). Export the complete series again."
        )


def _number_warnings(headers: Sequence[SliceHeader]) -> list[str]:
    """Return a warning of gaps in the numbering, where slices may be missing at an end."""
    numbers = sorted({h.number for h in headers if h.number is not None})
    if len(numbers) != len(headers):
        return []
    absent = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
    if not absent or len(absent) > len(headers):
        return []
    shown = format_list([str(n) for n in absent], 4)
    return [
        f"the numbers of the slices have gaps (absent: {shown}): slices may be missing at an end"
    ]
