"""Generation of a synthetic cohort in the layout of a dataroot."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.cache import load_mask
from data.checks import check_labels_known
from data.cohort import IMAGES, MASKS, PROMPTS_FILE, Case, Cohort
from data.geometry import Volume, resample
from data.splits import save_splits
from data.table import read_table
from data.text.counterfactuals import values_by_column
from data.text.free_text import TextReader
from data.text.prompts import Template, cohort_prompts, load_template
from data.volumes import read_header, write_like
from models.inference import LoadedRun, load_run
from options.checks import check_chest_ct
from options.expand_options import ExpandCommand
from options.parser import to_dict
from options.test_options import ModelOptions
from pipelines.evaluation.memorisation import NearestScan
from pipelines.evidence import warn_young_run
from pipelines.generation import run_samples
from pipelines.run_cohort import is_training_cohort, load_run_cohort
from pipelines.synthesis.copies import CopySearch, SyntheticVolume
from pipelines.synthesis.deform import deform_plausibly
from pipelines.synthesis.page import CohortReport, write_cohort_page
from pipelines.synthesis.planning import (
    PROVENANCE,
    RUN,
    SEED,
    SOURCE,
    SYNTHETIC,
    PlannedCase,
    SourceTexts,
    cohort_readme,
    plan_balanced,
    plan_table,
    warning_section,
)
from util import cli
from util.cli import UserError, format_list
from util.files import atomic_path, read_json, write_csv, write_json
from util.locks import locked_folder
from util.notices import Notice, collected_warnings
from util.records import open_record, read_record, wait_for_record
from util.training import runs
from util.web.figures import LUNG

log = logging.getLogger(__name__)

RECORD = "expansion.json"  # the run and the flags that the cohort belongs to
RECORDS = "records"  # folder with a record of every case
SAME_MASK_FILE = "same_mask.json"  # distances of unseen cases to the scans of their masks
MAX_UNSEEN = 24  # cases outside the training split that are generated for it
COPY_COLUMNS = (
    "case",
    "source",
    "redrawn",
    "left_out",
    "nearest_training_case",
    "distance",
    "threshold",
)


# Types of a case's record.
RECORD_TYPES = {
    "case": str,
    "source": str,
    "seed": int,
    "redrawn": int,
    "left_out": bool,
    "nearest_training_case": str,
    "distance": float,
    "threshold": float,
}


def is_finished(record: Path) -> bool:
    """Return whether a case is finished; one whose record is damaged is made again."""
    if not record.is_file():
        return False
    fix = f"The case {record.stem} is made again"
    return read_record(record, RECORD_TYPES, fix) is not None


@dataclass(frozen=True)
class CaseSynthesiser:
    """Generates and writes single cases.

    Attributes:
        command: The command's options.
        run: The trained run.
        template: How rows become text.
        copies: The search for copies, or None where copies are not searched for.
    """

    command: ExpandCommand
    run: LoadedRun
    template: Template
    copies: CopySearch | None = None

    def __call__(self, planned: PlannedCase) -> dict[str, Any]:
        """Write mask and volume of a case; return its record.

        A volume that is too close to a training scan is redrawn up to `redraws` times, then
        dropped.
        """
        out = Path(self.command.expand.out)
        mask = out / MASKS / f"{planned.id}.nii.gz"
        nearest = NearestScan()
        for number in range(self.command.expand.redraws + 1):
            volume = self.draw_volume(planned, mask, number)
            if self.copies is not None:
                nearest = self.copies(volume)
            if not nearest.copied:
                header = read_header(mask)
                hu = resample(volume.hu, grid=(header.shape, header.affine))
                write_like(out / IMAGES / mask.name, hu.array, mask, np.int16, LUNG)
                return self._record(planned, number, nearest, left_out=False)
        mask.unlink()
        return self._record(planned, number, nearest, left_out=True)

    def draw_volume(self, planned: PlannedCase, mask: Path, number: int) -> SyntheticVolume:
        """Deform the mask, write it to the file `mask`, and generate its volume.

        Args:
            planned: The case.
            mask: File of the deformed mask.
            number: Number of the draw, which decides deformation and noise.
        """
        source = load_mask(planned.source)
        deformed = deform_plausibly(
            source, self.command.deform, [planned.seed, number], planned.source.mask
        )
        write_like(mask, deformed.labels, planned.source.mask, np.uint8)
        case = Case(planned.id, None, mask, planned.row, planned.source.body)
        sample = run_samples(self.run, [case], self.run.options.data)[0]
        generator = replace(self.run.generator, seed=planned.seed)
        volume = generator(sample, planned.prompt.texts, noise_key=f"{planned.id}:{number}")
        return SyntheticVolume(
            Volume(sample.to_hu(volume), sample.affine),
            Volume(deformed.labels, source.affine),
            planned.source,
            deformed.deformation,
        )

    def with_copy_search(self, copies: CopySearch, unseen: Sequence[Case]) -> CaseSynthesiser:
        """Return a synthesiser that searches for copies.

        The effect of a mask alone is measured on cases outside the training split.

        Args:
            copies: The search.
            unseen: Cases outside the training split.
        """
        out = Path(self.command.expand.out)
        path = out / SAME_MASK_FILE
        cases = unseen[:MAX_UNSEEN]
        distances = None
        if path.is_file():
            distances = read_record(path, list[float], "The distances are measured again")
        if distances is None or len(distances) != len(cases):
            mask = out / f".{os.getpid()}.nii.gz"
            distances = []
            for case in tqdm(
                cases, "cases outside training", unit="case", disable=not cli.is_main_process()
            ):
                row = dict(case.row)
                prompt = self.template.phrases(row)
                planned = PlannedCase(case.id, case, row, prompt, self.command.expand.seed)
                distances.append(copies.distance_to_source(self.draw_volume(planned, mask, 0)))
            mask.unlink(missing_ok=True)
            write_json(path, distances)
        return replace(self, copies=copies.with_same_mask_threshold(distances))

    def _record(
        self, planned: PlannedCase, redrawn: int, nearest: NearestScan, left_out: bool
    ) -> dict[str, Any]:
        return {
            "case": planned.id,
            "source": planned.source.id,
            "seed": planned.seed,
            "redrawn": redrawn,
            "left_out": left_out,
            "nearest_training_case": nearest.case,
            "distance": round(nearest.distance, 5),
            "threshold": round(nearest.threshold, 5),
            "emptied": list(planned.dropped),
            "prompt": planned.prompt.sentence,
        }


def select_source_cases(command: ExpandCommand, run: LoadedRun, cohort: Cohort) -> list[Case]:
    """Return the real cases whose masks and rows are used."""
    split = command.expand.split
    cases = list(cohort.cases if split == "all" else cohort.split(split))
    check_labels_known(cohort.labels, run.labels, [case.mask for case in cases])
    if split != "train":
        log.warning(
            "--split %s: masks of patients who are not for training are used, so tests on these "
            "patients mean less.",
            split,
        )
    return cases


def scans_by_training(run: LoadedRun, cohort: Cohort) -> tuple[list[Case], list[Case]]:
    """Return the scans that the run was trained on, and the other scans of its cohort."""
    root = run.options.data.dataroot
    if not is_training_cohort(run.options.data, cohort.root):
        if not Path(root).is_dir():
            log.warning(
                "The run's training cohort %s is not there: copies are searched for among the "
                "scans of %s alone.",
                root,
                cohort.root,
            )
            return [case for case in cohort.cases if case.image is not None], []
        seed = run.options.run.seed
        cohort = load_run_cohort(run.folder, run.options.data, root, seed, need_images=True)
    training_ids = set(cohort.splits["train"])
    training: list[Case] = []
    unseen: list[Case] = []
    for case in cohort.cases:
        if case.image is not None:
            (training if case.id in training_ids else unseen).append(case)
    return training, unseen


def plan_cases(command: ExpandCommand, run: LoadedRun, texts: SourceTexts) -> list[PlannedCase]:
    """Plan the new cases from `--balance` or `--table`.

    Raises:
        UserError: A column or a table that cannot be used.
    """
    e = command.expand
    if bool(e.balance) == bool(e.table):
        raise UserError("Give either --balance COLUMN, or --table FILE with the rows to make.")
    if e.table:
        table = read_table(Path(e.table), run.options.data.key_column)
        if unknown := sorted(set(table.columns) - set(run.state["columns"]) - set(PROVENANCE)):
            log.warning(
                "--table: the run was trained without %s, so these columns change nothing.",
                format_list(unknown),
            )
        planned = plan_table(table, texts.cases, texts.reader.template, e.n, e.seed)
    else:
        if not e.n:
            raise UserError("--n is 0; with --balance it says how many cases to make.")
        planned = plan_balanced(
            texts,
            e.balance,
            e.n,
            together=e.goal == "together",
            changed=e.rows == "changed",
            seed=e.seed,
        )
        if e.balance not in run.state["columns"]:
            raise UserError(
                f"--balance: the run {run.folder.name} was trained without the column "
                f"{e.balance!r}. Choose another column."
            )
    counts = Counter(case.id.casefold() for case in planned)
    if repeated := [case.id for case in planned if counts[case.id.casefold()] > 1]:
        raise UserError(
            f"--table: {format_list(repeated)} differ in capitals alone, which is one file on many "
            "disks. Give other names."
        )
    run.generator.encoder.validate([case.prompt.texts for case in planned])
    return planned


def write_cohort(
    command: ExpandCommand,
    run: LoadedRun,
    cohort: Cohort,
    planned: Sequence[PlannedCase],
    notices: Sequence[Notice] = (),
) -> None:
    """Write table, splits, README and page, once every case of every process is there.

    Args:
        command: The command's options.
        run: The trained run.
        cohort: The real cohort.
        planned: The new cases.
        notices: Warnings of the command.
    """
    e = command.expand
    out = Path(e.out)
    paths = [out / RECORDS / f"{case.id}.json" for case in planned]
    if not all(is_finished(path) for path in paths):
        log.info("Other processes are still at work; the last one writes the table.")
        return
    records = [read_json(path) for path in paths]
    left_out = {record["case"] for record in records if record["left_out"]}
    written = [case for case in planned if case.id not in left_out]
    _write_table(out / "clinical.csv", run, cohort, planned, written)
    if (cohort.root / PROMPTS_FILE).is_file():
        prompts = [{"File Name": case.id, "Prompt": case.prompt.sentence} for case in written]
        write_csv(out / PROMPTS_FILE, ("File Name", "Prompt"), prompts)
    splits = {"train": tuple(case.id for case in written), "val": (), "test": ()}
    save_splits(out / runs.SPLITS_FILE, splits)
    rows = [{column: record[column] for column in COPY_COLUMNS} for record in records]
    write_csv(out / "copies.csv", COPY_COLUMNS, rows)
    report = CohortReport(
        cohort.root.name, e.balance, e.check_copies, records, written, to_dict(command), notices
    )
    text = cohort_readme(
        records,
        run.folder.name,
        run.state["step"],
        report.source,
        report.column,
        report.counts if e.balance else {},
        report.checked,
    )
    with atomic_path(out / "README.md") as part:
        warnings = [notice.text for notice in notices]
        part.write_text(text + warning_section(warnings), encoding="utf-8")
    page = write_cohort_page(out, run, report)
    log.info(
        "%d synthetic cases in %s (%d redrawn, %d left out as copies). Page: %s",
        len(written),
        out,
        sum(record["redrawn"] for record in records),
        len(left_out),
        page,
    )


def _write_table(
    path: Path,
    run: LoadedRun,
    cohort: Cohort,
    planned: Sequence[PlannedCase],
    written: Sequence[PlannedCase],
) -> None:
    """Write the clinical table of the written cases, with the columns of all planned ones."""
    key_column = run.options.data.key_column
    columns = dict.fromkeys([key_column, *cohort.columns])
    for case in planned:
        columns.update(dict.fromkeys(case.row))
    columns.update(dict.fromkeys(PROVENANCE))
    rows = []
    for case in written:
        row: dict[str, Any] = {**case.row, key_column: case.id}
        row[SYNTHETIC] = "yes"
        row[SOURCE] = case.source.id
        row[SEED] = case.seed
        row[RUN] = f"{run.folder.name} step {run.state['step']}"
        rows.append(row)
    write_csv(path, list(columns), rows)


def _record_settings(command: ExpandCommand, run: LoadedRun) -> dict[str, Any]:
    """Return everything that decides the cohort."""
    settings = asdict(command.expand)
    for name in ("out", "overwrite"):
        del settings[name]
    table = settings.pop("table")
    return {
        "run": run.folder.name,
        "step": run.state["step"],
        "deform": asdict(command.deform),
        "table": hashlib.sha256(Path(table).read_bytes()).hexdigest() if table else "",
        **settings,
    }


def synthesise_cohort(command: ExpandCommand) -> Path:
    """Generate a synthetic cohort, or this process's share of it; return its folder."""
    e = command.expand
    if not e.out:
        raise UserError("--out is not given; it is the folder of the new cohort.")
    with locked_folder(Path(e.out), "--out"), collected_warnings() as notices:
        return _synthesise_share(command, notices)


