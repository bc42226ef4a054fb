"""What is to be generated with a trained run: cases, texts and interventions, all checked.

`test.py` loops over the samples of a `GenerationPlan`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from data.body import BodyLabel
from data.checks.masks import check_labels_known, mask_facts
from data.cohort import Case, Cohort
from data.dicom_export import check_dicom_grid
from data.load_cohort import report_bodies
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
)
from data.text.free_text import TextEdit, TextReader
from data.text.prompts import Prompt, Template, cohort_prompts, load_template
from data.volume_dataset import VolumeDataset, VolumeSample
from data.volumes import load_volume
from models.editing import Editor, EditScan, make_editor
from models.inference import LoadedRun
from models.text.relevance import warn_low_relevance
from options.base_options import DataOptions
from options.checks import check_chest_ct
from options.test_options import TestOptions
from pipelines.evidence import attribute_facts, warn_young_run
from pipelines.generation.case_writer import Hu, VolumeNames
from pipelines.generation.results import PageContext
from pipelines.run_cohort import is_training_cohort, load_run_cohort
from pipelines.run_words import known_synonyms, load_worded_run
from util.cli import UserError, format_list
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

    @property
    def training_values(self) -> dict[str, list[str]] | None:
        """The values that the run was trained on; None where an older run does not know them."""
        if values := self.run.state.get("data", {}).get("values"):
            return dict(values)
        if is_training_cohort(self.data, self.run.options.data.dataroot):
            rows = [case.row for case in self.cohort.split("train")]
            return values_by_column(self.template, rows)
        return None

    @cached_property
    def reader(self) -> TextReader:
        """Reads texts that people wrote; it knows the values of training, or of the cohort."""
        rows = [case.row for case in self.cohort.cases]
        values: dict[str, list[str]] = values_by_column(self.template, rows)
        for column, trained in (self.training_values or {}).items():
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

    def has_other_text(self, case: Case) -> bool:
        """Return whether `--set` or `--prompt` gives a case another text than its own."""
        return self.variants(case).factual.prompt.texts != self.prompts[case.id].texts

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
        "" if plan.editor is None else plan.editor.METHOD,
        any(plan.has_other_text(case) for case in plan.cases),
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
    splits = data.splits if is_training_cohort(data, root) else ""
    return replace(data.for_other_cohort(root), strict=options.source.strict, splits=splits)


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
    trained = plan.training_values
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
