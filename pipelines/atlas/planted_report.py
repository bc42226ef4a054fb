"""The report on an effect that `scripts/plant.py` planted in the cohort."""

from __future__ import annotations

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes

from data.cache import load_case
from pipelines.atlas.measure import AtlasMeasurements
from pipelines.atlas.planted_effect import PLANT_RECORD
from pipelines.atlas.statistics.planted import ELSEWHERE, planted_effect_rows, planted_share
from pipelines.atlas.study import AtlasStudy
from util.files import read_json
from util.metrics.regions import regions


def planted_effect_frame(study: AtlasStudy, measured: AtlasMeasurements) -> pd.DataFrame | None:
    """spike.csv, or None where nothing was planted or the column is not looked at."""
    path = study.cohort.root / PLANT_RECORD
    if not path.is_file():
        return None
    record, data = read_json(path), study.plan.data
    sign = {(record["from"], record["to"]): 1.0, (record["to"], record["from"]): -1.0}
    rows = [
        {**row, "mean_diff_hu": row["mean_diff_hu"] * sign[row["from"], row["to"]]}
        for row in measured.effects
        if row["column"] == record["column"] and (row["from"], row["to"]) in sign
    ]
    if not rows:
        return None
    shares = []
    for case in study.cases:
        mask = load_case(case, data.spacing)[1]
        masks = regions(mask.array, voxel_sizes(mask.affine), data.lung_labels, data.airway_label)
        shares.append(planted_share(masks, record["region"]))
    frame = pd.DataFrame(rows)
    generated = frame.groupby("region", sort=False)["mean_diff_hu"].mean().to_dict()
    share = pd.DataFrame(shares).mean().to_dict()
    planted = {region: record["hu"] * part for region, part in share.items()}
    inside = share.get("lungs", 0.0)
    if (
        0 < inside < 1 - 1e-6 and record["region"] in generated
    ):  # what the lungs hold beside the planted region
        rest = (generated["lungs"] - inside * generated[record["region"]]) / (1 - inside)
        planted[ELSEWHERE], generated[ELSEWHERE] = 0.0, float(np.asarray(rest))
    return pd.DataFrame(
        planted_effect_rows(planted, generated),
        columns=["region", "planted_hu", "generated_hu", "recovered", "leaked_hu"],
    )