def _synthesise_share(command: ExpandCommand, notices: Sequence[Notice]) -> Path:
    """Generate this process's share, in a folder that no other command uses.

    Page and README of the cohort repeat `notices`.
    """
    e = command.expand
    out = Path(e.out)
    run = load_run(_with_all_gpus(command.model))
    data = run.options.data
    check_chest_ct(data, "expanding a cohort")
    cohort = load_run_cohort(run.folder, data, e.dataroot, run.options.run.seed, need_images=False)
    cases = select_source_cases(command, run, cohort)
    template = load_template(data.template, cohort.columns, data.key_column, data.patient_column)
    warn_young_run(run)
    rows = [case.row for case in cohort.cases]
    reader = TextReader(template, values_by_column(template, rows))
    texts = SourceTexts(cases, cohort_prompts(cohort, template), reader)
    planned = plan_cases(command, run, texts)
    settings = _record_settings(command, run)
    if cli.is_main_process():
        open_record(out, RECORD, settings, e.overwrite)
    else:
        wait_for_record(out, RECORD, settings)
    records = out / RECORDS
    records.mkdir(exist_ok=True)
    rank = int(os.environ.get("RANK", "0"))
    share = planned[rank :: cli.world_size()]
    remaining = [case for case in share if not is_finished(records / f"{case.id}.json")]
    if remaining:
        synthesise = CaseSynthesiser(command, run, template)
        if e.check_copies:
            training, unseen = scans_by_training(run, cohort)
            copies = CopySearch.from_cases(training, data.lung_labels)
            synthesise = synthesise.with_copy_search(copies, unseen)
        for case in tqdm(
            remaining, "synthetic cases", unit="case", disable=not cli.is_main_process()
        ):
            write_json(records / f"{case.id}.json", synthesise(case))
    write_cohort(command, run, cohort, planned, notices)
    return out


def _with_all_gpus(model: ModelOptions) -> ModelOptions:
    """Return the options with a GPU per process, where several processes share the work."""
    if model.gpu_ids or cli.world_size() == 1:
        return model
    return replace(model, gpu_ids=",".join(map(str, range(torch.cuda.device_count()))))
