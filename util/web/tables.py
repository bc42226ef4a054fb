"""Tables of effects and metrics: a summary over cases, and every case folded away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from util.metrics.regions import REGION_NAMES, region_name
from util.web import page_parts

Rows = Sequence[Mapping[str, Any]]

# Columns of the summary of effects, each with the column of effects.csv and a factor.
TEXTURE_COLUMNS = {
    "detail SD, HU": ("change_detail_sd_hu", 1.0),
    "below -950 HU, %": ("change_share_below_-950_hu", 100.0),
    "above -700 HU, %": ("change_share_above_-700_hu", 100.0),
}


def signed(value: float) -> str:
    """Return a change with its sign."""
    return f"{value:+.1f}"


def effect_summary(effects: Rows) -> pd.DataFrame:
    """Return mean, lowest and highest effect over cases, and the mean change of texture.

    Args:
        effects: Rows of effects.csv.

    Returns:
        A row for each intervention, for the region `lungs`; for every region where no row has it.
    """
    keys = ["column", "from", "to", "region"]
    frame = pd.DataFrame(effects).astype(dict.fromkeys(keys, str))
    if (frame["region"] == "lungs").any():
        frame = frame[frame["region"] == "lungs"]
    rows = []
    for (column, start, end, region), part in frame.groupby(keys, sort=False):
        change = part["mean_diff_hu"].astype(float)
        row = {
            "attribute": column,
            "from": start,
            "to": end,
            "region": region,
            "mean HU": change.mean(),
            "lowest HU": change.min(),
            "highest HU": change.max(),
            "denser in": f"{(change > 0).sum()} of {len(change)} cases",
        }
        rows.append(row | _texture_changes(part))
    return pd.DataFrame(rows)


def _texture_changes(part: pd.DataFrame) -> dict[str, float]:
    """Return the mean changes of detail and of thin and dense lung, where they were measured."""
    changes = {}
    for name, (column, factor) in TEXTURE_COLUMNS.items():
        if column in part:
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


def effect_tables(effects: Rows) -> None:
    """Add the effects' summary, and every case's effects folded away."""
    if not effects:
        return
    with page_parts.card("Effects over cases"):
        page_parts.frame_table(_with_names(effect_summary(effects)), signed)
        with page_parts.fold("Mean change in HU, every case and region"):
            page_parts.frame_table(_with_names(effects_by_case(effects)), signed)


def metric_tables(metrics: Rows) -> None:
    """Add the metrics' summary, and every case's metrics folded away."""
    if not metrics:
        return
    with page_parts.card("Metrics over cases"):
        page_parts.frame_table(_with_names(metric_summary(metrics)))
        with page_parts.fold("Every case"):
            page_parts.frame_table(_with_names(metrics_by_case(metrics)))
