"""Axioms of counterfactuals, measured on volumes with a changed attribute.

Effectiveness, composition and reversibility as Monteiro et al. 2023 (arXiv 2303.01274) define them,
minimality and realism as Melistas et al. 2024 (arXiv 2403.20287) add them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.evaluation.baselines import CaseBootstrap
from pipelines.evaluation.counterfactuals.axiom_rows import (
    DIVERGENCE,
    FID,
    LUNGS,
    MEAN_CHANGE,
    OUTSIDE,
    AxiomRow,
)
from pipelines.evaluation.counterfactuals.divergence import (
    CLOSER_WEIGHT,
    FARTHER_WEIGHT,
    divergence,
)
from pipelines.evaluation.counterfactuals.effectiveness import effectiveness_rows
from pipelines.evaluation.counterfactuals.measured import MeasuredMethod
from pipelines.evaluation.counterfactuals.sets import CYCLED, REVERSED
from pipelines.evaluation.distances import FrechetDistance
from pipelines.evaluation.measurements import PLANES, VolumeMeasurements
from pipelines.evaluation.text_effect import AttributePredictor


def composition_rows(method: MeasuredMethod, bootstrap: CaseBootstrap) -> list[AxiomRow]:
    """Return how far an intervention that changes nothing is from the scan."""
    note = ""
    if not method.edits_scans:
        note = "generated from mask and row, not from the scan: nothing of the scan is kept"
    rows = []
    for region in (LUNGS, OUTSIDE):
        by_case = {case: v[region] for case, v in method.composition_hu.items() if region in v}
        rows += _composition_row(method.name, region, by_case, bootstrap, note)
    cycles = sorted({name for name, _, _ in method.reported if name.startswith(CYCLED)})
    for name in cycles:
        count = name.removeprefix(CYCLED).partition("_")[0]
        if count == "1":
            continue
        for region in (LUNGS, OUTSIDE):
            by_case = {c: v for (n, c, r), v in method.reported.items() if (n, r) == (name, region)}
            text = f"after {count} cycles"
            rows += _composition_row(method.name, region, by_case, bootstrap, text)
    return rows


def _composition_row(
    method: str, region: str, by_case: Mapping[str, float], bootstrap: CaseBootstrap, note: str
) -> list[AxiomRow]:
    """Return the row of a region, none without values."""
    if not by_case:
        return []
    mean = bootstrap.mean(list(by_case), list(by_case.values()))
    return [
        AxiomRow(
            method=method,
            column="",
            axiom="composition",
            of=region,
            measure=MEAN_CHANGE,
            **mean._asdict(),
            reference=0.0,
            reference_is="no change",
            volumes=len(by_case),
            note=note,
        )
    ]


def reversibility_rows(method: MeasuredMethod, bootstrap: CaseBootstrap) -> list[AxiomRow]:
    """Return how far a volume that is changed and changed back is from where it began."""
    rows = []
    for column in method.changes:
        for region in (LUNGS, OUTSIDE):
            if method.is_reference:
                values = {(case, ""): 0.0 for case in method.factual}
                note = "by construction"
            else:
                values = {}
                for (name, case, of), value in method.reported.items():
                    if of == region and name.startswith(f"{REVERSED}{column}="):
                        values[case, name] = value
                note = ""
            if not values:
                continue
            mean = bootstrap.mean([case for case, _ in values], list(values.values()))
            rows.append(
                AxiomRow(
                    method=method.name,
                    column=column,
                    axiom="reversibility",
                    of=region,
                    measure=MEAN_CHANGE,
                    **mean._asdict(),
                    reference=0.0,
                    reference_is="no change",
                    volumes=len(values),
                    note=note,
                )
            )
    return rows


def minimality_rows(method: MeasuredMethod, bootstrap: CaseBootstrap) -> list[AxiomRow]:
    """Return how large changes are, inside and outside the lungs, and their divergence."""
    rows = []
    for column, changes in method.changes.items():
        moved = [c for c in changes if method.rows.get(c.case, {}).get(column) != c.value]
        for region in (LUNGS, OUTSIDE):
            known = [(c.case, c.change_hu[region]) for c in moved if region in c.change_hu]
            if not known:
                continue
            mean = bootstrap.mean([case for case, _ in known], [value for _, value in known])
            note = "the attribute cannot act there" if region == OUTSIDE else ""
            rows.append(
                AxiomRow(
                    method=method.name,
                    column=column,
                    axiom="minimality",
                    of=region,
                    measure=MEAN_CHANGE,
                    **mean._asdict(),
                    volumes=len(known),
                    note=note,
                )
            )
        scores = [(c.case, divergence(method, column, c)) for c in moved]
        scores = [(case, score) for case, score in scores if np.isfinite(score)]
        if scores:
            mean = bootstrap.mean([case for case, _ in scores], [score for _, score in scores])
            rows.append(
                AxiomRow(
                    method=method.name,
                    column=column,
                    axiom="minimality",
                    of="whole volume",
                    measure=DIVERGENCE,
                    **mean._asdict(),
                    reference=float(np.log(CLOSER_WEIGHT + FARTHER_WEIGHT * np.e)),
                    reference_is="a scan that is not changed",
                    volumes=len(scores),
                    note="0 to 1; features of the first 3D network",
                )
            )
    return rows


def realism_rows(method: MeasuredMethod, real: Sequence[VolumeMeasurements]) -> list[AxiomRow]:
    """Return the FID of counterfactuals, beside that of the method's own factual volumes.

    Each value's volumes are as many as the factual ones, because FID depends on the number.
    """
    rows = []
    for column, changes in method.changes.items():
        by_value: dict[str, list[VolumeMeasurements]] = {}
        for change in changes:
            by_value.setdefault(change.value, []).append(change.volume)
        cases = dict.fromkeys(change.case for change in changes)
        factual = [method.factual[case] for case in cases]
        values = [_fid(real, volumes) for volumes in by_value.values() if len(volumes) > 1]
        if not values or len(factual) < 2:
            continue
        note = "made from real scans" if method.edits_scans else ""
        rows.append(
            AxiomRow(
                method=method.name,
                column=column,
                axiom="realism",
                of="whole volume",
                measure=FID,
                value=float(np.mean(values)),
                reference=_fid(real, factual),
                reference_is="before the change",
                volumes=len(changes),
                note=note,
            )
        )
    return rows


def _fid(real: Sequence[VolumeMeasurements], volumes: Sequence[VolumeMeasurements]) -> float:
    """Return the 2.5D FID of the first network."""
    features = np.stack([v.planes[0] for v in (*real, *volumes)])
    first, second = np.arange(len(real)), np.arange(len(real), len(features))
    distances = [FrechetDistance(features[:, i])(first, second) for i in range(len(PLANES))]
    return float(np.mean(distances))


def axiom_rows(
    method: MeasuredMethod,
    predictors: Mapping[str, AttributePredictor],
    real: Sequence[VolumeMeasurements],
    bootstrap: CaseBootstrap,
) -> list[AxiomRow]:
    """Return all rows of a method."""
    return [
        *effectiveness_rows(method, predictors, real, bootstrap),
        *composition_rows(method, bootstrap),
        *reversibility_rows(method, bootstrap),
        *minimality_rows(method, bootstrap),
        *realism_rows(method, real),
    ]
