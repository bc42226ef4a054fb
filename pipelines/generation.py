"""Generation of volumes with a trained run: the factual row of each case, and counterfactuals.

`test.py` loops over the samples of a `GenerationPlan` and writes with `pipelines.results`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from data.body import BodyLabel
from data.checks import check_labels_known, mask_facts
from data.cohort import Case, Cohort
from data.dicom_export import check_dicom_grid
from data.load_cohort import report_bodies
from data.regions import regions_of
from data.resampling import patients_of
from data.text.counterfactuals import (
    CaseText,
    Intervention,
    Variant,
    WrittenText,
    case_text,
    check_intervention,
    counterfactual_variants,
    describe_not_stated,
    edit_variants,
    parse_edits,
    parse_intervention,
    values_by_column,
    variant_pairs,
)
from data.text.free_text import TextEdit, TextReader
from data.text.prompts import Prompt, Template, cohort_prompts, load_template
from data.volume_dataset import VolumeDataset, VolumeSample
from data.volumes import has_suffix, load_volume, strip_suffix, write_like
from models.editing import Editor, EditScan, make_editor
from models.inference import LoadedRun
from models.text.relevance import warn_low_relevance
from options.base_options import DataOptions
from options.checks import check_chest_ct
from options.test_options import TestOptions
from pipelines.evidence import attribute_facts, warn_young_run
from pipelines.results import (
    CaseResult,
    CaseWriter,
    DicomWriter,
    DroppedColumns,
    Hu,
    PageContext,
    ResultsWriter,
    Row,
    VolumeNames,
    dicom_key,
    display_window,
)
from pipelines.run_cohort import is_training_cohort, load_run_cohort
from pipelines.run_words import known_synonyms, load_worded_run
from util.cli import UserError, format_list
from util.files import claim_file
from util.metrics.edit_metrics import edit_rows, reversal_rows
from util.metrics.effects import Contrast, effect_rows, region_effects
from util.metrics.fidelity import metric_rows, texture_notes
from util.metrics.texture import (
    detail_correlation,
    detail_ratio,
    statistics_by_region,
)
from util.notices import Notice, notice

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseVariants:
    """The variants of a case: its factual one, and those of each intervention."""

    factual: Variant
    counterfactual: Sequence[Sequence[Variant]]

    def all(self) -> list[Variant]:
        """Every variant, the factual one first."""
        variants = [self.factual]
        for group in self.counterfactual:
            variants += group
        return variants


@dataclass(frozen=True)
class GenerationPlan:
    """The cases to generate and the interventions on them, all checked.

    Attributes:
        run: The trained run.
        options: The flags of the test.
        data: How the cohort is read.
        cohort: The cohort; a single mask is a cohort of one case.
        cases: The cases to generate.
        template: How rows become text.
        prompts: The prompt of each case of the cohort, from its row or prompts.csv.
        settings: Interventions of `--set`, on every case's factual row.
        interventions: Interventions of `--vary`.
        edits: Edits of wordings, of `--vary_text`.
        editor: Regenerates the cases' real scans, with `--edit_real`.
    """

    run: LoadedRun
    options: TestOptions
    data: DataOptions
    cohort: Cohort
    cases: Sequence[Case]
    template: Template
    prompts: dict[str, Prompt]
    settings: Sequence[Intervention]
    interventions: Sequence[Intervention]
    edits: Sequence[TextEdit]
    editor: Editor | None

    @property
    def draws(self) -> int:
        """Noises that effects are averaged over; by default two, so that noise can be judged."""
        if self.options.arms.draws:
            return self.options.arms.draws
        is_deterministic = self.editor is not None or not self.run.generator.model.noise_channels
        return 1 if is_deterministic or not (self.interventions or self.edits) else 2

    @cached_property
    def file_names(self) -> VolumeNames:
        """Names of the files of all variants."""
        values = {i.column: i.values for i in self.interventions}
        values |= {edit.column: edit.values for edit in self.edits}
        return VolumeNames.from_cohort(self.cohort, values)

    @cached_property
    def reader(self) -> TextReader:
        """Reads texts that people wrote; it knows the values of training, or of the cohort."""
        rows = [case.row for case in self.cohort.cases]
        values: dict[str, list[str]] = values_by_column(self.template, rows)
        for column, trained in (training_values(self) or {}).items():
            if column in values:
                values[column] = list(dict.fromkeys([*trained, *values[column]]))
        return TextReader(self.template, values, known_synonyms(self.run.generator.encoder))

    def text(self, case: Case) -> CaseText:
        """Return the factual text of a case before `--set`."""
        if self.options.arms.prompt:
            return WrittenText(Prompt.from_free_text(self.options.arms.prompt), self.reader)
        return case_text(case, self.prompts[case.id], self.reader)

    @property
    def samples(self) -> VolumeDataset:
        """The cases as padded volumes."""
        return run_samples(self.run, self.cases, self.data)

    def variants(self, case: Case) -> CaseVariants:
        """Return the variants of a case."""
        text = self.text(case)
        dropped: list[str] = []
        for setting in self.settings:
            changed = text.change(setting.column, setting.values[0])
            new = text.with_value(setting.column, setting.values[0])
            if changed is None or new is None:
                raise UserError(describe_not_stated("--set", setting, [case.id]))
            text = new
            dropped += changed.dropped
        groups = [counterfactual_variants(text, i) for i in self.interventions]
        groups += [edit_variants(text.prompt, edit) for edit in self.edits]
        factual = Variant(text.prompt, dropped=tuple(dropped))
        return CaseVariants(factual, [group for group in groups if group])

    def scan(self, sample: VolumeSample) -> EditScan | None:
        """Return the case's real scan, where it is to be edited."""
        if self.editor is None or sample.image is None:
            return None
        return EditScan(sample, sample.image, tuple(self.prompts[sample.case.id].texts))

    def generate(
        self, sample: VolumeSample, prompt: Prompt, scan: EditScan | None = None, draw: int = 0
    ) -> Hu:
        """Return `(X, Y, Z)` HU on the model's grid, without padding.

        Args:
            sample: The case.
            prompt: The text.
            scan: A real scan to regenerate with this text; None for a new volume.
            draw: Number of the noise of a new volume; 0 is the noise of the volumes written.
        """
        return self.generate_all(sample, [prompt], scan, draw)[0]

    def generate_all(
        self,
        sample: VolumeSample,
        prompts: Sequence[Prompt],
        scan: EditScan | None = None,
        draw: int = 0,
    ) -> list[Hu]:
        """Return a volume for each prompt, see `generate`."""
        texts = [prompt.texts for prompt in prompts]
        if self.editor is not None and scan is not None:
            volumes = [self.editor(scan, text) for text in texts]
        else:
            noise_key = f"{sample.name}, draw {draw}" if draw else ""
            volumes = self.run.generator.variants(sample, texts, noise_key)
        return [sample.to_hu(volume) for volume in volumes]


