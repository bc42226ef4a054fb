"""Generating volumes from a trained run, with attributes changed."""

from __future__ import annotations

import csv
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from data.checks import check_known
from data.cohort import Case, Cohort
from data.text.counterfactuals import (
    Intervention,
    Variant,
    check_intervention,
    counterfactual_variants,
    factual_variant,
    pairs,
    parse_intervention,
)
from data.text.prompts import (
    Prompt,
    Template,
    cohort_prompts,
    load_template,
    phrase_columns,
    sentence,
    split_free_text,
)
from data.volume_dataset import VolumeDataset, VolumeSample
from data.volumes import atomic, has_suffix, load, to_hu, write_like
from models.editing import Editor, EditScan
from models.inference import LoadedRun, load_run
from models.text.relevance import warn_low_relevance
from options.base_options import DataOptions
from options.diffusion_options import EditOptions
from options.parser import to_dict
from options.test_options import TestOptions
from pipelines.run_cohort import is_own, run_cohort
from util import cli
from util.cli import UserError, format_list, safe_name
from util.metrics.edit_metrics import edit_rows
from util.metrics.effects import EFFECT_COLUMNS, effect_rows
from util.metrics.fidelity import METRIC_COLUMNS, metric_rows
from util.metrics.regions import regions
from util.training import runs
from util.training.checkpoint import write_json
from util.training.devices import make_device
from util.web.figures import Panel
from util.web.results_page import ResultsPage

log = logging.getLogger(__name__)

VOLUME_COLUMNS = ("file", "case", "kind", "column", "value", "from", "to", "prompt", "seed")

RESULTS_FILE = "results.json"  # which run and flags a results folder belongs to

Row = dict[str, Any]

Hu = NDArray[np.floating]


def open_run(options: TestOptions) -> LoadedRun:
    m = options.model
    return load_run(
        runs.run_folder(m.checkpoints_dir, m.name),
        m.which_epoch,
        device=make_device(m.gpu_ids),
        text_encoder=m.text_encoder,
        tile=m.tile,
        overlap=m.overlap,
        tile_batch=m.tile_batch,
        use_average=m.use_average,
        seed=options.arms.seed,
        sampling=options.sampling,
    )


def data_options(options: TestOptions, run: LoadedRun) -> DataOptions:
    """How the run read its cohort, for the cohort of this test, whose rows are as they stand."""
    data, root = run.options.data, options.source.dataroot
    splits = data.splits if is_own(data, root) else ""
    return replace(
        data,
        dataroot=root,
        strict=options.source.strict,
        permute=(),
        resample=False,
        fold="",
        splits=splits,
    )


@dataclass(frozen=True)
class GenerationPlan:
    """The cases to generate and the changes to make."""

    run: LoadedRun
    data: DataOptions
    cohort: Cohort
    cases: Sequence[Case]
    template: Template
    written: Mapping[str, Prompt]  # prompts of the cohort's prompts.csv or of its rows
    settings: Sequence[Intervention]
    variations: Sequence[Intervention]
    free: str
    seed: int
    edit: EditOptions
    editor: Editor | None  # makes the cases' own scans again, with --edit_real

    def arms(self, case: Case) -> tuple[Variant, list[list[Variant]]]:
        """The arm of the case's own row (with `--set` and `--prompt`), and those of each
        `--vary`.
        """
        written = None if self.settings else self.written[case.id]
        own, row = factual_variant(case, self.template, self.settings, written, self.free)
        return own, [
            counterfactual_variants(row, self.template, change) for change in self.variations
        ]

    def scan(self, whole: VolumeSample) -> EditScan | None:
        """The case's own scan, where that is to be edited."""
        if self.editor is None or whole.image is None:
            return None
        own = tuple(p.text for p in self.written[whole.case.id])
        return EditScan(whole.case.id, whole.image, whole.mask, whole.coords, own)

    def generate(self, whole: VolumeSample, prompt: Prompt, scan: EditScan | None = None) -> Hu:
        """`(X, Y, Z)` HU on the model's grid, without padding: new, or a scan with this text."""
        words = [p.text for p in prompt]
        if self.editor is not None and scan is not None:
            made = self.editor(scan, words)
        else:
            made = self.run.generator(whole.mask, whole.coords, whole.case.id, words)
        return self.hu(whole, made)

    def hu(self, whole: VolumeSample, made: Tensor) -> Hu:  # (X, Y, Z) in [-1, 1]
        return to_hu(whole.unpad(made.numpy()), self.data.hu_window)


