"""Contrasts of an attribute summed up over patients: mean effects with intervals, in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from util.cli import counted
from util.metrics.regions import region_name

LEVEL = 0.95
THIRDS = ("upper", "middle", "lower")
MIN_PLACE_RATIO = 1.2  # strongest third over weakest, from which the strongest is named

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ContrastSummary:
    """Effect of one contrast on the lungs' mean density, over patients.

    Attributes:
        column: The attribute.
        start: Value of the first volume.
        end: Value of the second one.
        mean: Mean over patients, HU.
        low: Lower end of the 95 % interval of the mean (t distribution); NaN for one patient.
        high: Its upper end.
        patients: Number of patients.
        agreeing: Patients whose effect has the sign of the mean.
        noise_hu: Difference between the effects of two noises (RMS over patients), HU; NaN where
            one noise was drawn.
        place: Third of the lungs with the strongest effect; "" where they are alike.
        clearest: Case with the largest effect of the sign of the mean.
    """

    column: str
    start: str
    end: str
    mean: float
    low: float
    high: float
    patients: int
    agreeing: int
    noise_hu: float
    place: str
    clearest: str

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0 and the effect exceeds what another noise changes.

        One patient has no interval, so that the noise alone decides.
        """
        beyond_noise = not abs(self.mean) <= self.noise_hu  # true for NaN
        if math.isnan(self.low):
            return beyond_noise and not math.isnan(self.noise_hu)
        return beyond_noise and self.low * self.high > 0

    @property
    def strength(self) -> float:
        """Distance of the mean from 0 in half widths of its interval; the mean without one."""
        width = (self.high - self.low) / 2
        return abs(self.mean) / width if width > 0 else abs(self.mean)

    def sentence(self) -> str:
        """Return the contrast in a sentence with its figures."""
        text = f"{self.column}, {self.end} against {self.start}: "
        size = f"{self.mean:+.1f} HU"
        if not math.isnan(self.low):
            size += f" [{self.low:.1f}, {self.high:.1f}]"
        # Without interval and noise nothing says whether a change is clear.
        is_unclear = not self.is_clear and not (math.isnan(self.low) and math.isnan(self.noise_hu))
        text += f"no clear change ({size})" if is_unclear else f"{size} in the lungs"
        if self.patients == 1:
            text += " in one patient" if is_unclear else " of one patient"
        if self.is_clear and self.place:
            text += f", strongest in the {region_name(self.place)}"
        if self.patients > 1:
            change = "denser" if self.mean > 0 else "less dense"
            text += f"; {change} in {self.agreeing} of {counted(self.patients, 'patient')}"
        if not math.isnan(self.noise_hu):
            text += f"; another noise changes {self.noise_hu:.1f} HU"
        return f"{text}."


def summarise_contrasts(
    effects: Rows, patients: Mapping[str, str] | None = None
) -> list[ContrastSummary]:
    """Return every contrast over patients, in the order of the rows.

    Args:
        effects: Rows of effects.csv.
        patients: Patient of each case; a case without one is a patient. Scans of a patient are
            averaged, because they are not independent.
    """
    frame = pd.DataFrame(effects)
    if frame.empty:
        return []
    frame["patient"] = frame["case"].map(lambda case: (patients or {}).get(case, case))
    frame["change"] = frame["mean_diff_hu"].astype(float)
    groups = frame.groupby(["column", "from", "to"], sort=False)
    return [
        _summary(str(column), str(start), str(end), part)
        for (column, start, end), part in groups
        if (part["region"] == "lungs").any()
    ]


def _summary(column: str, start: str, end: str, part: pd.DataFrame) -> ContrastSummary:
    lungs = part[part["region"] == "lungs"]
    means = lungs.groupby("patient")["change"].mean().to_numpy()
    mean, low, high = float(means.mean()), math.nan, math.nan
    if len(means) > 1:
        error = float(means.std(ddof=1)) / len(means) ** 0.5
        half = float(special.stdtrit(len(means) - 1, (1 + LEVEL) / 2)) * error
        low, high = mean - half, mean + half
    sign = 1.0 if mean >= 0 else -1.0
    return ContrastSummary(
        column,
        start,
        end,
        mean,
        low,
        high,
        len(means),
        int((sign * means > 0).sum()),
        _noise_change(lungs),
        _strongest_third(part, sign),
        str(lungs.loc[(sign * lungs["change"]).idxmax(), "case"]),
    )


def _noise_change(lungs: pd.DataFrame) -> float:
    """Return the RMS difference between the effects of two noises, from their errors.

    The error of a mean over n noises is SD / sqrt(n), and two noises differ by sqrt(2) SD.
    """
    if "mc_error_hu" not in lungs:
        return math.nan
    errors = pd.to_numeric(lungs["mc_error_hu"], errors="coerce")
    differences = (errors * np.sqrt(2 * lungs["draws"].astype(float))).dropna()
    return float(np.sqrt((differences**2).mean())) if len(differences) else math.nan


def _strongest_third(part: pd.DataFrame, sign: float) -> str:
    means = part.groupby("region")["change"].mean()
    thirds = {name: sign * float(means[name]) for name in THIRDS if name in means}
    if len(thirds) < len(THIRDS):
        return ""
    strongest = max(thirds, key=thirds.__getitem__)
    weakest = min(thirds.values())
    return strongest if thirds[strongest] > MIN_PLACE_RATIO * max(weakest, 0.0) else ""


def clearest_contrast(
    contrasts: Sequence[ContrastSummary], avoided: Sequence[str] = ()
) -> ContrastSummary | None:
    """Return the contrast that is furthest from 0; one of an avoided attribute only if no other.

    Args:
        avoided: Attributes or "ATTRIBUTE=VALUE" whose effects mean nothing.
    """
    sound = [c for c in contrasts if not is_avoided(c, avoided)]
    return max(sound or contrasts, key=lambda c: (c.is_clear, c.strength), default=None)


def is_avoided(contrast: ContrastSummary, avoided: Sequence[str]) -> bool:
    """Return whether a contrast is of an attribute, or a value, that means nothing."""
    names = {contrast.column}
    names |= {f"{contrast.column}={value}" for value in (contrast.start, contrast.end)}
    return not names.isdisjoint(avoided)
