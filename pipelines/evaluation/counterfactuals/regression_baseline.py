"""The baseline of counterfactuals: scans with a map of regression coefficients added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from data.integrity import volume_fingerprint
from data.volumes import write_like
from pipelines.evaluation.counterfactuals.plan import CounterfactualPlan
from pipelines.evaluation.counterfactuals.regression_map import LungCells, RegressionMap, RowDesign
from pipelines.evaluation.counterfactuals.sets import Counterfactual, CounterfactualSet
from pipelines.evaluation.counterfactuals.volume_change import VERSION
from pipelines.evaluation.volume_measurer import VolumeMeasurer, load_or_compute
from pipelines.evaluation.volume_sets import VolumeFile, VolumeSet
from util.cli import format_list
from util.files import json_digest

BASELINE = "scan plus regression map"
MAPS = "maps"  # folder of the baseline's volumes, in the cache
MIN_RESIDUAL_SCANS = 8  # scans beyond the number of terms of the baseline's regression
ADJUSTED_ROLES = ("demographic", "acquisition")


def baseline_set(
    plan: CounterfactualPlan,
    scans: CounterfactualSet,
    real_set: VolumeSet,
    measurer: VolumeMeasurer,
    seed: int,
    left_out: list[str],
) -> CounterfactualSet | None:
    """Return the scans with the regression map of each change added; None with a reason."""
    if plan.template is None:
        left_out.append(f"Baseline “{BASELINE}”: a clinical.csv or clinical.xlsx in --real.")
        return None
    every = {case: plan.formatted[case] for case in real_set.cases if case in plan.formatted}
    columns = _baseline_columns(plan, every)
    if not columns:
        left_out.append(
            f"Baseline “{BASELINE}”: at least {MIN_RESIDUAL_SCANS} more scans with a row than "
            f"terms of a regression on {format_list(plan.changed_columns)}."
        )
        return None
    means = {}
    lung_labels = measurer.grid.lung_labels
    files = {file.case: file for file in real_set.files}
    for case in tqdm(every, desc="regression map", unit="scan", leave=False):
        measured = _cell_means(files[case], measurer)
        if measured is not None:
            means[case] = measured
    used = {case: {c: every[case].get(c, "") for c in columns} for case in means}
    if len(used) < MIN_RESIDUAL_SCANS:
        left_out.append(
            f"Baseline “{BASELINE}”: masks with the lung labels "
            f"{', '.join(map(str, lung_labels))} of the real scans."
        )
        return None
    model = RegressionMap.from_scans(means, used, seed)
    changed = []
    for change in scans.changed:
        row, value = plan.changed_row(change)
        start = every.get(change.case, {}).get(change.column, "")
        levels = model.design.levels.get(change.column)
        if not start or not row or change.case not in model.unseen:
            continue
        if levels is not None and value not in levels:
            continue
        cells = model.change(change.case, used[change.case], change.column, value)
        file = _changed_scan(files[change.case], cells, measurer)
        changed.append(Counterfactual(change.column, change.value, file))
    if not changed:
        left_out.append(f"Baseline “{BASELINE}”: known values of the changed attributes.")
        return None
    factual = {c.case: files[c.case] for c in changed}
    return CounterfactualSet(BASELINE, factual, changed, factual, True, {}, is_reference=True)


def _baseline_columns(plan: CounterfactualPlan, rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the columns of the regression: the changed ones, and what they are adjusted for.

    They are fewer where the scans do not suffice, and none where they never do.
    """
    assert plan.template is not None
    known = dict.fromkeys(column for row in rows.values() for column in row)
    adjusted = [c for c in known if plan.template.role(c) in ADJUSTED_ROLES]
    changed = [c for c in plan.changed_columns if c in known]
    for columns in ([*changed, *plan.columns, *adjusted], changed):
        chosen = [column for column in dict.fromkeys(columns) if column in known]
        table = [{c: row.get(c, "") for c in chosen} for row in rows.values()]
        terms = RowDesign.from_rows(table).terms(table).shape[1] if table and chosen else 0
        if terms and len(rows) - terms >= MIN_RESIDUAL_SCANS:
            return chosen
    return []


def _cell_means(file: VolumeFile, measurer: VolumeMeasurer) -> Any:
    """Return the mean HU of each cell of a scan's lungs; None without a mask of both lungs."""
    if file.mask is None:
        return None
    key = [
        VERSION,
        "cells",
        *file.key,
        volume_fingerprint(file.mask),
        list(measurer.grid.lung_labels),
        list(measurer.grid.window),
    ]

    def compute() -> dict[str, Any]:
        scan = file.load()
        assert file.mask is not None
        labels = measurer.grid.load_labels(file.mask, scan)
        cells = LungCells.from_labels(labels, measurer.grid.lung_labels)
        hu = np.clip(scan.array.astype(np.float32), *measurer.grid.window)
        return {"means": np.zeros(0) if cells is None else cells.means(hu)}

    means = load_or_compute(measurer.cache, key, compute)["means"]
    return means if means.size else None


def _changed_scan(file: VolumeFile, cells: Any, measurer: VolumeMeasurer) -> VolumeFile:
    """Write a scan with a map added to its lungs into the cache, unless it is there."""
    assert file.mask is not None
    digest = json_digest([VERSION, *file.key, np.round(cells, 3).tolist()])
    path = measurer.cache / MAPS / f"{digest[:24]}.nii.gz"
    if not path.is_file():
        scan = file.load()
        placed = LungCells.from_labels(
            measurer.grid.load_labels(file.mask, scan), measurer.grid.lung_labels
        )
        assert placed is not None
        write_like(path, scan.array.astype(np.float32) + placed.spread(cells), file.path)
    return VolumeFile(file.case, path, file.mask)