def page_context(plan: GenerationPlan, notices: Sequence[Notice]) -> PageContext:
    """Return what the page of the results says beside the volumes."""
    prompts = [prompt.annotated for prompt in plan.prompts.values()]
    return PageContext(
        patients_of(plan.cohort, plan.data.patient_column),
        attribute_facts(plan.run, plan.template, plan.interventions, prompts),
        notices,
    )


def open_run(options: TestOptions) -> LoadedRun:
    """Load the run that the options name."""
    return load_worded_run(options.model, options.arms.seed, options.sampling)


def run_samples(run: LoadedRun, cases: Sequence[Case], data: DataOptions) -> VolumeDataset:
    """Return cases as volumes padded as the run's network needs them."""
    multiple = [run.generator.model.size_multiple] * 3
    return VolumeDataset(cases, run.labels, data, run.options.patch.patch_size, multiple)


def open_plan(options: TestOptions, run: LoadedRun) -> GenerationPlan:
    """Check cohort, splits and interventions before anything is generated.

    Raises:
        UserError: Something that the user gave does not fit the run or the cohort.
    """
    source = options.source
    data = _data_options(options, run)
    cohort = _mask_cohort(options, run) if source.mask else _load_cohort(options, run, data)
    cases = _selected_cases(options, cohort)
    check_labels_known(cohort.labels, run.labels, [case.mask for case in cases])
    if options.output.dicom:
        check_chest_ct(data, "--dicom")
        for case in cases:
            check_dicom_grid(case.mask)
    template = load_template(data.template, cohort.columns, data.key_column, data.patient_column)
    plan = GenerationPlan(
        run,
        options,
        data,
        cohort,
        cases,
        template,
        cohort_prompts(cohort, template),
        [parse_intervention("--set", text, 1) for text in options.arms.set],
        [parse_intervention("--vary", text, 2) for text in options.arms.vary],
        parse_edits(options.arms.vary_text),
        _open_editor(options, run, cases),
    )
    _check_interventions(plan)
    _check_texts(plan)
    encoder = run.generator.encoder
    variants = [variant for case in cases for variant in plan.variants(case).all()]
    encoder.validate([variant.prompt.texts for variant in variants])  # at once: one warning
    warn_young_run(run)
    prompts = [prompt.annotated for prompt in plan.prompts.values()]
    warn_low_relevance(encoder, prompts, [i.column for i in plan.interventions])
    return plan


