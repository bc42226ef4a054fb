"""Generation of a case: all its variants, their differences, effects and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data.cohort import Case, Cohort
from data.regions import regions_of
from data.text.counterfactuals import Variant, variant_pairs
from data.text.prompts import Prompt
from data.volume_dataset import VolumeSample
from models.editing import EditScan
from pipelines.generation.case_writer import CaseWriter, Hu, Row
from pipelines.generation.plan import CaseVariants, GenerationPlan
from pipelines.generation.results import CaseResult, DroppedColumns, ResultsWriter
from util.metrics.edit_metrics import edit_rows, reversal_rows
from util.metrics.effects import Contrast, effect_rows, region_effects
from util.metrics.fidelity import metric_row, metric_rows, texture_notes
from util.metrics.texture import detail_correlation, detail_ratio, statistics_by_region


@dataclass(frozen=True)
class _CaseInputs:
    """A case, and what its volumes are compared with.

    Attributes:
        sample: The case.
        variants: Its texts.
        scan: The scan that is edited, with `--edit_real`.
        real: Its scan in HU on the model's grid; None where there is none.
    """

    sample: VolumeSample
    variants: CaseVariants
    scan: EditScan | None
    real: Hu | None
    regions: Mapping[str, NDArray[np.bool_]]

    @classmethod
    def from_plan(cls, plan: GenerationPlan, sample: VolumeSample) -> _CaseInputs:
        """Read a case of a plan."""
        return cls(
            sample,
            plan.variants(sample.case),
            plan.scan(sample),
            None if sample.image is None else sample.to_hu(sample.image[0]),
            regions_of(sample.labels, sample.spacing, plan.data),
        )

    @property
    def factual(self) -> Prompt:
        """The prompt of the factual volume."""
        return self.variants.factual.prompt


def generate_case(plan: GenerationPlan, sample: VolumeSample, results: ResultsWriter) -> None:
    """Generate all variants of a case, and write them with their differences and metrics."""
    inputs = _CaseInputs.from_plan(plan, sample)
    variants, prompt = inputs.variants, inputs.factual
    writer = results.case_writer(sample, plan.file_names)
    writer.panels.append(writer.panel("mask", "mask", sample.labels))
    # One call for these prompts: the model shares what does not depend on the text.
    first_group = variants.counterfactual[0] if variants.counterfactual else ()
    prompts = [prompt, *(variant.prompt for variant in first_group)]
    factual, *first_volumes = plan.generate_all(sample, prompts, inputs.scan)
    title = "generated"
    if inputs.scan is not None:
        title = "edited" if plan.has_other_text(sample.case) else "regenerated"
    writer.write_factual(
        factual,
        title,
        prompt.texts,
        prompt=prompt.sentence,
        column=";".join(i.column for i in plan.settings),
        value=";".join(i.values[0] for i in plan.settings),
    )
    if inputs.real is not None:
        panel = writer.panel("real scan", "ct", inputs.real)
        writer.panels.append(replace(panel, role="real"))
    effects: list[Row] = []
    for group in variants.counterfactual:
        volumes = first_volumes
        if group is not first_group:
            volumes = plan.generate_all(sample, [v.prompt for v in group], inputs.scan)
        effects += _write_intervention(plan, inputs, writer, group, volumes)
    measured = _measure(plan, inputs, factual)
    result = CaseResult(
        writer.rows,
        effects,
        measured.rows,
        prompt.sentence,
        [*_volume_notes(plan.cohort, sample.case), *measured.notes],
        writer.panels,
        [DroppedColumns(v.dropped, v.column, v.value) for v in variants.all() if v.dropped],
    )
    results.add(sample.case.id, result)


def _write_intervention(
    plan: GenerationPlan,
    inputs: _CaseInputs,
    writer: CaseWriter,
    group: Sequence[Variant],
    generated: Sequence[Hu],
) -> list[Row]:
    """Write the volumes and differences of an intervention; return its rows of effects.csv."""
    volumes = {v.value: volume for v, volume in zip(group, generated, strict=True)}
    _write_variants(writer, group, volumes, inputs.real if inputs.scan else None)
    draws = effects_over_draws(plan, inputs.sample, group, volumes, inputs.regions)
    for first, second in variant_pairs(group):
        writer.write_difference(_difference(volumes, first, second), first, second)
        if draws.other_noise:
            control = _difference(draws.other_noise, first, second)
            writer.add_noise_control(control, first, second)
    return draws.rows


@dataclass(frozen=True)
class _FactualMetrics:
    """Rows of metrics.csv of a factual volume, and notes that follow from them."""

    rows: list[Row]
    notes: list[str]


def _measure(plan: GenerationPlan, inputs: _CaseInputs, factual: Hu) -> _FactualMetrics:
    """Compare the factual volume with the scan and with other noise, and check the edits."""
    sample, real = inputs.sample, inputs.real
    spacing = sample.spacing
    lungs = np.isin(sample.labels, plan.data.whole_lung_labels)
    correlation = _noise_correlation(plan, sample, inputs.factual, factual, lungs)
    window = plan.data.hu_window
    is_ct = plan.data.terms.is_ct
    rows = metric_rows(sample.case.id, factual, real, lungs, window, spacing, is_ct)
    if correlation is not None:
        rows.append(metric_row(sample.case.id, "lungs", "noise_correlation", correlation))
    if inputs.scan is not None:
        rows += _edit_metrics(plan, inputs)
    else:
        rows += _reversal_metrics(plan, inputs, factual)
    ratio = None if real is None else detail_ratio(factual, real, lungs, spacing)
    notes = texture_notes(ratio, correlation)
    if plan.editor is not None and inputs.scan is not None and lungs.any():
        own = plan.editor.own_volume(inputs.scan)
        if own is not None and real is not None:
            error = float(np.abs(sample.to_hu(own) - real)[lungs].mean())
            notes.append(
                f"The volume that the run itself makes of this mask and text is off the scan by "
                f"{error:.0f} HU in the lungs. The edit adds the difference of two such volumes: "
                "the less they resemble the scan, the less it fits this patient."
            )
    return _FactualMetrics(rows, notes)


@dataclass(frozen=True)
class EffectsOverDraws:
    """Effects of an intervention on a case.

    Attributes:
        rows: Rows of effects.csv.
        other_noise: The volumes of the second noise by value; empty where one noise was drawn.
    """

    rows: list[Row]
    other_noise: Mapping[str, Hu]


def _difference(volumes: Mapping[str, Hu], first: Variant, second: Variant) -> Hu:
    return (volumes[second.value] - volumes[first.value]).astype(np.float32)


def effects_over_draws(
    plan: GenerationPlan,
    sample: VolumeSample,
    group: Sequence[Variant],
    volumes: Mapping[str, Hu],
    masks: Mapping[str, NDArray[np.bool_]],
) -> EffectsOverDraws:
    """Return the effects of an intervention as means over `--draws` noises.

    Args:
        sample: The case.
        group: The variants. They share each noise.
        volumes: Their volumes of the first noise, by value.
        masks: The regions.
    """
    pairs = variant_pairs(group)
    draws: list[list[dict[str, dict[str, float]]]] = [[] for _ in pairs]
    other_noise: Mapping[str, Hu] = {}
    for number in range(plan.draws):
        if number:
            drawn = plan.generate_all(sample, [v.prompt for v in group], draw=number)
            volumes = {v.value: volume for v, volume in zip(group, drawn, strict=True)}
        if number == 1:
            other_noise = volumes
        statistics = {
            value: statistics_by_region(volume, masks, sample.spacing)
            for value, volume in volumes.items()
        }
        for (first, second), by_draw in zip(pairs, draws, strict=True):
            difference = _difference(volumes, first, second)
            before, after = statistics[first.value], statistics[second.value]
            by_draw.append(region_effects(difference, before, after, masks))
    rows: list[Row] = []
    for (first, second), by_draw in zip(pairs, draws, strict=True):
        contrast = Contrast(sample.case.id, first.column, first.value, second.value)
        rows += effect_rows(contrast, by_draw, masks)
    return EffectsOverDraws(rows, other_noise)


def _noise_correlation(
    plan: GenerationPlan, sample: VolumeSample, prompt: Prompt, first: Hu, lungs: NDArray[np.bool_]
) -> float | None:
    """Return the mean correlation of the detail of each further draw with the first volume's."""
    draws = range(1, plan.draws)
    if not draws or not lungs.any():
        return None
    correlations = []
    for number in draws:
        volume = plan.generate(sample, prompt, draw=number)
        correlations.append(detail_correlation(first, volume, lungs, sample.spacing))
    return float(np.mean(correlations))


