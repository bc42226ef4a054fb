"""Tables of an atlas over cases, from its rows per case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from pipelines.atlas.statistics.contrasts import AtlasAttribute, Contrast

EFFECT_COLUMNS = [
    "contrast",
    "column",
    "kind",
    "from",
    "to",
    "case",
    "outcome",
    "region",
    "voxels",
    "effect",
    "mean_abs_hu",
    "noise_change",
]

Rows = Sequence[Mapping[str, Any]]


def effect_frame(rows: Rows) -> pd.DataFrame:
    """Return the rows of effects_by_case.csv as a table."""
    return pd.DataFrame(rows, columns=EFFECT_COLUMNS).astype(
        {"noise_change": float, "mean_abs_hu": float}
    )


def control_frame(rows: Rows) -> pd.DataFrame:
    """Return controls.csv: changes over cases where nothing should change."""
    frame = pd.DataFrame(rows, columns=["control", "case", "region", "mean_hu", "voxel_abs_hu"])
    frame["size"] = frame["mean_hu"].abs()
    grouped = frame.groupby(["control", "region"], sort=False)
    return grouped.agg(
        cases=("case", "nunique"),
        mean_hu=("mean_hu", "mean"),
        mean_abs_hu=("size", "mean"),
        max_abs_hu=("size", "max"),
        voxel_abs_hu=("voxel_abs_hu", "mean"),
    ).reset_index()


def dose_frame(rows: Rows) -> pd.DataFrame:
    """Return doses.csv: generated outcomes along an attribute's values, against its first."""
    keys = ["column", "value", "outcome", "region"]
    frame = pd.DataFrame(rows, columns=[*keys, "case", "change"])
    grouped = frame.groupby(keys, sort=False)
    return grouped.agg(
        cases=("case", "nunique"),
        mean_change=("change", "mean"),
        sd_over_cases=("change", "std"),
    ).reset_index()


def refit_frame(rows: Rows) -> pd.DataFrame:
    """Return the mean effect over cases of each refit, contrast, outcome and region."""
    keys = ["refit", "kind", "contrast", "outcome", "region"]
    frame = pd.DataFrame(rows, columns=[*keys, "case", "effect"])
    return frame.groupby(keys, sort=False)["effect"].mean().reset_index()


def contrast_frame(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """Return contrasts.csv."""
    frame = pd.DataFrame([asdict(contrast) for contrast in contrasts])
    frame = frame.rename(columns={"id": "contrast", "start": "from", "end": "to"})
    return frame.drop(columns="weights")


def studied_row(attribute: AtlasAttribute, training: int, cases: int) -> dict[str, Any]:
    """Return the row of attributes.csv of a column that is studied.

    Args:
        attribute: The column.
        training: Number of training cases.
        cases: Number of generated cases in which it was varied.
    """
    known = sum(attribute.counts.values())
    counts = [str(known)]
    if attribute.kind == "category":
        counts = [f"{value}: {attribute.counts[value]}" for value in attribute.values]
    return {
        "column": attribute.column,
        "role": attribute.role,
        "kind": attribute.kind,
        "status": "studied",
        "reason": "",
        "unit": attribute.unit,
        "reference": attribute.reference if attribute.kind == "category" else "",
        "values": " | ".join(attribute.values),
        "counts": " | ".join(counts),
        "known": known,
        "missing_share": 1 - known / max(training, 1),
        "cases": cases,
    }


def left_out_row(column: str, role: str, reason: str) -> dict[str, Any]:
    """Return the row of attributes.csv of a column that is not studied."""
    return {"column": column, "role": role, "status": "left out", "reason": reason}
