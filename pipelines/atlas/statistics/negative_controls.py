"""Verdicts on negative controls: attributes that change what no disease of the lungs can change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from data.negative_controls import ControlValues
from pipelines.atlas.statistics.cautions import Caution
from pipelines.atlas.statistics.contrasts import Contrast
from pipelines.atlas.statistics.findings import FDR, false_discovery
from pipelines.atlas.statistics.outcomes import MEAN, TEXTURE_OUTCOMES, Values
from pipelines.atlas.statistics.sentences import format_change, format_interval
from util.metrics.regions import is_negative_control, region_name

NOISE = "detail_sd"  # outcome under which the noise of a control stands in real.csv
LARGE_SHIFT_HU = 5.0  # a shift of a control's mean from which means are not claimed either
KIND = "negative control"
QUANTITIES = {MEAN: "mean", NOISE: "noise (SD)"}

CONTROL_COLUMNS = (
    "contrast",
    "column",
    "region",
    "outcome",
    "adjustment",
    "cases",
    "real",
    "low",
    "high",
    "p",
    "q",
    "moved",
    "reason",
)


def control_outcomes(measured: ControlValues) -> Values:
    """Return measured controls as values by (outcome, region)."""
    values = {}
    for region, (mean, noise) in measured.items():
        values[MEAN, region] = mean
        values[NOISE, region] = noise
    return values


def judge_controls(real: pd.DataFrame, contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """Return negative_controls.csv: each contrast's difference in each control.

    The adjustment is the primary one, and the false-discovery rate that of all controls together.

    Args:
        real: Table real.csv.
        contrasts: The contrasts; slopes are left out.
    """
    columns = {contrast.id: contrast.column for contrast in contrasts if contrast.kind != "slope"}
    is_shown = real["region"].map(is_negative_control) & real["contrast"].isin(columns)
    table = real[is_shown & (real["primary"] == "yes")].copy()
    table["column"] = table["contrast"].map(columns)
    table["q"] = false_discovery(table["p"].astype(float))
    table["moved"] = (table["q"] <= FDR).map({True: "yes", False: "no"})
    return table.reindex(columns=list(CONTROL_COLUMNS)).reset_index(drop=True)


def control_cautions(
    controls: pd.DataFrame, labels: Mapping[str, str], roles: Mapping[str, str]
) -> list[Caution]:
    """Warn of attributes that change negative controls; columns of acquisition are expected to.

    Noise forbids claims on everything but means, because it changes percentiles, shares and detail.
    A mean that shifts by `LARGE_SHIFT_HU` or more forbids all claims.

    Args:
        controls: Table of `judge_controls`.
        labels: Label by contrast.
        roles: Role by column.
    """
    cautions = []
    moved = controls[controls["moved"] == "yes"]
    for column, rows in moved.groupby("column", sort=False):
        if roles.get(str(column)) != "acquisition":
            cautions.append(_caution(str(column), rows, labels))
    return cautions


def _caution(column: str, rows: pd.DataFrame, labels: Mapping[str, str]) -> Caution:
    changes = []
    for contrast, part in rows.groupby("contrast", sort=False):
        parts = [control_change(row) for row in part.to_dict("records")]
        changes.append(f"{labels[str(contrast)]}: {', '.join(parts)}")
    shift = rows.loc[rows["outcome"] == MEAN, "real"].abs().max()
    forbidden: tuple[str, ...] = ()
    forbids = True
    if shift >= LARGE_SHIFT_HU:
        consequence = "nothing is claimed of it"
    elif (rows["outcome"] == NOISE).any():
        consequence = "only its means can be claimed"
        forbidden = TEXTURE_OUTCOMES
    else:
        consequence = f"differences of a few HU may be due to that ({shift:.1f} HU here)"
        forbids = False
    text = (
        f"{column} changes what no disease of the lungs can change ({'; '.join(changes)}). Its "
        f"groups were scanned differently or differ in body size, so {consequence}."
    )
    value = round(float(rows["real"].abs().max()), 3)
    return Caution(KIND, text, column, value=value, forbids=forbids, outcomes=forbidden)


def control_change(row: Mapping[Any, Any]) -> str:
    """Return a change such as `noise (SD) of air outside the body +6.2 HU [5, 7]`."""
    bounds = format_interval(row["low"], row["high"])
    name = f"{QUANTITIES[row['outcome']]} of {region_name(row['region'])}"
    return f"{name} {format_change(row['real'])} HU {bounds}"
