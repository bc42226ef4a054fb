"""The choice of a study's series, and the reasons why the others are left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data.preparation.series import DicomSeries
from util.cli import counted

SOFT = "soft"
SHARP = "lung"  # as the flag --kernel names it
OTHER_BODY_PARTS = (
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
OTHER_IMAGE_TYPES = (
    "LOCALIZER",
    "SCOUT",
    "SECONDARY",
    "MIP",
    "MPR",
    "PROJECTION IMAGE",
    "SCREEN SAVE",
)
SECONDARY_CAPTURE_UID = "1.2.840.10008.5.1.4.1.1.7"
# Slices turned further than about 30 degrees out of the axial plane are reformations.
MIN_AXIAL_COSINE = 0.85
UNKNOWN_THICKNESS_MM = 99.0  # ranks behind every known one
_SOFT_NAMES = ("standard", "soft", "smooth", "body", "detail", "medium")
_SHARP_NAMES = ("lung", "bone", "edge", "sharp", "ultra", "chest")
_PHILIPS_SOFT = ("a", "b", "c")
_PHILIPS_SHARP = ("d", "e", "l", "ya", "yb", "yc", "yd")
_TOSHIBA_SHARP = (*range(30, 40), *range(50, 60), *range(80, 90))
_SIEMENS_MIN_SHARP = 50


@dataclass(frozen=True)
class SeriesChoice:
    """The chosen series of a study.

    Attributes:
        chosen: The series, None where none shows the chest.
        left_out: The other series, each with its title and the reason.
    """

    chosen: DicomSeries | None
    left_out: tuple[tuple[str, str], ...]


def kernel_class(kernel: str) -> str:
    """Return "soft", "lung" (sharp) or "" (not known) for a maker's name of a kernel."""
    name = kernel.casefold()
    if any(word in name for word in _SHARP_NAMES):
        return SHARP
    if any(word in name for word in _SOFT_NAMES):
        return SOFT
    if siemens := re.match(r"[bihutd][a-z]?(\d\d)", name):  # B30f, Br40, I70f
        return SHARP if int(siemens[1]) >= _SIEMENS_MIN_SHARP else SOFT
    if toshiba := re.match(r"fc(\d\d)", name):
        return SHARP if int(toshiba[1]) in _TOSHIBA_SHARP else SOFT
    philips = name.split(maxsplit=1)[:1]
    if philips and philips[0] in _PHILIPS_SOFT:
        return SOFT
    return SHARP if philips and philips[0] in _PHILIPS_SHARP else ""


def reason_unfit(series: DicomSeries, min_slices: int, modality: str = "ct") -> str:
    """Return why a series is not a scan of the chest, "" where it may be one.

    Of other modalities than `ct`, any part of the body in any plane is taken.
    """
    first = series.first
    expected = {"ct": "CT", "mr": "MR"}.get(modality, first.modality)
    if first.modality != expected:
        return f"its modality is {first.modality or 'not given'}, not {expected}"
    other_types = [kind for kind in first.image_types if kind in OTHER_IMAGE_TYPES]
    if other_types:
        return f"it is {other_types[0].lower()}, not a series of slices"
    if SECONDARY_CAPTURE_UID in first.sop_class:
        return "it is a secondary capture, not a series of slices"
    is_elsewhere = any(part in first.body_part for part in OTHER_BODY_PARTS)
    if modality == "ct" and is_elsewhere and "CHEST" not in first.body_part:
        return f"it shows {first.body_part.lower()}, not the chest"
    if first.frames == 1 and len(series.headers) < min_slices:
        return (
            f"it has {counted(len(series.headers), 'slice')}, fewer than --min_slices {min_slices}"
        )
    is_axial = not first.orientation or abs(float(series.normal[2])) >= MIN_AXIAL_COSINE
    if modality == "ct" and not is_axial:
        return "its slices are not axial"
    return ""


def choose_series(
    candidates: Sequence[DicomSeries],
    kernel: str = "any",
    min_slices: int = 30,
    modality: str = "ct",
) -> SeriesChoice:
    """Choose one series: of the preferred kernel if possible, then most slices, then the thinnest.

    Of series that are equal in these, the first is taken: the first acquisition of a series UID.

    Args:
        candidates: The series of one study.
        kernel: "any", "soft" or "lung".
        min_slices: A series with fewer slices is not a chest.
        modality: Value of `--modality`.
    """
    reasons = [reason_unfit(series, min_slices, modality) for series in candidates]
    fit = [series for series, reason in zip(candidates, reasons, strict=True) if not reason]
    best = max(fit, key=lambda series: _rank(series, kernel), default=None)
    left_out = []
    for series, reason in zip(candidates, reasons, strict=True):
        if series is best:
            continue
        if not reason and best is not None:
            disadvantage = _disadvantage(_rank(series, kernel), _rank(best, kernel), kernel)
            reason = f"{disadvantage} {best.short_title}"
        left_out.append((series.title, reason))
    return SeriesChoice(best, tuple(left_out))


class _Rank(NamedTuple):
    """Higher is better, the first difference decides."""

    matches_kernel: bool
    slices: int
    thinness: float


def _rank(series: DicomSeries, kernel: str) -> _Rank:
    matches = kernel != "any" and kernel_class(series.first.kernel) == kernel
    thickness = series.first.thickness or UNKNOWN_THICKNESS_MM
    return _Rank(matches, len(series.headers), -thickness)


def _disadvantage(rank: _Rank, best: _Rank, kernel: str) -> str:
    if rank.matches_kernel != best.matches_kernel:
        return f"its kernel is less {kernel} than that of"
    if rank.slices != best.slices:
        return "fewer slices than"
    if rank.thinness != best.thinness:
        return "thicker slices than"
    return "equal in everything, but listed after"
