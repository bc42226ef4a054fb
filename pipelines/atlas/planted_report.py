"""The report on an effect that `scripts/plant.py` planted in the cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.cache import load_case
from data.regions import regions_of
from pipelines.atlas.measure import AtlasMeasurements
from pipelines.atlas.planted_effect import PLANT_RECORD
from pipelines.atlas.statistics.outcomes import MEAN
from pipelines.atlas.statistics.planted import (
    ELSEWHERE,
    interval_columns,
    planted_effect_rows,
    planted_share,
)
from pipelines.atlas.study import AtlasStudy
from util.files import read_json
from util.schema import check_record

PLANT_TYPES = {"column": str, "from": str, "to": str, "region": str, "hu": float}
COLUMNS = ["region", "planted_hu", "generated_hu", "recovered", "leaked_hu"]
BOUND_NAMES = {
    "generated": {"refit_low": "low", "refit_high": "high"},
    "real": {"real_low": "low", "real_high": "high"},
}


def read_planted(root: Path) -> dict[str, Any] | None:
    """Return the planted truth of a cohort, or None; raise `UserError` where it is damaged."""
    path = root / PLANT_RECORD
    if not path.is_file():
        return None
    return check_record(read_json(path), PLANT_TYPES, path, "Plant the effect again.")


def planted_effect_frame(
    study: AtlasStudy, measurements: AtlasMeasurements, tests: pd.DataFrame
) -> pd.DataFrame | None:
    """Return spike.csv, or None where nothing was planted or the column is not studied.

    Args:
        measurements: The generated effects.
        tests: Table tests.csv, for the intervals of refits and of real scans.
    """
    record = read_planted(study.cohort.root)
    if record is None:
        return None
    sign = {(record["from"], record["to"]): 1.0, (record["to"], record["from"]): -1.0}
    changes = []
    for row in measurements.effects:
        values = (row["from"], row["to"])
        is_mean = row["outcome"] == MEAN
        if is_mean and row["column"] == record["column"] and values in sign:
            change = row["effect"] * sign[values]
            changes.append({"region": row["region"], "change_hu": change})
    if not changes:
        return None
    grouped = pd.DataFrame(changes).groupby("region", sort=False)
    generated = grouped["change_hu"].mean().to_dict()
    share = _mean_shares(study, record["region"])
    planted = {region: record["hu"] * part for region, part in share.items()}
    inside = share.get("lungs", 0.0)
    if 0 < inside < 1 - 1e-6 and record["region"] in generated:
        rest = (generated["lungs"] - inside * generated[record["region"]]) / (1 - inside)
        planted[ELSEWHERE] = 0.0
        generated[ELSEWHERE] = float(np.asarray(rest))
    frame = pd.DataFrame(planted_effect_rows(planted, generated), columns=COLUMNS)
    rows = tests[(tests["column"] == record["column"]) & (tests["outcome"] == MEAN)]
    is_pair = [(row["from"], row["to"]) in sign for row in rows.to_dict("records")]
    rows = rows[is_pair].set_index("region")
    is_reverse = len(rows) and sign[rows["from"].iloc[0], rows["to"].iloc[0]] < 0
    truth = frame.set_index("region")["planted_hu"]
    for name, names in BOUND_NAMES.items():
        bounds = rows[list(names)].rename(columns=names)
        columns = interval_columns(name, truth, bounds, -1.0 if is_reverse else 1.0)
        frame = frame.join(columns, on="region")
    return frame


def _mean_shares(study: AtlasStudy, planted_region: str) -> dict[str, float]:
    """Return the mean share of each region's voxels with the planted effect over cases."""
    data = study.plan.data
    shares = []
    for case in study.cases:
        mask = load_case(case, data.spacing)[1]
        masks = regions_of(mask.array, mask.spacing, data)
        shares.append(planted_share(masks, planted_region))
    return {str(region): float(mean) for region, mean in pd.DataFrame(shares).mean().items()}
