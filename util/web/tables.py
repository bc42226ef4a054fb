"""Effects and metrics as tables of a page: a summary over cases, and every case folded away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from dominate import tags

from util.web import page_parts


def signed(value: float) -> str:
    """A change in HU with its sign."""
    return f"{value:+.1f}"


def effect_summary(effects: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Over cases, a row a change: mean, lowest and highest of the mean change, and in how many
    cases density rises.

    For the region `lungs`; where no row has it, for every region there is.
    """
    frame = pd.DataFrame(effects)
    if (frame["region"] == "lungs").any():
        frame = frame[frame["region"] == "lungs"]
    rows = []
    keys = ["column", "from", "to", "region"]
    for (column, low, high, region), part in frame.astype(dict.fromkeys(keys, str)).groupby(
        keys, sort=False
    ):
        change = part["mean_diff_hu"].astype(float)
        rows.append(
            {
                "attribute": column,
                "from": low,
                "to": high,
                "region": region,
                "mean HU": change.mean(),
                "lowest HU": change.min(),
                "highest HU": change.max(),
                "denser in": f"{(change > 0).sum()} of {len(change)} cases",
            }
        )
    return pd.DataFrame(rows)


def effects_by_case(effects: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a case and change, a column a region: mean change in HU."""
    keys = ["case", "column", "from", "to"]
    frame = pd.DataFrame(effects).astype(dict.fromkeys(keys, str))
    return _wide(frame, keys, "region", "mean_diff_hu").rename(columns={"column": "attribute"})


def metric_summary(metrics: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Over cases, a row a metric and region: mean, lowest, highest, number of cases."""
    frame = pd.DataFrame(metrics).astype({"value": float})
    values = frame.groupby(["metric", "region"], sort=False)["value"].agg(
        ["mean", "min", "max", "count"]
    )
    return values.reset_index().rename(
        columns={"min": "lowest", "max": "highest", "count": "cases"}
    )


def metrics_by_case(metrics: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a case and region, a column a metric."""
    keys = ["case", "region"]
    return _wide(pd.DataFrame(metrics).astype(dict.fromkeys(keys, str)), keys, "metric", "value")


def _wide(frame: pd.DataFrame, keys: list[str], spread: str, value: str) -> pd.DataFrame:
    frame = frame.astype({value: float})
    wide = frame.pivot_table(index=keys, columns=spread, values=value, aggfunc="first", sort=False)
    wide.columns.name = None
    return wide.reset_index()


def effect_tables(effects: Sequence[Mapping[str, Any]]) -> None:
    """Adds the effects' summary, and every case's effects folded away."""
    if not effects:
        return
    with tags.section(cls="card"):
        tags.h2("Effects over cases")
        page_parts.frame_table(effect_summary(effects), signed)
        with tags.details():
            tags.summary("Mean change in HU, every case and region")
            page_parts.frame_table(effects_by_case(effects), signed)


def metric_tables(metrics: Sequence[Mapping[str, Any]]) -> None:
    """Adds the metrics' summary, and every case's metrics folded away."""
    if not metrics:
        return
    with tags.section(cls="card"):
        tags.h2("Metrics over cases")
        page_parts.frame_table(metric_summary(metrics))
        with tags.details():
            tags.summary("Every case")
            page_parts.frame_table(metrics_by_case(metrics))