def _write_variants(
    writer: CaseWriter, group: Sequence[Variant], volumes: Mapping[str, Hu], edited: Hu | None
) -> None:
    """Write the volumes of an intervention; an edited real scan is also shown as a difference."""
    for variant in group:
        volume = volumes[variant.value]
        writer.write_variant(volume, variant)
        if edited is not None:
            title = f"{variant.column} = {variant.value} minus real scan"
            panel = writer.panel(title, "difference", volume - edited)
            values = ("real scan", variant.value)
            writer.panels.append(replace(panel, attribute=variant.column, values=values))


def _volume_notes(cohort: Cohort, case: Case) -> list[str]:
    """Return the warnings that name a file of a case."""
    files = [str(path) for path in (case.image, case.mask) if path is not None]
    return [text for text in cohort.warnings if any(file in text for file in files)]


def _edit_metrics(plan: GenerationPlan, inputs: _CaseInputs) -> list[Row]:
    """Return rows of metrics.csv on how well a scan was edited."""
    assert plan.editor is not None and inputs.scan is not None and inputs.real is not None
    prompts = {f"{v.column}={v.value}": v.prompt.texts for v in inputs.variants.all()[1:]}
    checks = plan.editor.edit_checks(inputs.scan, prompts, plan.options.edit.edit_cycles)
    to_hu = inputs.sample.to_hu
    return edit_rows(
        inputs.sample.case.id,
        inputs.real,
        inputs.regions,
        {name: to_hu(volume) for name, volume in checks.cycles.items()},
        {name: to_hu(volume) for name, volume in checks.edited.items()},
        {name: to_hu(volume) for name, volume in checks.returned.items()},
    )


def _reversal_metrics(plan: GenerationPlan, inputs: _CaseInputs, factual: Hu) -> list[Row]:
    """Return rows of metrics.csv on generated volumes whose row is changed and changed back."""
    returned: dict[str, Hu] = {}
    for variant in inputs.variants.all()[1:]:
        if variant.returned is None:
            continue
        volume = factual  # the same text and noise
        if variant.returned != inputs.factual:
            volume = plan.generate(inputs.sample, variant.returned)
        returned[f"{variant.column}={variant.value}"] = volume
    return reversal_rows(inputs.sample.case.id, factual, inputs.regions, returned)