def open_plan(options: TestOptions, run: LoadedRun) -> GenerationPlan:
    """Checks cohort, splits and changes before anything is generated."""
    data, source, arms = data_options(options, run), options.source, options.arms
    trained_on = replace(data, dataroot=run.options.data.dataroot)
    cohort = run_cohort(
        run.folder, trained_on, data.dataroot, run.options.run.seed, need_images=False
    )
    cases = cohort.cases if source.split == "all" else cohort.split(source.split)
    cases = tuple(
        {case.id: case for case in cases}.values()
    )  # a resampled run has drawn some twice
    cases = cases[: source.how_many or len(cases)]
    check_known(cohort.labels, run.labels, [case.mask for case in cases])
    editor = open_editor(options, run, cases)
    template = load_template(data.template, cohort.columns, data.key_column, data.patient_column)
    settings = [parse_intervention("--set", text, 1) for text in arms.set]
    variations = [parse_intervention("--vary", text, 2) for text in arms.vary]
    rows = [case.row for case in cohort.cases]
    for flag, changes in (("--set", settings), ("--vary", variations)):
        for change in changes:
            check_intervention(flag, change, template, rows)
            if change.column not in run.state["columns"]:
                raise UserError(
                    f"{flag}: the run {run.folder.name} was trained without the column "
                    f"{change.column!r}."
                )
    test = GenerationPlan(
        run,
        data,
        cohort,
        cases,
        template,
        cohort_prompts(cohort, template),
        settings,
        variations,
        arms.prompt,
        arms.seed,
        options.edit,
        editor,
    )
    for case in cases:  # a text that cannot be made or encoded is known before anything is written
        own, varied = test.arms(case)
        run.generator.encoder.encode(
            [[p.text for p in arm.prompt] for arm in (own, *chain(*varied))]
        )
    warn_low_relevance(
        run.generator.encoder,
        phrase_columns(test.written.values()),
        [change.column for change in variations],
    )
    return test


def open_editor(options: TestOptions, run: LoadedRun, cases: Sequence[Case]) -> Editor | None:
    """What edits real scans, if it is asked for; raises `UserError` where that cannot be."""
    if not options.edit.edit_real:
        return None
    if missing := [case.id for case in cases if case.image is None]:
        raise UserError(
            "--edit_real changes the patients' own scans, and these cases have none: "
            f"{format_list(missing)}. Put them into {Path(options.source.dataroot) / 'img'}, or leave "
            "--edit_real out."
        )
    return Editor(run.generator, options.edit.edit_strength)


class Writer:
    """Writes a case's volumes and collects the rows of the tables and the panels of the page."""

    def __init__(self, folder: Path, whole: VolumeSample, test: GenerationPlan) -> None:
        self.folder, self.whole, self.test = folder, whole, test
        self.volumes: list[Row] = []
        self.panels: list[Panel] = []

    def write(self, array: Hu, kind: str, name: str, title: str, dtype: Any, **values: str) -> None:
        """One volume on the grid of the mask's file."""
        file = f"volumes/{safe_name(self.whole.case.id)}{name}.nii.gz"
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_like(path, self.on_source(array), self.whole.case.mask, dtype)
        row = dict.fromkeys(VOLUME_COLUMNS, "") | {
            "file": file,
            "case": self.whole.case.id,
            "kind": kind,
            "seed": str(self.test.seed),
            **values,
        }
        self.volumes.append(row)
        self.panels.append(
            self.panel(title, "difference" if kind == "difference" else "ct", array, file)
        )

    def on_source(self, array: Hu) -> Hu:
        whole = self.whole
        padded = np.zeros(whole.mask.shape[1:], np.float32)
        padded[whole.inside] = array
        return whole.restore(padded)

    def panel(self, title: str, kind: Any, array: NDArray[Any], file: str | None = None) -> Panel:
        return Panel(title, kind, array, voxel_sizes(self.whole.affine), file)


