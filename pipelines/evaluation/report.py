"""The report of an evaluation: tables, evaluation.json and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from options.parser import to_dict
from pipelines.evaluation.baselines import Metric
from pipelines.evaluation.charts import HISTOGRAM, TEXTURE, draw_histogram, draw_texture
from pipelines.evaluation.counterfactuals.axiom_rows import CounterfactualReport
from pipelines.evaluation.measurements import VolumeMeasurements
from pipelines.evaluation.page import WEB, CopyReport, ReportContent, copy_frame, write_report
from pipelines.evaluation.pictures import closest_pairs, typical_pairs, write_pairs
from pipelines.evaluation.plan import RECORD, EvaluationPlan, unmeasured_metrics
from pipelines.evaluation.verdict import interpret_metric, verdict_sentence
from util.cli import counted
from util.files import write_frame, write_json
from util.modality import Terms
from util.web.page_links import LinkedPage, link_pages

TITLE = "Synthetic against real"
Measurements = Mapping[str, Sequence[VolumeMeasurements]]  # by set


@dataclass(frozen=True)
class EvaluationResult:
    """Results of an evaluation.

    Attributes:
        measurements: Measurements of every volume by set.
        metrics: All metrics but those of copies.
        pair_rows: Rows of pairs.csv.
        copies: The check for copies, where there are training scans.
        counterfactuals: The axioms of changed volumes.
    """

    measurements: Measurements
    metrics: Sequence[Metric]
    pair_rows: Sequence[Mapping[str, Any]]
    copies: CopyReport | None
    counterfactuals: CounterfactualReport


def write_outputs(plan: EvaluationPlan, result: EvaluationResult) -> Path:
    """Write the tables as CSV, evaluation.json and the page."""
    out = plan.out
    for name, table in _result_tables(plan, result).items():
        path = out / f"{name}.csv"
        path.unlink(missing_ok=True)  # of an earlier evaluation in this folder
        if len(table):
            write_frame(path, table)
    measurements = result.measurements
    shown = {name: measurements[name] for name in ("real", "synthetic")}
    grid = plan.measurer.grid
    draw_histogram(out / HISTOGRAM, shown, grid)
    draw_texture(out / TEXTURE, shown, grid.terms)
    pairs = typical_pairs(plan.sets, measurements, result.pair_rows)
    if result.copies is not None:
        pairs += closest_pairs(plan.sets, result.copies.by_case)
    verdicts = None if result.copies is None else result.copies.verdicts
    content = ReportContent(
        verdict=grid.terms.text(verdict_sentence(result.metrics, verdicts, plan.shortage)),
        pictures=write_pairs(out / WEB, pairs),
        window=grid.window,
        links={path.name: path.name for path in sorted(out.glob("*.csv"))},
        facts=_describe_inputs(plan),
        networks=_describe_networks(plan),
        warnings=plan.warnings,
        metrics=result.metrics,
        copies=result.copies,
        left_out=[*unmeasured_metrics(plan), *result.counterfactuals.left_out],
        options=to_dict(plan.options),
        conclusive=plan.conclusive,
        counterfactuals=result.counterfactuals,
        terms=grid.terms,
    )
    page = write_report(out, TITLE, content)
    _link_sets(plan, page)
    figures = pd.DataFrame([metric.row() for metric in result.metrics])
    record: dict[str, Any] = {
        "verdict": content.verdict,
        "facts": {**content.facts, **content.networks},
        "warnings": content.warnings,
        "options": content.options,
        "figures": _records(figures, grid.terms),
        "counterfactuals": _records(result.counterfactuals.frame, grid.terms),
        "not_measured": content.left_out,
    }
    if result.copies is not None:
        by_case = result.copies.by_case
        record["memorisation"] = {
            "copies": [case for case, verdict in by_case.items() if verdict.copy],
            "declared_edits": {case: v.edit_of for case, v in by_case.items() if v.edit_of},
            "closer_than_real": [case for case, verdict in by_case.items() if verdict.alarm],
        }
    write_json(out / RECORD, record)
    return page


def _result_tables(plan: EvaluationPlan, result: EvaluationResult) -> dict[str, pd.DataFrame]:
    terms = plan.measurer.grid.terms
    figures = []
    for metric in result.metrics:
        reading = interpret_metric(metric) if plan.conclusive else ""
        figures.append(metric.row() | {"reading": reading})
    volumes = []
    for name, measured in result.measurements.items():
        for v in measured:
            density = {terms.name(key): value for key, value in v.density.items()}
            volumes.append({"set": name, "case": v.case, **density, **v.overlap})
    return {
        "figures": terms.frame(pd.DataFrame(figures)),
        "volumes": pd.DataFrame(volumes),
        "pairs": pd.DataFrame(terms.rows(result.pair_rows)),
        "counterfactuals": terms.frame(result.counterfactuals.frame),
        "memorisation": pd.DataFrame() if result.copies is None else copy_frame(result.copies),
    }


def _describe_inputs(plan: EvaluationPlan) -> dict[str, str]:
    """Return sets and grid in words, for the page."""
    grid = plan.measurer.grid
    facts = {name: f"{counted(len(s.files), 'volume')}, {s.root}" for name, s in plan.sets.items()}
    facts["grid"] = (
        f"{grid.spacing:.3g} mm, {' x '.join(f'{e:.0f}' for e in grid.extent)} mm, "
        f"{counted(grid.slices, 'slice')} per plane, {grid.window[0]:g} to {grid.window[1]:g} "
        f"{grid.terms.unit}"
    )
    return facts


def _describe_networks(plan: EvaluationPlan) -> dict[str, str]:
    """Return the feature networks with the digests of their weights."""
    return {
        f"network {number}": f"{network.about}, sha256 {network.digest}"
        for number, network in enumerate((*plan.networks, *plan.networks_3d), start=1)
    }


def _link_sets(plan: EvaluationPlan, page: Path) -> None:
    """Let the page and those of the sets link to each other, where the sets have pages."""
    here = LinkedPage(f"Evaluation {plan.out.name}", page)
    for volumes in plan.sets.values():
        name = volumes.root.resolve().name
        link_pages(here, LinkedPage(f"Volumes {name}", volumes.root / "index.html"))


def _records(frame: pd.DataFrame, terms: Terms) -> list[dict[str, Any]]:
    """Return the rows of a table for JSON, in the words of the modality."""
    rows = terms.frame(frame).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]
