"""Which series of a study becomes its scan, and why the others do not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.preparation.series import Series

SOFT, LUNG = "soft", "lung"
NOT_CHEST = (
    "HEAD",
    "BRAIN",
    "NECK",
    "SKULL",
    "KNEE",
    "PELVIS",
    "LEG",
    "ARM",
    "HAND",
    "FOOT",
    "ANKLE",
    "SHOULDER",
)
NO_SLICES = ("LOCALIZER", "SCOUT", "SECONDARY", "MIP", "MPR", "PROJECTION IMAGE", "SCREEN SAVE")
AXIAL_COSINE = (
    0.85  # slices turned further than about 30 degrees out of the axial plane are reformations
)
_SOFT_NAMES = ("standard", "soft", "smooth", "body", "detail", "medium")
_SHARP_NAMES = ("lung", "bone", "edge", "sharp", "ultra", "chest")


@dataclass(frozen=True)
class Choice:
    """The series taken, None where none is fit, and the others with the reason each was left
    out.
    """

    chosen: Series | None
    left_out: tuple[tuple[str, str], ...]


def kernel_class(kernel: str) -> str:
    """ "soft", "lung" (sharp) or "" (not known) from the makers' names of reconstruction
    kernels.
    """
    name = kernel.casefold()
    if any(word in name for word in _SHARP_NAMES):
        return LUNG
    if any(word in name for word in _SOFT_NAMES):
        return SOFT
    if siemens := re.match(r"[bihutd][a-z]?(\d\d)", name):  # B30f, Br40, I70f
        return LUNG if int(siemens[1]) >= 50 else SOFT
    if toshiba := re.match(r"fc(\d\d)", name):
        return LUNG if int(toshiba[1]) in (*range(30, 40), *range(50, 60), *range(80, 90)) else SOFT
    philips = name.split()[0] if name.split() else ""
    return (
        SOFT
        if philips in ("a", "b", "c")
        else LUNG
        if philips in ("d", "e", "l", "ya", "yb", "yc", "yd")
        else ""
    )


def unfit(series: Series, fewest: int) -> str:
    """Why a series can be no scan of the chest; "" where it can."""
    first = series.first
    if first.modality != "CT":
        return f"its modality is {first.modality or 'not given'}, not CT"
    named = [k for k in first.kinds if k in NO_SLICES]
    if named or "1.2.840.10008.5.1.4.1.1.7" in first.sop_class:
        return f"it is {(named or ['a secondary capture'])[0].lower()}, no series of slices"
    if any(part in first.body_part for part in NOT_CHEST) and "CHEST" not in first.body_part:
        return f"it shows {first.body_part.lower()}, not the chest"
    if first.frames == 1 and len(series.headers) < fewest:
        return f"it has {len(series.headers)} slices, fewer than --min_slices {fewest}"
    if len(first.orientation) == 6:
        normal = np.cross(first.orientation[:3], first.orientation[3:])
        if abs(float(normal[2])) < AXIAL_COSINE:
            return "its slices are not axial"
    return ""


def choose(candidates: Sequence[Series], kernel: str = "any", fewest: int = 30) -> Choice:
    """Picks one series: of the kernel asked for if there is one, then with most slices, then the
    thinnest.

    Args:
        candidates: The series of one study.
        kernel: "any", "soft" or "lung".
        fewest: A series with fewer slices is no chest.
    """
    reasons = {id(s): unfit(s, fewest) for s in candidates}
    fit = [s for s in candidates if not reasons[id(s)]]
    best = max(fit, key=lambda s: _rank(s, kernel), default=None)
    left_out = []
    for series in candidates:
        if series is not best:
            reason = (
                reasons[id(series)]
                or f"{_worse(series, best, kernel)} than series {best.first.series_number}"
            )  # type: ignore[union-attr]
            left_out.append((series.name(), reason))
    return Choice(best, tuple(left_out))


def _rank(series: Series, kernel: str) -> tuple[bool, int, float]:
    matches = kernel != "any" and kernel_class(series.first.kernel) == kernel
    return matches, len(series.headers), -(series.first.thickness or 99.0)


def _worse(series: Series, best: Series | None, kernel: str) -> str:
    mine, other = _rank(series, kernel), _rank(best, kernel) if best else (False, 0, 0.0)
    if mine[0] != other[0]:
        return f"less {kernel} a kernel"
    if mine[1] != other[1]:
        return "fewer slices"
    return "thicker slices" if mine[2] != other[2] else "equal in everything, but listed later"