def generate_case(
    test: GenerationPlan, whole: VolumeSample, folder: Path, page: ResultsPage | None
) -> tuple[list[Row], list[Row], list[Row]]:
    """Generates all arms of a case; returns its rows of volumes.csv, effects.csv and
    metrics.csv.
    """
    case, data = whole.case, test.data
    own, varied = test.arms(case)
    real = (
        None if whole.image is None else to_hu(whole.unpad(whole.image[0].numpy()), data.hu_window)
    )
    writer, scan = Writer(folder, whole, test), test.scan(whole)
    volume = test.generate(whole, own.prompt, scan)
    writer.write(
        volume,
        "own",
        "",
        "made again" if scan else "generated",
        np.int16,
        prompt=sentence(own.prompt),
        column=";".join(c.column for c in test.settings),
        value=";".join(c.values[0] for c in test.settings),
    )
    where = regions(whole.labels, voxel_sizes(whole.affine), data.lung_labels, data.airway_label)
    effects, notes = [], _notes("--set", own)
    for change, arms in zip(test.variations, varied, strict=True):
        made = {arm.value: test.generate(whole, arm.prompt, scan) for arm in arms}
        for arm in arms:
            writer.write(
                made[arm.value],
                "varied",
                f"__{safe_name(change.column)}={safe_name(arm.value)}",
                f"{change.column} = {arm.value}",
                np.int16,
                column=change.column,
                value=arm.value,
                prompt=sentence(arm.prompt),
            )
            if scan is not None and real is not None:
                writer.panels.append(
                    writer.panel(
                        f"{change.column} = {arm.value} minus real scan",
                        "difference",
                        made[arm.value] - real,
                    )
                )
            notes += _notes(f"{change.column} = {arm.value}", arm)
        for first, second in pairs(arms):
            difference = (made[second.value] - made[first.value]).astype(np.float32)
            name = f"{safe_name(first.value)}_to_{safe_name(second.value)}"
            writer.write(
                difference,
                "difference",
                f"__{safe_name(change.column)}={name}",
                f"{change.column}: {second.value} minus {first.value}",
                np.float32,
                column=change.column,
                **{"from": first.value, "to": second.value},
            )
            effects += effect_rows(
                difference, where, case.id, change.column, first.value, second.value
            )
    metrics = metric_rows(
        case.id, volume, real, np.isin(whole.labels, data.lung_labels), data.hu_window
    )
    if scan is not None and real is not None:
        metrics += edit_metrics(test, whole, scan, real, where, chain(*varied))
    if page is not None:
        first_panels = [writer.panel("mask", "mask", whole.labels)]
        generated, *others = writer.panels
        given = [generated] if real is None else [generated, writer.panel("real scan", "ct", real)]
        page.add_case(
            case.id, sentence(own.prompt) or "(nothing known)", notes, first_panels + given + others
        )
    return writer.volumes, effects, metrics


def edit_metrics(
    test: GenerationPlan,
    whole: VolumeSample,
    scan: EditScan,
    real: Hu,
    where: Mapping[str, NDArray[np.bool_]],
    arms: Iterable[Variant],
) -> list[Row]:
    """Rows of metrics.csv that tell how well a scan was edited."""
    assert test.editor is not None
    prompts = {f"{arm.column}={arm.value}": [p.text for p in arm.prompt] for arm in arms}
    kinds = test.editor.proofs(scan, prompts, test.edit.edit_cycles)
    return edit_rows(
        whole.case.id,
        real,
        where,
        *({k: test.hu(whole, v) for k, v in made.items()} for made in kinds),
    )


def _notes(what: str, arm: Variant) -> list[str]:
    return (
        [f"{what}: {', '.join(arm.dropped)} left the text, as it would contradict."]
        if arm.dropped
        else []
    )


