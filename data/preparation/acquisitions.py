"""Several acquisitions or reconstructions under one series UID, taken apart.

They cover the same part of the body. Together they would be interleaved to a volume that was never
scanned, and its steps can even be the right ones.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.cohort import natural_key
from data.preparation.headers import SliceHeader

STEP_TOLERANCE = 0.03  # relative to the median step; headers are rounded, and tables creep
SAME_PLACE_MM = 1e-3
MIN_COMMON_SHARE = 0.5  # of the shorter acquisition's extent; below, they overlap only in part
MAX_NUMBERED = 10  # acquisitions that the numbers of slices can show
MIN_NUMBERED_SLICES = 5

Slices = list[SliceHeader]
SortKey = tuple[Any, ...]


@dataclass(frozen=True)
class Acquisition:
    """One acquisition of a series.

    Attributes:
        title: What distinguishes it from the others of the series, "" for the only one.
        problem: Reason why it cannot be taken apart from another one, as part of a sentence.
    """

    headers: tuple[SliceHeader, ...]
    title: str = ""
    problem: str = ""


@dataclass(frozen=True)
class _Criterion:
    """A field that distinguishes acquisitions.

    Attributes:
        name: Its name in titles.
        value: Returns the field of a slice.
        is_certain: Whether other values mean another acquisition; numbers of slices only suggest
            it.
    """

    name: str
    value: Callable[[SliceHeader], Hashable]
    is_certain: bool = True


def _image_type(header: SliceHeader) -> str:
    """Return the image type, original ones first in order."""
    rank = "0" if "ORIGINAL" in header.image_types else "1"
    return "\\".join((rank, *header.image_types))


CRITERIA = (
    _Criterion("temporal position", lambda header: header.temporal_position),
    _Criterion("acquisition number", lambda header: header.acquisition_number),
    _Criterion("acquisition time", lambda header: header.acquisition_time),
    _Criterion("slice thickness", lambda header: dict(header.row).get("SLICE THICKNESS", "")),
    _Criterion("tube voltage", lambda header: dict(header.row).get("KVP", "")),
    _Criterion("image type", _image_type),
    _Criterion("numbers of slices", lambda header: header.number, is_certain=False),
)


def split_acquisitions(headers: Sequence[SliceHeader]) -> list[Acquisition]:
    """Take the slices of a series apart where several acquisitions cover the same places.

    Acquisitions one above the other stay together, because many scanners number every turn of the
    tube.

    Args:
        headers: Slices of one series that share orientation and voxel size.
    """
    if not all(header.position and header.orientation for header in headers):
        return [Acquisition(tuple(headers))]
    normal = np.cross(headers[0].orientation[:3], headers[0].orientation[3:])
    parts = [Acquisition(tuple(headers))]
    for criterion in CRITERIA:
        parts = [new for part in parts for new in _split(part, criterion, normal)]
    return parts


def _split(
    part: Acquisition, criterion: _Criterion, normal: NDArray[np.float64]
) -> list[Acquisition]:
    passes = _find_passes(part.headers, criterion, normal)
    if len(passes) < 2:
        return [part]
    places = [_places(slices, normal) for slices in passes]
    together = _places(part.headers, normal)
    # Interleaved turns of one acquisition: each has gaps, which the others fill.
    if _is_even(together) and not all(map(_is_even, places)):
        return [part]
    share = _smallest_common_share(places)
    if not criterion.is_certain:
        is_clear = (
            len(passes) <= MAX_NUMBERED
            and min(map(len, passes)) >= MIN_NUMBERED_SLICES
            and all(map(_is_even, places))
            and share >= MIN_COMMON_SHARE
        )
        if not is_clear:
            return [part]
    if share < MIN_COMMON_SHARE:
        problem = (
            f"holds {len(passes)} acquisitions that overlap only in part, by their "
            f"{criterion.name} (such as {passes[0][0].path} and {passes[1][0].path})"
        )
        return [Acquisition(part.headers, part.title, part.problem or problem)]
    parts = []
    for i, slices in enumerate(passes, start=1):
        title = f"acquisition {i} of {len(passes)} by {criterion.name}"
        titles = ", ".join(filter(None, (part.title, title)))
        parts.append(Acquisition(tuple(slices), titles, part.problem))
    return parts


def _find_passes(
    headers: Sequence[SliceHeader], criterion: _Criterion, normal: NDArray[np.float64]
) -> list[Slices]:
    """Return the slices in passes over the body, in the order of a field.

    A new pass begins where the slices of the next value lie among those of the current one.
    """
    by_value: dict[Hashable, Slices] = defaultdict(list)
    for header in headers:
        by_value[criterion.value(header)].append(header)
    if len(by_value) < 2:
        return [list(headers)]
    passes: list[Slices] = []
    low = high = 0.0
    for value in sorted(by_value, key=_sort_key):
        places = _places(by_value[value], normal)
        overlaps = places[0] <= high + SAME_PLACE_MM and places[-1] >= low - SAME_PLACE_MM
        if not passes or overlaps:
            passes.append([])
            low, high = places[0], places[-1]
        passes[-1] += by_value[value]
        low = min(low, places[0])
        high = max(high, places[-1])
    return passes


def _sort_key(value: Hashable) -> SortKey:
    """Return a key that sorts numbers by size, and unknown values last."""
    if value is None or value == "":
        return (1,)
    if isinstance(value, int):
        return (0, value)
    return (0, natural_key(str(value)))


def _places(headers: Sequence[SliceHeader], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sort([float(np.dot(header.position, normal)) for header in headers])


def _is_even(places: NDArray[np.float64]) -> bool:
    steps = np.diff(places)
    if len(steps) < 2:
        return bool((steps > SAME_PLACE_MM).all())
    step = float(np.median(steps))
    return step > SAME_PLACE_MM and bool(np.allclose(steps, step, rtol=STEP_TOLERANCE, atol=0))


def _smallest_common_share(places: Sequence[NDArray[np.float64]]) -> float:
    """Return the smallest share of the shorter of two neighbours that they have in common."""
    shares = []
    for first, second in itertools.pairwise(places):
        common = min(first[-1], second[-1]) - max(first[0], second[0])
        shorter = min(np.ptp(first), np.ptp(second))
        shares.append(common / shorter if shorter > SAME_PLACE_MM else 1.0)
    return float(min(shares))
