"""Sentences about contrasts, made from their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipelines.atlas.statistics.adjustment import TOTAL
from pipelines.atlas.statistics.outcomes import MEAN, OUTCOMES
from util.metrics.regions import region_name

AGREEMENT_PHRASES = {
    "agrees": "agree",
    "same sign": "agree in sign",
    "opposite sign": "show the opposite",
    "not generated": "show an effect that the generated volumes lack",
    "no effect in either": "show next to none either",
    "cannot tell": "are inconclusive",
}

NOT_JUDGED = "Not judged"
NOT_FOUND = "Not found"

Row = Mapping[str, Any]


def region_place(region: str) -> str:
    """Return where a change is, such as "in the left lung"."""
    name = region_name(region)
    if region == "outside":
        return name
    return f"in {name}" if region == "lungs" else f"in the {name}"


def format_change(value: float) -> str:
    """Return a change with its sign, as a whole number from 10 on."""
    if round(abs(value), 1) == 0:
        return "0"
    return f"{value:+.0f}" if abs(value) >= 9.95 else f"{value:+.1f}"


def format_interval(low: float, high: float) -> str:
    """Return an interval such as `[36, 46]`, with signs where one bound is negative."""
    bounds = [format_change(low), format_change(high)]
    if min(low, high) >= 0:
        bounds = [bound.lstrip("+") for bound in bounds]
    return f"[{', '.join(bounds)}]"


def generated_part(label: str, row: Row) -> str:
    """Return `Current against never smokers: +41 HU [36, 46] in both lungs`.

    Outcomes other than the mean are named: `Emphysema yes against no: more of the lung lies below
    -950 HU: +6.1 points [4, 8] in both lungs`. The interval is left out without refits.
    """
    outcome = OUTCOMES[row["outcome"]]
    change = format_change(row["generated"])
    words = outcome.words(row["generated"])
    if words and change == "0":
        words = outcome.label  # neither more nor less
    lead = f"{label}: {words}: " if words else f"{label}: "
    bounds = ""
    if pd.notna(row["refit_low"]):
        bounds = f" {format_interval(row['refit_low'], row['refit_high'])}"
    return f"{lead}{change} {outcome.unit}{bounds} {region_place(row['region'])}"


def real_scans_name(seen: int, scans: int) -> str:
    """Return how sentences call the real scans, of which the run was trained on `seen`."""
    if not seen:
        return "the real scans"
    if seen == scans:
        return "the scans that the run was trained on"
    return f"the real scans ({seen} of {scans} used in training)"


def real_part(row: Row, scans: str) -> str:
    """Return the agreement of the real scans with a contrast: the total effect, then the direct."""
    if pd.isna(row["real"]):
        return f"{scans} give no estimate"
    direct = f"{format_change(row['real'])} {format_interval(row['real_low'], row['real_high'])}"
    if row["real_adjustment"] == TOTAL:
        effects = f"total effect {direct}"
    else:
        effects = f"direct effect {direct}"
        if pd.notna(row["total"]):
            bounds = format_interval(row["total_low"], row["total_high"])
            effects = f"total effect {format_change(row['total'])} {bounds}, {effects}"
    return f"{scans} {AGREEMENT_PHRASES[row['agreement']]} ({effects})"


def finding_sentence(
    label: str, row: Row, strongest: Row, controls: pd.DataFrame, scans: str
) -> str:
    """Return a finding's size, interval, place, real scans, and the change by re-wording."""
    place = ""
    is_stronger = abs(strongest["generated"]) > abs(row["generated"])
    if strongest["region"] != row["region"] and is_stronger:
        change = format_change(strongest["generated"])
        place = f", strongest {region_place(strongest['region'])} ({change})"
    text = f"{generated_part(label, row)}{place}; {real_part(row, scans)}."
    is_reworded = (controls["control"] == "re-worded") & (controls["region"] == row["region"])
    reworded = controls.loc[is_reworded, "mean_abs_hu"]
    if row["outcome"] == MEAN and len(reworded):
        text += f" Rewording the prompt changes {float(reworded.iloc[0]):.1f} HU."
    return text


def not_found_sentence(label: str, row: Row, scans: str) -> str:
    """Return a contrast that is not a finding, and the reason."""
    text = f"{generated_part(label, row)}; {real_part(row, scans)}."
    reason = str(row["why"]).rstrip(".")
    lead = NOT_JUDGED if row["verdict"] == "not judged" else NOT_FOUND
    return f"{text} {lead}: {reason}."


def split_reason(sentence: str) -> tuple[str, str]:
    """Return a `not_found_sentence` without its reason, and the reason; "" where it has none."""
    for lead in (NOT_JUDGED, NOT_FOUND):
        text, separator, reason = sentence.partition(f" {lead}: ")
        if separator:
            return text, f"{lead}: {reason}"
    return sentence, ""