def _data_options(options: TestOptions, run: LoadedRun) -> DataOptions:
    """Return how the run reads a cohort whose rows are taken as they stand."""
    data, root = run.options.data, options.source.dataroot
    return replace(
        data,
        dataroot=root,
        strict=options.source.strict,
        permute=(),
        resample=False,
        fold="",
        splits=data.splits if is_training_cohort(data, root) else "",
    )


def _load_cohort(options: TestOptions, run: LoadedRun, data: DataOptions) -> Cohort:
    trained_on = replace(data, dataroot=run.options.data.dataroot)
    seed = run.options.run.seed
    return load_run_cohort(
        run.folder,
        trained_on,
        data.dataroot,
        seed,
        need_images=False,
        accept_changes=options.source.accept_changes,
    )


def _mask_cohort(options: TestOptions, run: LoadedRun) -> Cohort:
    """Return the mask of `--mask` as a cohort of one case, whose row is empty."""
    mask = Path(options.source.mask)
    load_volume(mask)  # a damaged file is an error before the network works
    columns = tuple(run.state["columns"])
    body = BodyLabel.from_options(run.options.data, run.folder)
    case = Case(mask.name, None, mask, dict.fromkeys(columns, ""), body)
    labels = tuple(int(label) for label in mask_facts(mask)["labels"])
    splits = {options.source.split: (case.id,)}
    cohort = Cohort(mask.parent, (case,), splits, labels, columns)
    return cohort if body is None else report_bodies(cohort, [labels], body.label)


def _selected_cases(options: TestOptions, cohort: Cohort) -> tuple[Case, ...]:
    source = options.source
    cases = cohort.cases if source.split == "all" else cohort.split(source.split)
    cases = tuple({case.id: case for case in cases}.values())  # a resampled run repeats some
    return cases[: source.how_many or len(cases)]


def _open_editor(options: TestOptions, run: LoadedRun, cases: Sequence[Case]) -> Editor | None:
    """Return the editor of real scans, with `--edit_real`.

    Raises:
        UserError: The model cannot edit, or a case has no scan.
    """
    if not options.edit.edit_real:
        return None
    if options.arms.draws > 1:
        raise UserError(
            "--draws repeats the generation with new noise, and --edit_real keeps the noise of the "
            "scan. Leave one of them out."
        )
    missing = [case.id for case in cases if case.image is None]
    if missing:
        folder = Path(options.source.dataroot) / "img"
        raise UserError(
            "--edit_real changes the patients' own scans, and these cases have none: "
            f"{format_list(missing)}. Put them into {folder}, or leave --edit_real out."
        )
    return make_editor(run.generator, options.edit.edit_strength)


def _check_interventions(plan: GenerationPlan) -> None:
    rows = [case.row for case in plan.cohort.cases]
    counts = Counter(intervention.column for intervention in plan.interventions)
    if repeated := [column for column, count in counts.items() if count > 1]:
        raise UserError(
            f"--vary is given {counts[repeated[0]]} times for {repeated[0]!r}, so that its files "
            f'would be written twice. Give all values once: --vary "{repeated[0]}=A,B,C".'
        )
    trained = training_values(plan)
    for flag, interventions in (("--set", plan.settings), ("--vary", plan.interventions)):
        for intervention in interventions:
            check_intervention(flag, intervention, plan.template, rows, trained)
            if intervention.column not in plan.run.state["columns"]:
                raise UserError(
                    f"{flag}: the run {plan.run.folder.name} was trained without the column "
                    f"{intervention.column!r}."
                )