def results_folder(options: TestOptions) -> Path:
    """The folder of these results; raises `UserError` where something lies there that must not be
    replaced.
    """
    m, source = options.model, options.source
    runs.run_folder(m.checkpoints_dir, m.name)
    if safe_name(m.which_epoch) != m.which_epoch or m.which_epoch.startswith("."):
        raise UserError(
            f"--which_epoch is {m.which_epoch!r}; it must be latest, or the number of an epoch."
        )
    folder = Path(options.output.results_dir) / m.name / f"{source.split}_{m.which_epoch}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / RESULTS_FILE).is_file():
            raise UserError(
                f"{folder} exists, but holds no {RESULTS_FILE}, so these are no results and are "
                "not replaced. Use another --results_dir, or remove it by hand."
            )
        if not options.output.overwrite:
            raise UserError(
                f"{folder} holds results already. Use --overwrite to replace them, or another "
                "--results_dir."
            )
    return folder


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """A CSV file, whole or not at all."""
    with atomic(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _each(wholes: VolumeDataset) -> Iterator[VolumeSample]:
    return (wholes[i] for i in range(len(wholes)))


def generate_cohort(options: TestOptions) -> Path:
    """Generates every case of a split; returns the results folder."""
    folder = results_folder(options)
    run = open_run(options)
    test = open_plan(options, run)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    flags = {group: {k: v for k, v in values.items()} for group, values in to_dict(options).items()}
    write_json(
        folder / RESULTS_FILE, {"run": run.folder.name, "step": run.state["step"], "options": flags}
    )
    title = f"{run.folder.name}: {options.source.split}, {options.model.which_epoch} (step {run.state['step']})"
    page = ResultsPage(folder, title, run.options.data.hu_window) if options.output.page else None
    least, multiple = run.options.patch.patch_size, [run.generator.model.size_multiple] * 3
    wholes = VolumeDataset(test.cases, run.labels, test.data, least, multiple)
    tables: tuple[list[Row], list[Row], list[Row]] = ([], [], [])
    for whole in tqdm(
        _each(wholes),
        total=len(wholes),
        desc="generating",
        unit="case",
        disable=not cli.main_rank(),
    ):
        for table, rows in zip(tables, generate_case(test, whole, folder, page), strict=True):
            table += rows
    names = (
        ("volumes.csv", VOLUME_COLUMNS),
        ("effects.csv", EFFECT_COLUMNS),
        ("metrics.csv", METRIC_COLUMNS),
    )
    for (name, columns), rows in zip(names, tables, strict=True):
        write_table(folder / name, columns, rows)
    if page is not None:
        shown = {
            "test.py": {k: v for g in flags.values() for k, v in g.items()},
            **to_dict(run.options),
        }
        page.save(shown, tables[1], tables[2])
    log.info("%d cases in %s", len(wholes), folder / ("index.html" if page else "volumes.csv"))
    return folder


def generate_from_mask(options: TestOptions) -> Path:
    """One volume from one mask and a text; returns the file."""
    source, out = options.source, Path(options.source.out)
    if not source.out or not has_suffix(out.name) or not out.name.endswith((".nii", ".nii.gz")):
        raise UserError(
            f"--out is {source.out!r}; with --mask it names the volume to write, ending in .nii.gz."
        )
    if options.arms.vary or options.arms.set:
        raise UserError(
            "--set and --vary change a table's row; with --mask say everything in --prompt."
        )
    if out.exists() and not options.output.overwrite:
        raise UserError(f"--out {out} exists. Use --overwrite to replace it, or another name.")
    run = open_run(options)
    load(source.mask)  # its errors come before the network's work
    case = Case(Path(source.mask).name, None, Path(source.mask), {})
    least, multiple = run.options.patch.patch_size, [run.generator.model.size_multiple] * 3
    whole = VolumeDataset([case], run.labels, data_options(options, run), least, multiple)[0]
    made = run.generator(
        whole.mask, whole.coords, case.id, [p.text for p in split_free_text(options.arms.prompt)]
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_like(
        out, whole.restore(to_hu(made.numpy(), run.options.data.hu_window)), case.mask, np.int16
    )
    log.info("Wrote %s", out)
    return out
