"""What a run's training cases can show of an attribute, and warnings that follow from it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from data.cohort import Case, Cohort
from data.lung_density import lung_means
from data.resampling import patients_of
from data.splits import read_run_splits
from data.text.counterfactuals import Intervention
from data.text.prompts import Template
from data.text.values import parse_number
from models.inference import LoadedRun
from models.text.relevance import MIN_SCANS, AnnotatedPrompt, column_relevance
from options.base_options import DataOptions
from pipelines.power import ALPHA, MAX_SCANS, POWER, detectable_difference
from pipelines.power import MIN_SCANS as MIN_SCANS_FOR_SD
from util.notices import notice
from util.training.runs import SPLITS_FILE
from util.web.attribute_list import AttributeFacts

log = logging.getLogger(__name__)

EVIDENCE = "evidence"  # entry of a checkpoint's state


def training_evidence(
    cohort: Cohort, template: Template, options: DataOptions, cache: Path | None
) -> dict[str, Any]:
    """Return training patients by value of each column, and the SD of lung density between scans.

    Args:
        cohort: The cohort; its training split counts.
        template: How rows become text.
        options: How the cohort is read.
        cache: Folder of prepared volumes.

    Returns:
        `patients`, `values` (patients by shown value, by column) and `lung_sd_hu` (None for fewer
        than four scans), for the checkpoint.
    """
    cases = list({case.id: case for case in cohort.split("train")}.values())
    return {
        "patients": len({patients_of(cohort, options.patient_column)[c.id] for c in cases}),
        "values": patients_by_value(cohort, cases, template, options.patient_column),
        "lung_sd_hu": _lung_sd(cases, options, cache),
    }


def patients_by_value(
    cohort: Cohort, cases: Sequence[Case], template: Template, patient_column: str
) -> dict[str, dict[str, int]]:
    """Return the number of patients with each value, as the text shows it, by column."""
    patients = patients_of(cohort, patient_column)
    counted: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for column in template.attributes(list(cohort.columns)):
        for case in cases:
            if case.row.get(column):
                value = template.format_value(case.row, column)
                counted[column][value].add(patients[case.id])
    by_column = {}
    for column, values in counted.items():
        ordered = sorted(values, key=lambda value: (_number(value), value))
        by_column[column] = {value: len(values[value]) for value in ordered}
    return by_column


def _number(text: str) -> float:
    number = parse_number(text)
    return float("inf") if number is None else number


def _lung_sd(cases: Sequence[Case], options: DataOptions, cache: Path | None) -> float | None:
    step = -(-len(cases) // MAX_SCANS)
    means = lung_means(list(cases)[:: max(1, step)], options, cache)
    densities = [m["lungs"] for m in means if "lungs" in m]
    return float(np.std(densities, ddof=1)) if len(densities) >= MIN_SCANS_FOR_SD else None


def attribute_facts(
    run: LoadedRun,
    template: Template,
    interventions: Sequence[Intervention],
    prompts: Sequence[AnnotatedPrompt],
) -> dict[str, AttributeFacts]:
    """Return what decides whether each varied attribute shows, by attribute.

    Args:
        run: The run; what its checkpoint did not record is left out.
        template: How rows become text.
        interventions: The attributes and their values.
        prompts: Prompts of the cohort, for the relevance of their columns.
    """
    evidence = run.state.get(EVIDENCE, {})
    relevance = column_relevance(run.generator.encoder, prompts)
    facts = {}
    for intervention in interventions:
        column = intervention.column
        shown = {}
        for value in intervention.values:
            changed = template.change(dict.fromkeys(run.state["columns"], ""), column, value)
            shown[template.format_value(changed.row, column)] = value
        counted = evidence.get("values", {}).get(column, {})
        patients = {shown.get(value, value): count for value, count in counted.items()}
        facts[column] = AttributeFacts(
            column,
            relevance.get(column),
            patients,
            _detectable(patients, intervention.values, evidence.get("lung_sd_hu")),
            _text_region(run),
        )
    return facts


def _detectable(
    patients: Mapping[str, int], values: Sequence[str], sd: float | None
) -> dict[tuple[str, str], float]:
    """Return the smallest difference that can be seen between each pair of values, HU."""
    if not sd:
        return {}
    smallest = {}
    for number, end in enumerate(values):
        for start in values[:number]:
            pair = [patients.get(start, 0), patients.get(end, 0)]
            if min(pair) >= 2:
                share = min(pair) / sum(pair)
                smallest[start, end] = detectable_difference(sd, sum(pair), share)
            elif (change := _detectable_slope(patients, start, end, sd)) is not None:
                smallest[start, end] = change
    return smallest


def _detectable_slope(patients: Mapping[str, int], start: str, end: str, sd: float) -> float | None:
    """Return the same for two numbers, by the slope of a regression on all training patients."""
    first, last = parse_number(start), parse_number(end)
    numbers = {parse_number(value): count for value, count in patients.items()}
    if first is None or last is None or None in numbers or sum(numbers.values()) < MIN_SCANS_FOR_SD:
        return None
    values = np.repeat(
        np.array([float(n) for n in numbers if n is not None]), list(numbers.values())
    )
    spread = float(values.std()) * len(values) ** 0.5
    quantiles = stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER)
    return float(quantiles * sd / spread * abs(last - first)) if spread > 0 else None


def _text_region(run: LoadedRun) -> str:
    generator = run.options.generator
    if generator.fusion == "none":
        return "The run was trained without text (--fusion none): no attribute can show."
    if generator.text_region == "labels":
        labels = ", ".join(str(label) for label in run.labels if label)
        return (
            f"Text can change voxels of the mask's labels ({labels}) alone (--text_region labels); "
            "the background stays as it is."
        )
    return "Text can change every voxel (--text_region everywhere)."


def warn_young_run(run: LoadedRun) -> None:
    """Warn of a run that was stopped before its end, and of one that saw few scans."""
    step = int(run.state["step"])
    steps = int(run.state.get("steps", run.options.optim.max_steps))
    if step < steps:
        log.warning(
            "The run %s is unfinished: step %d of %d. Its volumes and effects will change.",
            run.folder.name,
            step,
            steps,
            extra=notice("run unfinished"),
        )
    cases = set((read_run_splits(run.folder / SPLITS_FILE) or {}).get("train", ()))
    if 0 < len(cases) < MIN_SCANS:
        log.warning(
            "The run was trained on %d scans. With fewer than %d, effects of attributes cannot be "
            "told from differences between patients.",
            len(cases),
            MIN_SCANS,
            extra=notice("small cohort"),
        )
