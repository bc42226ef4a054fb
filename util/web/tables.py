"""Tables of effects and metrics: a summary over cases, and every case folded away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from util.cli import counted
from util.metrics.contrast_summary import ContrastSummary, summarise_contrasts
from util.metrics.regions import REGION_NAMES, region_name
from util.modality import CT, Terms
from util.web import page_parts

Rows = Sequence[Mapping[str, Any]]

# Columns of the summary of effects, each with the column of effects.csv and a factor.
TEXTURE_COLUMNS = {
    "detail SD, HU": ("change_detail_sd_hu", 1.0),
    "below -950 HU, %": ("change_share_below_-950_hu", 100.0),
    "above -700 HU, %": ("change_share_above_-700_hu", 100.0),
}

# Metrics of the lungs in the sentence of a page without attributes.
METRIC_WORDS = {
    "mae_hu": "mean absolute error in the lungs {:.0f} HU",
    "ssim": "SSIM {:.2f}",
    "detail_ratio": "detail {:.2f} of the scans'",
}
# The same of scans that are edited to another text.
CHANGE_WORDS = {"mae_hu": "mean absolute change in the lungs {:.0f} HU"}


def signed(value: float) -> str:
    """Return a change with its sign."""
    return f"{value:+.1f}"


def effect_summary(
    effects: Rows, contrasts: Sequence[ContrastSummary] | None = None, terms: Terms = CT
) -> pd.DataFrame:
    """Return a row for each contrast: its mean effect with what decides its meaning first.

    Args:
        effects: Rows of effects.csv.
        contrasts: Their summary over patients; by default every case is a patient.
        terms: Words of the modality, which decides what changes of texture mean something.

    Returns:
        Mean HU with the 95 % interval over patients, patients with its sign, the change by another
        noise, range over cases and change of texture, for the region `lungs`; mean and range for
        every region where no row has it.
    """
    keys = ["column", "from", "to", "region"]
    frame = pd.DataFrame(effects).astype(dict.fromkeys(keys, str))
    summaries = summarise_contrasts(effects) if contrasts is None else contrasts
    by_key = {(c.column, c.start, c.end): c for c in summaries}
    if (frame["region"] == "lungs").any():
        frame = frame[frame["region"] == "lungs"]
    rows = []
    for (column, start, end, region), part in frame.groupby(keys, sort=False):
        change = part["mean_diff_hu"].astype(float)
        row: dict[str, Any] = {
            "attribute": column,
            "from": start,
            "to": end,
            "mean HU": change.mean(),
        }
        if summary := by_key.get((column, start, end)):
            row |= _interval(summary)
        row |= {
            "denser in": f"{(change > 0).sum()} of {counted(len(change), 'case')}",
            "lowest HU": change.min(),
            "highest HU": change.max(),
        }
        rows.append(row | _texture_changes(part, terms) | {"region": region})
    return pd.DataFrame(rows)


def _interval(summary: ContrastSummary) -> dict[str, Any]:
    """Return the cells of a contrast's interval, and of the change by another noise."""
    interval = "one patient"
    if not math.isnan(summary.low):
        interval = page_parts.typeset(f"{summary.low:.1f} to {summary.high:.1f}")
    noise = "not drawn" if math.isnan(summary.noise_hu) else f"{summary.noise_hu:.1f}"
    return {"mean HU": summary.mean, "95 % interval": interval, "another noise, HU": noise}


def _texture_changes(part: pd.DataFrame, terms: Terms) -> dict[str, float]:
    """Return the mean changes of detail and of thin and dense lung, where they were measured."""
    changes = {}
    for name, (column, factor) in TEXTURE_COLUMNS.items():
        if column in part and terms.has(column):
            changes[name] = factor * float(part[column].astype(float).mean())
    return changes


def effects_by_case(effects: Rows) -> pd.DataFrame:
    """Return the mean change in HU: a row per case and intervention, a column per region."""
    keys = ["case", "column", "from", "to"]
    table = _pivot(effects, keys, "region", "mean_diff_hu")
    return table.rename(columns={"column": "attribute"})


def metric_summary(metrics: Rows) -> pd.DataFrame:
    """Return mean, lowest, highest and number of cases for each metric and region."""
    frame = pd.DataFrame(metrics).astype({"value": float})
    groups = frame.groupby(["metric", "region"], sort=False)["value"]
    values = groups.agg(["mean", "min", "max", "count"]).reset_index()
    return values.rename(columns={"min": "lowest", "max": "highest", "count": "cases"})


def metrics_by_case(metrics: Rows) -> pd.DataFrame:
    """Return a row per case and region, a column per metric."""
    return _pivot(metrics, ["case", "region"], "metric", "value")


def _pivot(rows: Rows, keys: list[str], columns: str, value: str) -> pd.DataFrame:
    frame = pd.DataFrame(rows).astype(dict.fromkeys(keys, str) | {value: float})
    table = frame.pivot_table(value, keys, columns, aggfunc="first", sort=False)
    table.columns.name = None
    return table.reset_index()


def _with_names(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the names of regions for readers, in columns and in the header."""
    if "region" in frame:
        frame = frame.assign(region=frame["region"].map(region_name))
    return frame.rename(columns=REGION_NAMES)


def effect_tables(effects: Rows, contrasts: Sequence[ContrastSummary], terms: Terms = CT) -> None:
    """Add the effects' summary over patients, and every case's effects folded away."""
    if not effects:
        return
    with page_parts.card("Effects over cases"):
        page_parts.frame_table(_with_names(effect_summary(effects, contrasts, terms)), signed)
        with page_parts.fold("Mean change in HU, every case and region"):
            page_parts.frame_table(_with_names(effects_by_case(effects)), signed)


def metric_sentence(
    metrics: Rows, cases: int, edited: bool = False, other_text: bool = False
) -> str:
    """Return what volumes without an attribute varied show, in a sentence with figures.

    Args:
        metrics: Rows of metrics.csv.
        cases: Number of cases.
        edited: Whether the volumes are real scans, edited.
        other_text: Whether edited scans have another text than their own.
    """
    means: dict[str, float] = {}
    if metrics:
        frame = metric_summary(metrics)
        lungs = frame[frame["region"] == "lungs"]
        means = dict(zip(lungs["metric"], lungs["mean"], strict=True))
    if means.get("real_detail_sd_hu", 0.0) > 0:
        means["detail_ratio"] = means["detail_sd_hu"] / means["real_detail_sd_hu"]
    text, words = f"{counted(cases, 'case')} generated from mask and text", METRIC_WORDS
    if edited and other_text:
        text, words = f"{counted(cases, 'real scan')} with another text", CHANGE_WORDS
    elif edited:
        text = f"{counted(cases, 'real scan')} regenerated without a change"
    parts = [form.format(means[name]) for name, form in words.items() if name in means]
    return f"{text}: {', '.join(parts)}." if parts else f"{text}."


def metric_tables(metrics: Rows) -> None:
    """Add the metrics' summary, and every case's metrics folded away."""
    if not metrics:
        return
    with page_parts.card("Metrics over cases"):
        page_parts.frame_table(_with_names(metric_summary(metrics)))
        with page_parts.fold("Every case"):
            page_parts.frame_table(_with_names(metrics_by_case(metrics)))
