"""What a run's training cases can show of an attribute, and warnings that follow from it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

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
from util.cli import counted
from util.notices import notice
from util.training.runs import SPLITS_FILE
from util.web.attribute_list import AttributeFacts

log = logging.getLogger(__name__)

EVIDENCE = "evidence"  # entry of a checkpoint's state


def contrast_key(intervention: Intervention) -> str:
    """Return the name of an intervention in a checkpoint."""
    return f"{intervention.column}={','.join(intervention.values[:2])}"


def training_evidence(
    cohort: Cohort,
    template: Template,
    options: DataOptions,
    interventions: Sequence[Intervention],
    cache: Path | None,
) -> dict[str, Any]:
    """Return training patients by value of each column, and the lung density of their scans.

    Args:
        cohort: The cohort; its training split counts.
        template: How rows become text.
        options: How the cohort is read.
        interventions: The effects that are followed.
        cache: Folder of prepared volumes.

    Returns:
        `patients`, `values` (patients by shown value, by column), `lung_sd_hu` (SD of mean lung
        density between scans, None for fewer than four) and `effects` (by intervention: the
        difference between the scans of its two values with its 95 % interval, HU), for the
        checkpoint.
    """
    cases = list({case.id: case for case in cohort.split("train")}.values())
    step = max(1, -(-len(cases) // MAX_SCANS))
    measured = [
        (case, means["lungs"])
        for case, means in zip(
            cases[::step], lung_means(cases[::step], options, cache), strict=True
        )
        if "lungs" in means
    ]
    densities = [density for _, density in measured]
    enough = len(densities) >= MIN_SCANS_FOR_SD
    effects = {}
    for intervention in interventions:
        found = real_difference(template, intervention, measured)
        if found is not None:
            effects[contrast_key(intervention)] = found
    patients = patients_of(cohort, options.patient_column)
    return {
        "patients": len({patients[case.id] for case in cases}),
        "values": patients_by_value(patients, cases, template, list(cohort.columns)),
        "lung_sd_hu": float(np.std(densities, ddof=1)) if enough else None,
        "effects": effects,
    }


def real_difference(
    template: Template, intervention: Intervention, measured: Sequence[tuple[Case, float]]
) -> list[float] | None:
    """Return the difference of lung density between two values with its 95 % interval, HU.

    Ordinary least squares on this attribute alone: on an indicator of the second value among scans
    with either value, or on the number itself where both values are numbers. None with fewer than
    two scans of each value, or fewer than four with a number.
    """
    column, (start, end) = intervention.column, intervention.values[:2]
    first, last = parse_number(start), parse_number(end)
    x, y = [], []
    for case, density in measured:
        shown = template.format_value(case.row, column) if case.row.get(column) else ""
        number = parse_number(shown)
        if first is not None and last is not None:
            if number is not None:
                x.append((number - first) / (last - first))
                y.append(density)
        elif shown in (shown_values := _shown(template, case, intervention)):
            x.append(float(shown_values.index(shown)))
            y.append(density)
    is_category = first is None or last is None
    too_few = min(x.count(0.0), x.count(1.0)) < 2 if is_category else len(x) < MIN_SCANS_FOR_SD
    if too_few or len(x) < 3 or np.ptp(x) == 0:
        return None
    from scipy import stats  # slow to import

    fit = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2)) * float(fit.stderr)
    return [float(fit.slope), float(fit.slope) - half, float(fit.slope) + half]


def _shown(template: Template, case: Case, intervention: Intervention) -> list[str]:
    """Return the two values of an intervention as the text shows them."""
    rows = [template.change(case.row, intervention.column, v).row for v in intervention.values[:2]]
    return [template.format_value(row, intervention.column) for row in rows]


def patients_by_value(
    patients: Mapping[str, str],
    cases: Sequence[Case],
    template: Template,
    columns: Sequence[str],
) -> dict[str, dict[str, int]]:
    """Return the number of patients with each value, as the text shows it, by column.

    Args:
        patients: The patient of each case.
        cases: The cases to count.
        template: How rows become text.
        columns: Columns of the table.
    """
    counted: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for column in template.attributes(columns):
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
    quantiles = special.ndtri(1 - ALPHA / 2) + special.ndtri(POWER)
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
            "The run was trained on %s. With fewer than %d, effects of attributes cannot be "
            "told from differences between patients.",
            counted(len(cases), "scan"),
            MIN_SCANS,
            extra=notice("small cohort"),
        )
