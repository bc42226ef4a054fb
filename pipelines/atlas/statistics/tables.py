"""Tables of an atlas over cases, from its rows by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    "region",
    "voxels",
    "mean_diff_hu",
    "mean_diff_all_hu",
    "mean_abs_hu",
    "noise_change_hu",
]

Rows = Sequence[Mapping[str, Any]]


def effect_frame(rows: Rows) -> pd.DataFrame:
    """Rows of effects_by_case.csv."""
    return pd.DataFrame(rows, columns=EFFECT_COLUMNS).astype({"noise_change_hu": float})


def control_frame(rows: Rows) -> pd.DataFrame:
    """controls.csv: what changed over cases where nothing should."""
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
    """doses.csv: generated means along an attribute's values, against its first."""
    frame = pd.DataFrame(rows, columns=["column", "value", "case", "region", "change_hu"])
    grouped = frame.groupby(["column", "value", "region"], sort=False)
    return grouped.agg(
        cases=("case", "nunique"),
        mean_change_hu=("change_hu", "mean"),
        sd_over_cases_hu=("change_hu", "std"),
    ).reset_index()


def refit_frame(rows: Rows) -> pd.DataFrame:
    """The mean effect over cases of each refit, contrast and region."""
    frame = pd.DataFrame(rows, columns=["refit", "kind", "contrast", "case", "region", "effect_hu"])
    keys = ["refit", "kind", "contrast", "region"]
    return frame.groupby(keys, sort=False)["effect_hu"].mean().reset_index()


def contrast_frame(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """contrasts.csv."""
    return pd.DataFrame(
        [
            {
                "contrast": c.id,
                "column": c.column,
                "role": c.role,
                "kind": c.kind,
                "from": c.start,
                "to": c.end,
                "unit": c.unit,
                "label": c.label,
            }
            for c in contrasts
        ]
    )


def attribute_frame(
    attributes: Sequence[AtlasAttribute],
    left_out: Mapping[str, str],
    roles: Mapping[str, str],
    training: int,
    tried: Mapping[str, int],
) -> pd.DataFrame:
    """attributes.csv: every column that the text can tell, studied or left out."""
    rows = []
    for a in attributes:
        known = sum(a.counts.values())
        counts = [f"{v}: {a.counts[v]}" for v in a.values] if a.kind == "category" else [str(known)]
        rows.append(
            {
                "column": a.column,
                "role": a.role,
                "kind": a.kind,
                "status": "studied",
                "reason": "",
                "unit": a.unit,
                "reference": a.reference if a.kind == "category" else "",
                "values": " | ".join(a.values),
                "counts": " | ".join(counts),
                "known": known,
                "missing_share": 1 - known / max(training, 1),
                "cases": tried.get(a.column, 0),
            }
        )
    rows += [
        {"column": c, "role": roles[c], "status": "left out", "reason": why}
        for c, why in left_out.items()
    ]
    return pd.DataFrame(rows)