def _check_texts(plan: GenerationPlan) -> None:
    """Check that the cases' texts hold what is varied in them.

    Cases whose text does not are generated without these variants, and named in a warning.

    Raises:
        UserError: The text of no case holds it.
    """
    varied: list[Intervention | TextEdit] = [*plan.interventions, *plan.edits]
    stated = {case.id: {v.column for v in plan.variants(case).all()} for case in plan.cases}
    for one in varied:
        missing = [case for case, columns in stated.items() if one.column not in columns]
        if not missing:
            continue
        flag = "--vary_text" if isinstance(one, TextEdit) else "--vary"
        text = describe_not_stated(flag, one, missing)
        if len(missing) == len(stated):
            raise UserError(text)
        log.warning("%s", text, extra=notice("not in the text", one.column, cases=missing))


def training_values(plan: GenerationPlan) -> dict[str, list[str]] | None:
    """Return the values that the run was trained on; None where an older run does not know them."""
    if values := plan.run.state.get("data", {}).get("values"):
        return dict(values)
    if is_training_cohort(plan.data, plan.run.options.data.dataroot):
        return values_by_column(plan.template, [case.row for case in plan.cohort.split("train")])
    return None


def generate_case(plan: GenerationPlan, sample: VolumeSample, results: ResultsWriter) -> None:
    """Generate all variants of a case, and write them with their differences and metrics."""
    case = sample.case
    variants = plan.variants(case)
    writer, scan = results.case_writer(sample, plan.file_names), plan.scan(sample)
    real = None if sample.image is None else sample.to_hu(sample.image[0])
    writer.panels.append(writer.panel("mask", "mask", sample.labels))
    first_group = variants.counterfactual[0] if variants.counterfactual else ()
    prompts = [variant.prompt for variant in (variants.factual, *first_group)]
    factual, *first_volumes = plan.generate_all(sample, prompts, scan)
    writer.write_factual(
        factual,
        "regenerated" if scan else "generated",
        variants.factual.prompt.texts,
        prompt=variants.factual.prompt.sentence,
        column=";".join(i.column for i in plan.settings),
        value=";".join(i.values[0] for i in plan.settings),
    )
    if real is not None:
        writer.panels.append(replace(writer.panel("real scan", "ct", real), role="real"))
    spacing = voxel_sizes(sample.affine)
    masks = regions_of(sample.labels, spacing, plan.data)
    effects: list[Row] = []
    notes = _volume_notes(plan.cohort, case)
    dropped = [DroppedColumns(v.dropped, v.column, v.value) for v in variants.all() if v.dropped]
    for group in variants.counterfactual:
        generated = first_volumes
        if group is not first_group:
            generated = plan.generate_all(sample, [v.prompt for v in group], scan)
        volumes = {v.value: volume for v, volume in zip(group, generated, strict=True)}
        _write_variants(writer, group, volumes, real if scan else None)
        draws = effects_over_draws(plan, sample, group, volumes, masks)
        for first, second in variant_pairs(group):
            writer.write_difference(_difference(volumes, first, second), first, second)
            if draws.other_noise:
                control = _difference(draws.other_noise, first, second)
                writer.add_noise_control(control, first, second)
        effects += draws.rows
    lungs = np.isin(sample.labels, plan.data.lung_labels)
    correlation = _noise_correlation(plan, sample, variants.factual.prompt, factual, lungs)
    window = plan.data.hu_window
    metrics = metric_rows(case.id, factual, real, lungs, window, spacing, correlation)
    if scan is not None and real is not None:
        metrics += _edit_metrics(plan, sample, scan, real, masks)
    else:
        metrics += _reversal_metrics(plan, sample, factual, variants, masks)
    ratio = None if real is None else detail_ratio(factual, real, lungs, spacing)
    notes += texture_notes(ratio, correlation)
    sentence = variants.factual.prompt.sentence
    result = CaseResult(writer.rows, effects, metrics, sentence, notes, writer.panels, dropped)
    results.add(case.id, result)


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
        plan: The plan.
        sample: The case.
        group: The variants. They share each noise.
        volumes: Their volumes of the first noise, by value.
        masks: The regions.
    """
    spacing = voxel_sizes(sample.affine)
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
            value: statistics_by_region(volume, masks, spacing) for value, volume in volumes.items()
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
    spacing = voxel_sizes(sample.affine)
    draws = range(1, plan.draws)
    if not draws or not lungs.any():
        return None
    correlations = []
    for number in draws:
        volume = plan.generate(sample, prompt, draw=number)
        correlations.append(detail_correlation(first, volume, lungs, spacing))
    return float(np.mean(correlations))


def _write_variants(
    writer: CaseWriter, group: Sequence[Variant], volumes: dict[str, Hu], edited: Hu | None
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


def _edit_metrics(
    plan: GenerationPlan, sample: VolumeSample, scan: EditScan, real: Hu, masks: Any
) -> list[Row]:
    """Return rows of metrics.csv on how well a scan was edited."""
    assert plan.editor is not None
    prompts = {}
    for group in plan.variants(sample.case).counterfactual:
        for variant in group:
            prompts[f"{variant.column}={variant.value}"] = variant.prompt.texts
    checks = plan.editor.edit_checks(scan, prompts, plan.options.edit.edit_cycles)
    return edit_rows(
        sample.case.id,
        real,
        masks,
        {name: sample.to_hu(volume) for name, volume in checks.cycles.items()},
        {name: sample.to_hu(volume) for name, volume in checks.edited.items()},
        {name: sample.to_hu(volume) for name, volume in checks.returned.items()},
    )


def _reversal_metrics(
    plan: GenerationPlan,
    sample: VolumeSample,
    factual: Hu,
    variants: CaseVariants,
    masks: Mapping[str, NDArray[np.bool_]],
) -> list[Row]:
    """Return rows of metrics.csv on generated volumes whose row is changed and changed back."""
    returned: dict[str, Hu] = {}
    for variant in variants.all()[1:]:
        if variant.returned is None:
            continue
        volume = factual  # the same text and noise
        if variant.returned != variants.factual.prompt:
            volume = plan.generate(sample, variant.returned)
        returned[f"{variant.column}={variant.value}"] = volume
    return reversal_rows(sample.case.id, factual, masks, returned)


def check_single_file(options: TestOptions) -> Path:
    """Return the file of `--out`; raise `UserError` where it cannot be written."""
    out = Path(options.source.out)
    if not has_suffix(out.name) or not out.name.endswith((".nii", ".nii.gz")):
        raise UserError(
            f"--out is {options.source.out!r}; with --mask it names the volume to write, ending "
            "in .nii.gz."
        )
    if options.arms.draws > 1:
        raise UserError(
            "--out names one volume, and --draws measures effects over several. Leave one of them "
            "out; without --out the results go to a folder below --results_dir."
        )
    if options.arms.vary or options.arms.vary_text:
        raise UserError(
            "--out names one volume, and --vary and --vary_text make several. Leave --out out: the "
            "results then go to a folder below --results_dir."
        )
    claim_file(out, options.output.overwrite)
    if options.output.dicom:
        claim_file(dicom_folder(out), options.output.overwrite)
    return out


def dicom_folder(out: Path) -> Path:
    """Return the folder of the DICOM series beside the file of `--out`."""
    return out.with_name(f"{strip_suffix(out.name)}_dicom")


def generate_file(plan: GenerationPlan, out: Path) -> None:
    """Generate the factual volume of the plan's only case into one file."""
    sample = plan.samples[0]
    volume = plan.generate(sample, plan.variants(sample.case).factual.prompt)
    on_file, mask = sample.to_source_grid(volume), sample.case.mask
    out.parent.mkdir(parents=True, exist_ok=True)
    write_like(out, on_file, mask, np.int16, display_window(plan.data))
    if plan.options.output.dicom:
        DicomWriter(mask, dicom_key(plan.options), plan.data).write(
            dicom_folder(out), on_file, "generated"
        )
