"""The section on counterfactuals: which volumes are judged by the axioms, and their measurement."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from data.geometry import grids_match
from data.integrity import volume_fingerprint
from data.preparation.masks import load_mask
from data.text.prompts import Row, Template
from data.volumes import write_like
from pipelines.evaluation.axioms import (
    COLUMNS,
    LUNGS,
    OUTSIDE,
    AxiomRow,
    CaseBootstrap,
    MeasuredChange,
    MeasuredMethod,
    axiom_rows,
    score_prediction,
)
from pipelines.evaluation.counterfactual_sets import (
    Counterfactual,
    CounterfactualSet,
    unchanged_scans,
)
from pipelines.evaluation.measure import ComparisonGrid, VolumeMeasurer, load_or_compute
from pipelines.evaluation.measurements import VolumeMeasurements
from pipelines.evaluation.regression_map import LungCells, RegressionMap, RowDesign
from pipelines.evaluation.text_effect import (
    AUC,
    AttributePredictor,
    PredictedAttribute,
    are_numbers,
)
from pipelines.evaluation.volume_sets import VolumeFile, VolumeSet
from util.cli import UserError, format_list
from util.files import json_digest

log = logging.getLogger(__name__)

BASELINE = "scan plus regression map"
MAPS = "maps"  # folder of the baseline's volumes, in the cache
VERSION = 1  # part of the cache keys
MIN_RESIDUAL_SCANS = 8  # scans beyond the number of terms of the baseline's regression
ADJUSTED_ROLES = ("demographic", "acquisition")


@dataclass(frozen=True)
class CounterfactualPlan:
    """The counterfactuals to judge, checked before anything is measured.

    Attributes:
        sets: The methods.
        template: How rows become text; None without a table.
        rows: Raw rows by case.
        formatted: The same as the text shows them, "" where not known or contradicted.
        columns: Columns that are read from volumes beside those that were changed.
    """

    sets: Sequence[CounterfactualSet]
    template: Template | None = None
    rows: Mapping[str, Row] = field(default_factory=dict)
    formatted: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    columns: Sequence[str] = ()

    @classmethod
    def from_table(
        cls,
        sets: Sequence[CounterfactualSet],
        template: Template | None,
        rows: Mapping[str, Row],
        columns: Sequence[str],
    ) -> CounterfactualPlan:
        """Read the rows of the real scans' table.

        Raises:
            UserError: A value is not a number where one is needed.
        """
        if template is None or not sets:
            return cls(sets)
        formatted = {
            case: _formatted(template, template.consistent(r).row) for case, r in rows.items()
        }
        return cls(sets, template, rows, formatted, columns)

    @property
    def changed_columns(self) -> list[str]:
        """The attributes that any method changed."""
        return list(dict.fromkeys(column for one in self.sets for column in one.columns))


@dataclass(frozen=True)
class CounterfactualReport:
    """The measured axioms.

    Attributes:
        rows: Rows of counterfactuals.csv.
        left_out: What was not measured, with the reason.
    """

    rows: Sequence[AxiomRow]
    left_out: Sequence[str]

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame([row.row() for row in self.rows], columns=list(COLUMNS))


def judge_counterfactuals(
    plan: CounterfactualPlan,
    real_set: VolumeSet,
    real: Sequence[VolumeMeasurements],
    measurer: VolumeMeasurer,
    bootstrap: CaseBootstrap,
) -> CounterfactualReport:
    """Measure the axioms of every method, of the baseline and of unchanged scans.

    Args:
        plan: The counterfactuals.
        real_set: The real scans.
        real: Their measurements.
        measurer: Measures volumes.
        bootstrap: The bootstrap over cases.
    """
    if not plan.sets:
        return CounterfactualReport([], [])
    left_out: list[str] = []
    sets = list(plan.sets)
    scans = unchanged_scans(sets, real_set)
    if scans is None:
        left_out.append(
            "Counterfactuals beside the real scan: none of their cases is among the scans of "
            "--real."
        )
    else:
        baseline = _baseline_set(plan, scans, real_set, measurer, bootstrap.seed, left_out)
        sets += [*([baseline] if baseline else []), scans]
    predictors = _predictors(plan, real, bootstrap, left_out)
    rows: list[AxiomRow] = []
    total = sum(len(one.changed) for one in sets)
    with tqdm(total=total, desc="measuring counterfactuals", unit="volume") as bar:
        for one in sets:
            method = _measure_method(plan, one, real_set, measurer, bar)
            rows += axiom_rows(method, predictors, real, bootstrap)
            if not one.is_reference and not any(
                row.axiom == "reversibility" and row.method == one.name for row in rows
            ):
                left_out.append(
                    f"Reversibility of {one.name}: its metrics.csv holds no change and change "
                    "back; run test.py of this version again (with --edit_cycles 1 or more for "
                    "edited scans)."
                )
    return CounterfactualReport(rows, left_out)


def _predictors(
    plan: CounterfactualPlan,
    real: Sequence[VolumeMeasurements],
    bootstrap: CaseBootstrap,
    left_out: list[str],
) -> dict[str, AttributePredictor]:
    """Return a predictor of each attribute that real scans show; the others are named."""
    if plan.template is None:
        left_out.append(
            "Effectiveness: a clinical.csv or clinical.xlsx in --real, from whose values an "
            "independent predictor is fitted."
        )
        return {}
    predictors: dict[str, AttributePredictor] = {}
    unread = []
    for column in dict.fromkeys([*plan.changed_columns, *plan.columns]):
        known = {v.case: plan.formatted.get(v.case, {}).get(column, "") for v in real}
        try:
            attribute = PredictedAttribute.from_values(column, known, are_numbers(known))
        except UserError:
            unread.append(f"{column} (too few scans of two values)")
            continue
        predictor = AttributePredictor.from_scans(attribute, real, bootstrap.seed)
        low = _least_score(predictor, real, bootstrap)
        if low > (0.5 if attribute.measures[0] == AUC else 0.0):
            predictors[column] = predictor
        else:
            unread.append(f"{column} (not better than chance in real scans)")
    if unread:
        left_out.append(
            f"Effectiveness on attributes that cannot be read from real scans: "
            f"{format_list(unread, 20)}."
        )
    return predictors


def _least_score(
    predictor: AttributePredictor, real: Sequence[VolumeMeasurements], bootstrap: CaseBootstrap
) -> float:
    """Return the lower end of the interval of how well real scans are read."""
    read = predictor.predict(real)
    cases = [v.case for v in real if v.case in predictor.attribute.values]
    measure = predictor.attribute.measures[0]
    low, _ = bootstrap.interval(
        cases,
        lambda index: score_prediction(predictor, measure, read.truth[index], read.values[index]),
    )
    return low


def _measure_method(
    plan: CounterfactualPlan,
    one: CounterfactualSet,
    real_set: VolumeSet,
    measurer: VolumeMeasurer,
    bar: Any,
) -> MeasuredMethod:
    """Measure the volumes of one method."""
    rows = {case: plan.formatted[case] for case in one.factual if case in plan.formatted}
    factual = {c: measurer(file, None, False) for c, file in one.factual.items()}
    changes: dict[str, list[MeasuredChange]] = {}
    for change in one.changed:
        row, value = _changed_row(plan, change)
        changes.setdefault(change.column, []).append(
            MeasuredChange(
                change,
                value,
                row,
                measurer(change.file, None, False),
                difference_hu(change.file, one.factual[change.case], measurer),
            )
        )
        bar.update()
    scans = {file.case: file for file in real_set.files}
    composition = {}
    for case, file in one.null.items():
        if case in scans:
            composition[case] = difference_hu(file, scans[case], measurer)
    return MeasuredMethod(
        one.name,
        factual,
        rows,
        changes,
        composition,
        one.reported,
        one.edits_scans,
        one.is_reference,
    )


def _changed_row(plan: CounterfactualPlan, change: Counterfactual) -> tuple[dict[str, str], str]:
    """Return the formatted row after a change, and the new value as the text shows it."""
    raw = plan.rows.get(change.case, {})
    if plan.template is None or change.column not in raw:
        return {}, change.value
    row = plan.template.change(dict(raw), change.column, change.value).row
    formatted = _formatted(plan.template, row)
    return formatted, formatted.get(change.column, "") or change.value


def difference_hu(
    file: VolumeFile, reference: VolumeFile, measurer: VolumeMeasurer
) -> dict[str, float]:
    """Return the mean absolute difference of two volumes in HU, in and outside the lungs.

    It is empty where the volumes are not on one grid, and without outside where there is no mask.
    """
    if file.path == reference.path:
        return {LUNGS: 0.0, OUTSIDE: 0.0}
    mask = file.mask or reference.mask
    key = [
        VERSION,
        "difference",
        *file.key,
        *reference.key,
        *([volume_fingerprint(mask)] if mask else []),
        list(measurer.grid.window),
        list(measurer.grid.lung_labels),
        measurer.grid.airway_label,
    ]
    compute = partial(_difference, file, reference, mask, measurer.grid)
    arrays = load_or_compute(measurer.cache, key, compute)
    return {region: float(value) for region, value in arrays.items() if np.isfinite(value)}


def _difference(
    file: VolumeFile, reference: VolumeFile, mask: Path | None, grid: ComparisonGrid
) -> dict[str, Any]:
    nothing = {LUNGS: np.array(np.nan), OUTSIDE: np.array(np.nan)}
    volume, start = file.load(), reference.load()
    same = volume.shape == start.shape and grids_match(start.shape, start.affine, volume.affine)
    if not same or mask is None:
        return nothing
    pair = [np.clip(v.array.astype(np.float32), *grid.window) for v in (volume, start)]
    change = np.abs(pair[0] - pair[1])
    spacing = [float(side) for side in voxel_sizes(start.affine)]
    regions = grid.regions(load_mask(mask, start).array, spacing)
    means = {r: np.array(change[regions[r]].mean()) for r in (LUNGS, OUTSIDE) if r in regions}
    return nothing | means


# --- the baseline


def _baseline_set(
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
        row, value = _changed_row(plan, change)
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


def _formatted(template: Template, row: Row) -> dict[str, str]:
    """Return the values of a row as the text shows them."""
    return {column: template.format_value(row, column) for column in template.attributes(row)}


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
        labels = load_mask(file.mask, scan).array
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
        placed = LungCells.from_labels(load_mask(file.mask, scan).array, measurer.grid.lung_labels)
        assert placed is not None
        write_like(path, scan.array.astype(np.float32) + placed.spread(cells), file.path)
    return VolumeFile(file.case, path, file.mask)
