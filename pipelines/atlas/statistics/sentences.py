"""Findings in words, made from their figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

REGION_NAMES = {
    "lungs": "both lungs",
    "left_lung": "the left lung",
    "right_lung": "the right lung",
    "upper": "the upper thirds",
    "middle": "the middle thirds",
    "lower": "the lower thirds",
    "core": "the core",
    "rim": "the subpleural rim",
    "airway": "the airways",
    "outside": "what lies outside the lungs",
}
AGREEING = {
    "agrees": "agree",
    "same sign": "agree in sign",
    "opposite sign": "show the opposite",
    "no effect in either": "show next to none either",
    "cannot tell": "cannot tell",
}

Row = Mapping[str, Any]


def region_name(region: str) -> str:
    """A region for people."""
    return REGION_NAMES.get(region, region.replace("_", " "))


def format_hu(value: float) -> str:
    """A change with its sign, whole from 10 HU on."""
    if round(abs(value), 1) == 0:
        return "0"
    return f"{value:+.0f}" if abs(value) >= 9.95 else f"{value:+.1f}"


def format_interval(low: float, high: float) -> str:
    """`[36, 46]`, with signs where one is negative."""
    shown = [format_hu(v) for v in (low, high)]
    return f"[{', '.join(s.lstrip('+') if min(low, high) >= 0 else s for s in shown)}]"


def generated_part(label: str, row: Row) -> str:
    """`Current against never smokers: +41 HU [36, 46] in both lungs`; no interval without
    refits.
    """
    bounds = ""
    if pd.notna(row["refit_low_hu"]):
        bounds = f" {format_interval(row['refit_low_hu'], row['refit_high_hu'])}"
    return f"{label}: {format_hu(row['generated_hu'])} HU{bounds} in {region_name(row['region'])}"


def real_part(row: Row) -> str:
    """What the real scans say of it."""
    if pd.isna(row["real_hu"]):
        return "the real scans give no estimate"
    return (
        f"the real scans {AGREEING[row['agreement']]} ({format_hu(row['real_hu'])} "
        f"{format_interval(row['real_low_hu'], row['real_high_hu'])}, adjusted)"
    )


def finding_sentence(label: str, row: Row, strongest: Row, controls: pd.DataFrame) -> str:
    """One finding with its size, interval, place, the real scans and what rewording changes."""
    place = ""
    if strongest["region"] != row["region"] and abs(strongest["generated_hu"]) > abs(
        row["generated_hu"]
    ):
        place = f", strongest in {region_name(strongest['region'])} ({format_hu(strongest['generated_hu'])})"
    text = f"{generated_part(label, row)}{place}; {real_part(row)}."
    said = controls[(controls["control"] == "re-worded") & (controls["region"] == row["region"])]
    if len(said):
        text += f" Rewording the prompt changes {float(said['mean_abs_hu'].iloc[0]):.1f} HU."
    return text


def not_found_sentence(label: str, row: Row) -> str:
    """One contrast that is no finding, and why."""
    text = f"{generated_part(label, row)}; {real_part(row)}."
    why = str(row["why"]).rstrip(".")
    lead = "Not judged" if row["verdict"] == "not judged" else "Not found"
    return f"{text} {lead}: {why}."
