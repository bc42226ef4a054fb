"""Slices to series: grouping, order by place, and everything that makes a series no volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.preparation.headers import SliceHeader
from data.volumes import LPS_TO_RAS
from util.cli import UserError, format_list

# Steps between slices may differ from their median by this share: headers are rounded, tables
# creep.
EVEN = 0.03
SAME_PLACE = 0.01  # slices closer than this share of a step lie at one place
WIDEST_MM = 10.0  # a gap above this is never interpolated
TILT_DEGREES = 0.5


@dataclass(frozen=True)
class Series:
    """Files of one series that share size, orientation, voxel size and kernel; `copies` files were
    there once more.
    """

    headers: tuple[SliceHeader, ...]
    copies: int = 0

    @property
    def first(self) -> SliceHeader:
        return self.headers[0]

    def name(self) -> str:
        """How people find it: its number, without the UID that identifies it."""
        return f"series {self.first.series_number or '?'} ({self.first.modality or '?'}, {len(self.headers)} slices)"


@dataclass(frozen=True)
class Stack:
    """Slices in order: `headers` from the first to the last, `places` (N,) in mm along `step` (3,)
    mm, LPS; `warnings`.
    """

    headers: tuple[SliceHeader, ...]
    places: NDArray[np.float64]
    step: NDArray[np.float64]
    warnings: tuple[str, ...] = ()

    @property
    def even(self) -> bool:
        gaps = np.diff(self.places)
        return bool(np.allclose(gaps, np.linalg.norm(self.step), rtol=EVEN))

    def affine(self) -> NDArray[np.float64]:
        """Index (column, row, slice) to RAS mm."""
        first, affine = self.headers[0], np.eye(4)
        affine[:3, 0] = np.array(first.orientation[:3]) * first.spacing[1]
        affine[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
        affine[:3, 2], affine[:3, 3] = self.step, first.position
        return LPS_TO_RAS @ affine


def group(headers: Sequence[SliceHeader]) -> list[Series]:
    """Series in a stable order; a file that is there twice is taken once."""
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
    return [Series(tuple(groups[key].values()), copies[key]) for key in sorted(groups, key=str)]


def stack(series: Series, uneven: str = "error") -> Stack:
    """The slices of a series in order of their place, checked.

    Args:
        series: One series.
        uneven: "error", or "resample": doubled slices are dropped and gaps up to `WIDEST_MM`
            interpolated (by `pixels`).

    Raises:
        UserError: Several frames a file, no rescale tags, no place, a tilted gantry; doubled or
            missing slices and uneven steps, unless they are resampled.
    """
    _check_headers(series)
    normal = np.cross(series.first.orientation[:3], series.first.orientation[3:])
    along = [float(np.dot(h.position, normal)) for h in series.headers]
    order = np.argsort(along, kind="stable")
    headers, places = [series.headers[i] for i in order], np.array(along)[order]
    if len(headers) < 2:
        raise UserError(f"{series.name()} has one slice only; a volume needs several.")
    usual = (
        float(np.median(np.diff(places)[np.diff(places) > 1e-3])) if np.ptp(places) > 1e-3 else 0.0
    )
    if not usual:
        raise UserError(f"{series.name()}: all slices lie at one place. Export the series again.")
    _check_tilt(series, headers)
    headers, places, warnings = _check_steps(series, headers, places, usual, uneven)
    step = normal * (usual if len(warnings) else (places[-1] - places[0]) / (len(places) - 1))
    return Stack(tuple(headers), places, step, tuple(warnings + _number_warnings(headers)))


def _check_headers(series: Series) -> None:
    if any(h.frames > 1 for h in series.headers):
        raise UserError(
            f"{series.name()} has several frames in a file. Export it as single-frame CT, one "
            "slice a file."
        )
    if any(h.rescale is None for h in series.headers):
        raise UserError(
            f"{series.name()} has no rescale slope or intercept, so its values are no HU. Export "
            "it again from the scanner or archive, with all its tags."
        )
    if not all(h.position and h.orientation and h.spacing for h in series.headers):
        raise UserError(
            f"{series.name()} does not say where its slices lie (position, orientation or pixel "
            "spacing is missing). Export the original series again."
        )
    if min(series.first.spacing) <= 0 or min(series.first.size) < 1:
        raise UserError(
            f"{series.name()} has pixels of size {series.first.spacing} mm. Export it again."
        )


def _check_tilt(series: Series, headers: Sequence[SliceHeader]) -> None:
    normal = np.cross(headers[0].orientation[:3], headers[0].orientation[3:])
    moved = np.subtract(headers[-1].position, headers[0].position)
    angle = float(
        np.degrees(np.arccos(np.clip(np.dot(moved, normal) / np.linalg.norm(moved), -1, 1)))
    )
    tilt = max(angle, max(abs(h.tilt) for h in headers))
    if tilt > TILT_DEGREES:
        raise UserError(
            f"{series.name()} was taken with a gantry tilted by {tilt:.1f} degrees, so its slices "
            "are no straight stack. Correct the tilt first, such as with dcm2niix, and prepare "
            "its volumes."
        )


def _check_steps(
    series: Series,
    headers: list[SliceHeader],
    places: NDArray[np.float64],
    usual: float,
    uneven: str,
) -> tuple[list[SliceHeader], NDArray[np.float64], list[str]]:
    """Slices without doubles and what was said of them; raises `UserError` for what is not even."""
    problems = []
    doubled = np.flatnonzero(np.diff(places) < SAME_PLACE * usual) + 1
    if len(doubled):
        problems.append(
            f"{len(doubled)} slices lie at the place of another one, the first at "
            f"{places[doubled[0]]:.2f} mm"
        )
        headers = [h for i, h in enumerate(headers) if i not in set(doubled.tolist())]
        places = np.delete(places, doubled)
    gaps = np.diff(places)
    missing = np.flatnonzero(gaps > 1.5 * usual)
    if len(missing):
        count = int(np.rint(gaps[missing] / usual - 1).sum())
        problems.append(f"{count} slices are missing, the first after {places[missing[0]]:.2f} mm")
    if not len(missing) and not np.allclose(gaps, usual, rtol=EVEN):
        problems.append(
            f"the steps between slices run from {gaps.min():.3g} to {gaps.max():.3g} mm"
        )
    if problems and uneven == "error":
        raise UserError(
            f"{series.name()}: {'; '.join(problems)}. Export the complete series again, or "
            "interpolate with --uneven resample."
        )
    if problems and gaps.max() > WIDEST_MM:
        raise UserError(
            f"{series.name()}: {'; '.join(problems)}; a gap of {gaps.max():.1f} mm is not "
            f"interpolated (at most {WIDEST_MM:g} mm). Export the complete series again."
        )
    return headers, places, [f"{problem}: interpolated" for problem in problems]


def _number_warnings(headers: Sequence[SliceHeader]) -> list[str]:
    """Gaps in the numbering, which may be slices missing at an end."""
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
