"""Shape of lungs and airways, from the masks: what a generator holds fixed.

Each measurement is regressed on the attributes as the outcomes of real scans are, though never
adjusted for the lung volume, which is one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.atlas.statistics.adjustment import TOTAL, Roles
from pipelines.atlas.statistics.adjustment import VOLUME as VOLUME_COVARIATE
from pipelines.atlas.statistics.contrasts import Contrast
from pipelines.atlas.statistics.findings import FDR, false_discovery
from pipelines.atlas.statistics.outcomes import Values
from pipelines.atlas.statistics.regression import RealScans, estimate_contrasts
from pipelines.atlas.statistics.sentences import format_change, format_interval
from util.metrics.regions import bounding_box, region_name

VOLUME, HEIGHT = "volume", "height"
UNITS = {VOLUME: "ml", HEIGHT: "mm"}
SIDES = ("left_lung", "right_lung")

SHAPE_COLUMNS = (
    "contrast",
    "column",
    "measure",
    "region",
    "unit",
    "adjustment",
    "adjusted_for",
    "cases",
    "mean",
    "difference",
    "low",
    "high",
    "p",
    "q",
    "differs",
    "reason",
)


def measure_shape(
    labels: NDArray[np.integer],
    spacing: Sequence[float],
    lung_labels: Sequence[int],
    airway_label: int,
) -> Values:
    """Return volume and height of the lungs, both and by side, and the volume of the airways.

    Args:
        labels: Mask labels `(X, Y, Z)` in RAS.
        spacing: Voxel size in mm.
        lung_labels: Labels of the left and the right lung.

    Returns:
        See `region_shapes`.
    """
    masks = {"lungs": np.isin(labels, lung_labels)}
    if len(lung_labels) == len(SIDES):
        masks |= {side: labels == label for side, label in zip(SIDES, lung_labels, strict=True)}
    masks["airway"] = labels == airway_label
    return region_shapes(masks, spacing)


def region_shapes(masks: Mapping[str, NDArray[np.bool_]], spacing: Sequence[float]) -> Values:
    """Return volume in ml and height (extent from foot to head) in mm by (measure, region).

    Args:
        masks: Regions `(X, Y, Z)` in RAS; what has no voxel is left out, as is the height of
            `airway`.
        spacing: Voxel size in mm.
    """
    voxel = float(np.prod(spacing)) / 1000
    values = {}
    for region, mask in masks.items():
        if not mask.any():
            continue
        values[VOLUME, region] = voxel * float(mask.sum())
        if region != "airway":
            extent = bounding_box(mask)[2]
            values[HEIGHT, region] = (extent.stop - extent.start) * float(spacing[2])
    return values


def shape_frame(masks: RealScans, contrasts: Sequence[Contrast], roles: Roles) -> pd.DataFrame:
    """Return shape.csv: each contrast's difference in each measurement of the masks.

    The false-discovery rate is that of all measurements with the same adjustment.

    Args:
        masks: Measurements of `measure_shape` in place of outcomes.
        contrasts: The contrasts; slopes are left out.
        roles: The columns that may be adjusted for.
    """
    compared = [contrast for contrast in contrasts if contrast.kind != "slope"]
    table = estimate_contrasts(masks, compared, roles)
    has_volume = table["adjusted_for"].fillna("").str.contains(VOLUME_COVARIATE, regex=False)
    table = table[~has_volume].rename(columns={"outcome": "measure", "real": "difference"})
    table["column"] = table["contrast"].map({one.id: one.column for one in compared})
    table["unit"] = table["measure"].map(UNITS)
    means = masks.outcomes.mean().to_dict()
    places = zip(table["measure"], table["region"], strict=True)
    table["mean"] = [means[place] for place in places]
    p = table["p"].astype(float)
    table["q"] = p.groupby(table["adjustment"]).transform(false_discovery)
    table["differs"] = (table["q"] <= FDR).map({True: "yes", False: "no"})
    return table.reindex(columns=list(SHAPE_COLUMNS)).reset_index(drop=True)


def shape_sentences(shape: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    """Return a sentence on each contrast with total effects on the masks."""
    rows = shape[(shape["adjustment"] == TOTAL) & (shape["differs"] == "yes")]
    sentences = []
    for contrast, part in rows.groupby("contrast", sort=False):
        parts = []
        for row in part.to_dict("records"):
            bounds = format_interval(row["low"], row["high"])
            share = row["difference"] / row["mean"]
            parts.append(
                f"{row['measure']} of {_place(row['region'])} {format_change(row['difference'])} "
                f"{row['unit']} {bounds} ({share:+.0%})"
            )
        sentences.append(f"{labels[str(contrast)]}: {'; '.join(parts)}.")
    return sentences


def _place(region: str) -> str:
    name = region_name(region)
    return name if region == "lungs" else f"the {name}"
