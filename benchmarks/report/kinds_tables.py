"""Tables of the benchmark of kinds, from its finished configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from data.phantom.kinds.columns import GROUPS
from util.markdown import markdown_table

Cell = Mapping[str, Any]
EFFECT_KEYS = ["anatomy", "group", "effect", "region", "metric"]
TEXTURE_KEYS = ["anatomy", "group", "model"]
PERCENT = 100.0


def effects_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return true and generated effects: a row per effect and metric, a column per model.

    Means over seeds; shares in percentage points. A model's entry is its effect, with the
    Monte-Carlo error of a mean over seeds and draws.
    """
    rows = [row for cell in cells for row in _effect_rows(cell)]
    frame = pd.DataFrame(rows)
    models = list(dict.fromkeys(frame["model"]))
    lines = []
    for keys, part in frame.groupby(EFFECT_KEYS, sort=False):
        line: dict[str, Any] = dict(zip(EFFECT_KEYS, keys, strict=True))
        line["start"] = float(part["start"].mean())
        line["true"] = float(part["true"].mean())
        for model in models:
            line[model] = _with_error(part[part["model"] == model])
        lines.append(line)
    return pd.DataFrame(lines)


def _with_error(part: pd.DataFrame) -> str:
    if part.empty:
        return "–"
    text = f"{part['generated'].mean():.2f}"
    errors = part["error"].dropna().to_numpy(float)
    return f"{text} ± {np.sqrt(np.square(errors).sum()) / len(errors):.2f}" if len(errors) else text


def _effect_rows(cell: Cell) -> list[dict[str, Any]]:
    group = GROUPS[cell["group"]]
    measures = {column.name: column.measures for column in group.all_columns}
    rows = []
    for contrast in group.all_contrasts:
        for region, statistic in measures[contrast.column]:
            values = cell["effects"][contrast.name].get(region, {}).get(statistic)
            if values is None:
                continue
            factor = PERCENT if statistic.startswith("share") else 1.0
            rows.append(
                {
                    "anatomy": cell["anatomy"],
                    "group": cell["group"],
                    "effect": contrast.name,
                    "region": region,
                    "metric": statistic.replace("share", "percent"),
                    "model": cell["model"],
                }
                | {k: None if v is None else factor * v for k, v in values.items()}
            )
    return rows


def texture_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return texture against the scans': a row per group and model, means over seeds."""
    rows = [
        {key: cell[key] for key in TEXTURE_KEYS}
        | cell["texture"]
        | {"training s": cell["train_seconds"], "generation s": cell["generation_seconds"]}
        for cell in cells
    ]
    frame = pd.DataFrame(rows)
    groups = frame.groupby(TEXTURE_KEYS, sort=False)
    means = groups.mean(numeric_only=True).reset_index()
    means.insert(len(TEXTURE_KEYS), "seeds", groups.size().to_numpy())
    return means


def summary(cells: Sequence[Cell]) -> str:
    """Return all tables as Markdown."""
    seeds = sorted({int(cell["seed"]) for cell in cells})
    return "\n\n".join(
        [
            f"Seeds {', '.join(map(str, seeds))}. HU, and percentage points for shares of voxels.",
            markdown_table(effects_table(cells)),
            markdown_table(texture_table(cells)),
        ]
    )
