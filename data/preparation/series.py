"""DICOM slices to series: grouping, order by position, and checks of the geometry."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.preparation.acquisitions import STEP_TOLERANCE, split_acquisitions
from data.preparation.headers import SliceHeader
from data.preparation.slices import have_same_voxels, is_copy
from data.volumes import LPS_TO_RAS
from util.cli import UserError, counted, format_list

log = logging.getLogger(__name__)

# Relative to the median step between slices.
DUPLICATE_TOLERANCE = 0.01
MAX_UNBROKEN_STEP = 1.5  # a longer one has room for a missing slice

MAX_GAP_MM = 10.0  # a wider gap is never interpolated
MIN_STEP_MM = 1e-3
VOXEL_SIDES_MM = (0.05, 50.0)  # a scan has sides between these
MAX_INTERPOLATED = 4  # times as many slices as there were
MAX_TILT_DEGREES = 0.5


@dataclass(frozen=True)
class DicomSeries:
    """Files of one acquisition that share patient, size, orientation, voxel size and kernel.

    Attributes:
        copies: Number of further files that repeat one of the slices.
        acquisition: What distinguishes it from other acquisitions of its series UID, "" for the
            only one.
        problem: Reason why its slices are not one volume, "" where none is known.
        warnings: Remarks for the report.
    """

    headers: tuple[SliceHeader, ...]
    copies: int = 0
    acquisition: str = ""
    problem: str = ""
    warnings: tuple[str, ...] = ()

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
        """Its number, modality, kernel and size, without the UID that identifies it."""
        facts = [self.first.modality or "?", self.first.kernel, counted(len(self.headers), "slice")]
        return f"{self.short_title} ({', '.join(filter(None, facts))})"

    @property
    def short_title(self) -> str:
        """Its number, and its acquisition where the series has several."""
        title = f"series {self.first.series_number or '?'}"
        return f"{title}, {self.acquisition}" if self.acquisition else title


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
    """Group slices to series in a stable order.

    Slices of two patients are never in one series. A file that repeats another one is left out;
    one that shares its UID alone is a slice of its own. Several acquisitions that cover the same
    places become several series.
    """
    groups: dict[tuple[object, ...], list[SliceHeader]] = defaultdict(list)
    for header in sorted(headers, key=lambda h: str(h.path)):
        key: tuple[object, ...] = (
            header.study,
            header.series,
            header.modality,
            header.sop_class,
            header.size,
            header.kernel,
            tuple(round(v, 3) for v in header.spacing),
            tuple(round(v, 2) for v in header.orientation),
            header.patient,
        )
        groups[key].append(header)
    series = []
    for key in sorted(groups, key=str):
        series += _split_group(groups[key])
    return series


def _split_group(headers: Sequence[SliceHeader]) -> list[DicomSeries]:
    """Return the series of one group, without copies, one for each acquisition."""
    distinct: list[SliceHeader] = []
    by_uid: dict[str, list[SliceHeader]] = defaultdict(list)
    same_uid: list[tuple[SliceHeader, SliceHeader]] = []
    for header in headers:
        earlier = by_uid[header.instance] if header.instance else []
        if any(is_copy(header, other) for other in earlier):
            continue
        if earlier:
            same_uid.append((earlier[0], header))
        earlier.append(header)
        distinct.append(header)
    warnings = []
    if same_uid:
        first, second = same_uid[0]
        log.warning(
            "%s and %s have one SOPInstanceUID, but are different slices; both were read.",
            first.path,
            second.path,
        )
        warnings.append(
            f"{counted(len(same_uid), 'slice shares', 'slices share')} the UID of another one, so "
            "that UIDs were cut or made anew; all were read"
        )
    acquisitions = split_acquisitions(distinct)
    if len(acquisitions) > 1:
        warnings.append(
            f"its series UID holds {len(acquisitions)} acquisitions or reconstructions of the same "
            "places: one was taken, the others are listed as left out"
        )
    copies = len(headers) - len(distinct)
    return [
        DicomSeries(part.headers, copies, part.title, part.problem, tuple(warnings))
        for part in acquisitions
    ]


def stack_slices(series: DicomSeries, uneven: str = "error", is_ct: bool = True) -> SliceStack:
    """Return the slices of a series in the order of their positions, checked.

    highdicom's `get_volume_from_series` gives the same geometry, but does not replace this code:
    it needs a frame of reference, refuses steps that differ by 2 %, accepts a tilt tag and absent
    rescale tags, has one message for missing, doubled and uneven slices, and keeps whole headers.

    Args:
        series: One series.
        uneven: "error", or "resample": slices that repeat another one are dropped and gaps up to
            `MAX_GAP_MM` are left for `pixels` to interpolate.
        is_ct: Whether values must become HU, which rescale tags give.

    Raises:
        UserError: Several frames in a file, a CT without rescale tags, no position, a tilted
            gantry; two different slices at one place; repeated or missing slices and uneven steps,
            unless they are resampled.
    """
    _check_headers(series, is_ct)
    distances = [float(np.dot(header.position, series.normal)) for header in series.headers]
    order = np.argsort(distances, kind="stable")
    headers = [series.headers[i] for i in order]
    positions = np.array(distances)[order]
    step = _median_step(series, positions)
    _check_tilt(series, headers)
    problems: list[str] = []
    doubled = np.flatnonzero(np.diff(positions) < DUPLICATE_TOLERANCE * step) + 1
    if len(doubled):
        problem = (
            f"{counted(len(doubled), 'slice lies', 'slices lie')} at the place of another one, "
            f"the first at {positions[doubled[0]]:.2f} mm"
        )
        _check_same_voxels(series, headers, doubled.tolist(), problem)
        problems.append(problem)
        headers = [headers[i] for i in np.delete(np.arange(len(headers)), doubled)]
        positions = np.delete(positions, doubled)
    problems += _step_problems(positions, step)
    if problems:
        _check_repairable(series, problems, positions, step, uneven)
    else:
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
    repairs = [f"{problem}: interpolated" for problem in problems]
    warnings = (*series.warnings, *repairs, *_number_warnings(series))
    return SliceStack(tuple(headers), positions, series.normal * step, warnings)


def _check_headers(series: DicomSeries, is_ct: bool) -> None:
    if series.problem:
        raise UserError(
            f"{series.title} {series.problem}, so that nobody knows which slices belong together. "
            "Export each acquisition as a series of its own."
        )
    if any(header.frames > 1 for header in series.headers):
        raise UserError(
            f"{series.title} has several frames in a file. Export it as single-frame DICOM, one "
            "slice per file."
        )
    if is_ct and any(header.rescale is None for header in series.headers):
        raise UserError(
            f"{series.title} has no rescale slope or intercept, so its values are not in HU. "
            "Export it again from the scanner or archive, with all its tags."
        )
    if not all(h.position and h.orientation and h.spacing for h in series.headers):
        raise UserError(
            f"{series.title} does not say where its slices lie (position, orientation or pixel "
            "spacing is missing). Export the original series again."
        )
    low, high = VOXEL_SIDES_MM
    if not all(low <= side <= high for side in series.first.spacing) or min(series.first.size) < 1:
        raise UserError(
            f"{series.title} has pixels of size {series.first.spacing} mm, expected are {low:g} to "
            f"{high:g} mm. Export it again."
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
        count = round(float((gaps[missing] / step - 1).sum()))
        missed = counted(count, "slice is", "slices are")
        return [f"{missed} missing, the first after {positions[missing[0]]:.2f} mm"]
    if not np.allclose(gaps, step, rtol=STEP_TOLERANCE):
        return [f"the steps between slices run from {gaps.min():.3g} to {gaps.max():.3g} mm"]
    return []


def _check_same_voxels(
    series: DicomSeries, headers: Sequence[SliceHeader], doubled: Sequence[int], problem: str
) -> None:
    """Raise `UserError` where two different slices lie at one place: nobody knows which is right.

    Args:
        headers: Its slices by position.
        doubled: Indices of slices at the place of the slice before.
        problem: What to say of them.
    """
    for i in doubled:
        if not have_same_voxels(headers[i - 1], headers[i]):
            raise UserError(
                f"{series.title}: {problem}, and {headers[i - 1].path} and {headers[i].path} "
                "differ there. Two acquisitions or reconstructions are mixed, or the places are "
                "wrong. Export them as series of their own."
            )


def _check_repairable(
    series: DicomSeries,
    problems: Sequence[str],
    positions: NDArray[np.float64],
    step: float,
    uneven: str,
) -> None:
    widest_gap = float(np.diff(positions).max())
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
    if np.ptp(positions) > MAX_INTERPOLATED * len(positions) * step:
        raise UserError(
            f"{series.title}: {'; '.join(problems)}; more than {MAX_INTERPOLATED} times as many "
            "slices would be interpolated. Export the complete series again."
        )


def _number_warnings(series: DicomSeries) -> list[str]:
    """Return warnings of numbers with gaps or without order, the only sign of some mistakes."""
    by_place = sorted(series.headers, key=lambda h: float(np.dot(h.position, series.normal)))
    known = [header.number for header in by_place if header.number is not None]
    numbers = sorted(set(known))
    if len(numbers) != len(series.headers):
        return []
    warnings = []
    if known not in (numbers, numbers[::-1]):
        warnings.append(
            "the numbers of the slices do not follow their places: the numbers or the places may "
            "be wrong"
        )
    first = numbers[0] if series.acquisition else min(1, numbers[0])
    # Counted before they are listed: a single odd number would ask for all memory.
    count = numbers[-1] - first + 1 - len(numbers)
    if 0 < count <= len(numbers):
        absent = sorted(set(range(first, numbers[-1] + 1)) - set(numbers))
        shown = format_list([str(n) for n in absent], 4)
        warnings.append(
            f"the numbers of the slices have gaps (absent: {shown}): slices may be missing at an "
            "end"
        )
    return warnings
