"""A synthetic cohort in the layout of a dataroot: generated cases, or edited training scans."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from data.checks.masks import check_labels_known
from data.cohort import PROMPTS_FILE, Case, Cohort
from data.fingerprints import volume_digest
from data.provenance import (
    CHANGE,
    EDIT_COLUMNS,
    EDITS_FILE,
    HOW,
    PROVENANCE,
    RUN,
    SEED,
    SOURCE,
    SYNTHETIC,
)
from data.resampling import patients_of
from data.splits import save_splits
from data.table import read_table
from data.text.counterfactuals import parse_edits, values_by_column
from data.text.free_text import TextReader
from data.text.prompts import cohort_prompts, load_template
from models.inference import LoadedRun
from models.text.relevance import warn_low_relevance
from options.checks import check_chest_ct
from options.expand_options import ExpandCommand, ExpandOptions
from options.parser import to_dict
from options.test_options import ModelOptions
from pipelines.evidence import warn_young_run
from pipelines.run_cohort import is_training_cohort, load_run_cohort
from pipelines.run_words import known_synonyms, load_worded_run
from pipelines.synthesis import case_edits, case_synthesis
from pipelines.synthesis.case_edits import CaseEditor, check_edits, edit_rows, editable_cases
from pipelines.synthesis.case_synthesis import CaseSynthesiser
from pipelines.synthesis.copies import CopySearch
from pipelines.synthesis.masks import DeformedMasks, MaskMaker, ShapeMasks, given_mask
from pipelines.synthesis.page import write_cohort_page
from pipelines.synthesis.planning.balance import Sources, plan_balanced
from pipelines.synthesis.planning.planned_case import PlannedCase
from pipelines.synthesis.planning.retrieval import retrieve_sources
from pipelines.synthesis.planning.source_texts import SourceTexts
from pipelines.synthesis.planning.table import PROMPT, plan_table
from pipelines.synthesis.planning.wordings import plan_edited
from pipelines.synthesis.report import CohortReport, cohort_readme, describe_changes
from pipelines.synthesis.shape_model import MaskLabels
from util import cli
from util.cli import UserError, counted, format_list
from util.files import atomic_path, file_sha256, read_json, write_csv, write_json
from util.locks import locked_folder
from util.notices import Notice, collected_warnings
from util.progress import progress_bar
from util.records import open_record, read_record, wait_for_record
from util.training import runs

log = logging.getLogger(__name__)

RECORD = "expansion.json"  # the run and the flags that the cohort belongs to
RECORDS = "records"  # folder with a record of every case
COPY_COLUMNS = (
    "case",
    "source",
    "redrawn",
    "left_out",
    "reason",
    "nearest_training_case",
    "distance",
    "threshold",
    "nearest_mask",
    "mask_distance",
    "mask_threshold",
)


def is_finished(record: Path, edits: bool) -> bool:
    """Return whether a case is finished; one whose record is damaged is made again.

    Args:
        edits: Whether the cohort holds edited scans.
    """
    if not record.is_file():
        return False
    types = case_edits.RECORD_TYPES if edits else case_synthesis.RECORD_TYPES
    fix = f"The case {record.stem} is made again"
    return read_record(record, types, fix) is not None


def check_flags(e: ExpandOptions) -> None:
    """Raise `UserError` for flags that do not go together, before anything is read."""
    if sum(map(bool, (e.balance, e.vary_text, e.table))) != 1:
        raise UserError(
            'Give one of --balance COLUMN, --vary_text "WORDS=>OTHER", and --table FILE with the '
            "rows to make."
        )
    if not e.table and not e.n:
        flag = "--balance" if e.balance else "--vary_text"
        raise UserError(f"--n is 0; with {flag} it says how many cases to make.")
    if e.retrieve != "none" and (e.edits or e.masks == "shape" or not e.table):
        raise UserError(
            f"--retrieve {e.retrieve} finds masks of patients for the rows or texts of --table; it "
            "is given without --table, with edits of real scans, or with --masks shape. Leave "
            "--retrieve out, or give --table with --masks deform or given."
        )
    if not e.edits:
        return
    if e.vary_text:
        raise UserError(
            f"--vary_text is given with --how {e.how}, whose tables declare the columns that an "
            "edit changed. Use --how generate; test.py --edit_real --vary_text edits single scans."
        )
    if e.masks != "deform":
        raise UserError(
            f"--masks {e.masks}: --how {e.how} changes real scans, whose masks stay. Leave "
            "--masks out, or use --how generate."
        )
    if e.split != "train":
        raise UserError(
            f"--split {e.split}: --how {e.how} changes real scans, and scans of people who are "
            "held out would get into training. Leave --split out."
        )
    if e.rows == "own" and e.balance:
        raise UserError(
            f"--rows own: --how {e.how} changes the value of a scan, so its row cannot stay "
            "its own. Leave --rows out, or use --how generate."
        )


def select_source_cases(command: ExpandCommand, run: LoadedRun, cohort: Cohort) -> list[Case]:
    """Return the real cases whose masks, or scans, and rows are used."""
    e, data = command.expand, run.options.data
    if e.edits:
        cases = editable_cases(cohort, data.patient_column, held_out_masks(run, cohort))
        if missing := len(set(cohort.splits["train"])) - len(cases):
            log.warning(
                "No sources of edits: %s without a scan, or of a patient who is held out.",
                counted(missing, "training case"),
            )
    else:
        cases = list(cohort.cases if e.split == "all" else cohort.split(e.split))
        if e.split != "train":
            log.warning(
                "--split %s: masks of patients who are not for training are used, so tests on "
                "these patients mean less.",
                e.split,
            )
    check_labels_known(cohort.labels, run.labels, [case.mask for case in cases])
    return cases


def held_out_masks(run: LoadedRun, cohort: Cohort) -> set[str]:
    """Return digests of the masks of the run's own cohort that it did not train on.

    They are empty where the cohort is the run's own, whose splits tell the same.
    """
    data = run.options.data
    if is_training_cohort(data, cohort.root) or not Path(data.dataroot).is_dir():
        return set()
    seed = run.options.run.seed
    trained_on = load_run_cohort(run.folder, data, data.dataroot, seed, need_images=False)
    training = set(trained_on.splits["train"])
    held_out = [case for case in trained_on.cases if case.id not in training]
    return {volume_digest(case.mask)["sha256"] for case in held_out}


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


def _plan_table(e: ExpandOptions, run: LoadedRun, texts: SourceTexts) -> list[PlannedCase]:
    """Plan the new cases from the rows of `--table`."""
    table = read_table(Path(e.table), run.options.data.key_column)
    known = {*run.state["columns"], *PROVENANCE, *(() if e.edits else (PROMPT,))}
    if unknown := sorted(set(table.columns) - known):
        log.warning(
            "--table: the run was trained without %s, so these columns change nothing.",
            format_list(unknown),
        )
    planned = plan_table(table, texts, e.n, e.seed, edits=e.edits)
    if e.retrieve == "none":
        return planned
    named = [name for name, cells in table.rows.items() if cells.get(SOURCE, "").strip()]
    return retrieve_sources(planned, texts, e.retrieve, run.generator.encoder, named)


def plan_cases(command: ExpandCommand, run: LoadedRun, texts: SourceTexts) -> list[PlannedCase]:
    """Plan the new cases from `--balance`, `--vary_text` or `--table`.

    Raises:
        UserError: A column, words or a table that cannot be used.
    """
    e = command.expand
    if e.table:
        planned = _plan_table(e, run, texts)
    elif e.vary_text:
        edits = parse_edits(e.vary_text)
        together, changed = e.goal == "together", e.rows == "changed"
        planned = plan_edited(texts, edits, e.n, together=together, changed=changed, seed=e.seed)
    else:
        sources: Sources = "other" if e.edits else "own" if e.rows == "own" else "changed"
        planned = plan_balanced(
            texts, e.balance, e.n, together=e.goal == "together", sources=sources, seed=e.seed
        )
        if untrained := [column for column in e.balance if column not in run.state["columns"]]:
            raise UserError(
                f"--balance: the run {run.folder.name} was trained without the column "
                f"{untrained[0]!r}. Choose another column."
            )
        prompts = [prompt.annotated for prompt in texts.prompts.values()]
        warn_low_relevance(run.generator.encoder, prompts, e.balance)
    if e.edits:
        check_edits(e, run, texts, planned)
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
    """Write table, splits, README and page, once every case of every process is there."""
    e = command.expand
    out = Path(e.out)
    paths = [out / RECORDS / f"{case.id}.json" for case in planned]
    if not all(is_finished(path, e.edits) for path in paths):
        log.info("Other processes are still at work; the last one writes the table.")
        return
    records = [read_json(path) for path in paths]
    left_out = {record["case"] for record in records if record.get("left_out")}
    written = [case for case in planned if case.id not in left_out]
    report = CohortReport(
        cohort.root.name,
        run.folder.name,
        run.state["step"],
        e.how,
        e.masks,
        e.retrieve,
        e.balance or _edited_words(e.vary_text),
        e.check_copies,
        records,
        written,
        to_dict(command),
        notices,
    )
    _write_table(out / "clinical.csv", run, cohort, planned, report)
    is_written = any(phrase.column is None for case in written for phrase in case.prompt)
    if is_written or e.vary_text or (cohort.root / PROMPTS_FILE).is_file():
        prompts = [{"File Name": case.id, "Prompt": case.prompt.sentence} for case in written]
        write_csv(out / PROMPTS_FILE, ("File Name", "Prompt"), prompts)
    splits = {"train": tuple(case.id for case in written), "val": (), "test": ()}
    save_splits(out / runs.SPLITS_FILE, splits)
    if e.edits:
        write_csv(out / EDITS_FILE, EDIT_COLUMNS, edit_rows(records))
    else:
        rows = [{column: record[column] for column in COPY_COLUMNS} for record in records]
        write_csv(out / "copies.csv", COPY_COLUMNS, rows)
    with atomic_path(out / "README.md") as part:
        part.write_text(cohort_readme(report), encoding="utf-8")
    page = write_cohort_page(out, run, report)
    if e.edits:
        log.info("%s in %s. Page: %s", counted(len(written), "edited scan"), out, page)
        return
    log.info(
        "%s in %s (%d redrawn, %d left out). Page: %s",
        counted(len(written), "synthetic case"),
        out,
        report.count("redrawn"),
        len(left_out),
        page,
    )


def _edited_words(edits: Sequence[str]) -> list[str]:
    """Return what tables call the words that `--vary_text` replaces."""
    columns = [edit.column for edit in parse_edits(edits)]
    return columns if len(columns) < 2 else ["text"]


def _write_table(
    path: Path,
    run: LoadedRun,
    cohort: Cohort,
    planned: Sequence[PlannedCase],
    report: CohortReport,
) -> None:
    """Write the clinical table of the written cases, with the columns of all planned ones."""
    key_column = run.options.data.key_column
    columns = dict.fromkeys([key_column, *cohort.columns])
    for case in planned:
        columns.update(dict.fromkeys(case.row))
    columns.update(dict.fromkeys(PROVENANCE))
    rows = []
    for case in report.written:
        row: dict[str, Any] = {**case.row, key_column: case.id}
        row[SYNTHETIC] = "edited" if report.edits else "yes"
        row[HOW] = report.how if report.edits else f"{report.how}, masks {report.mask_origin}"
        row[SOURCE] = case.source.id
        row[CHANGE] = describe_changes(case) if report.edits else ""
        row[SEED] = case.seed
        row[RUN] = f"{report.run} step {report.step}"
        rows.append(row)
    write_csv(path, list(columns), rows)


def record_settings(command: ExpandCommand, run: LoadedRun) -> dict[str, Any]:
    """Return everything that decides the cohort."""
    settings = asdict(command.expand)
    for name in ("out", "overwrite"):
        del settings[name]
    table = settings.pop("table")
    return {
        "run": run.folder.name,
        "step": run.state["step"],
        "checkpoint": run.digest,
        "use_average": command.model.use_average,
        "deform": asdict(command.deform),
        "sampling": asdict(command.sampling),
        "paraphrases": command.model.paraphrases and file_sha256(Path(command.model.paraphrases)),
        "table": hashlib.sha256(Path(table).read_bytes()).hexdigest() if table else "",
        **settings,
    }


def synthesise_cohort(command: ExpandCommand) -> Path:
    """Generate a synthetic cohort, or this process's share of it; return its folder."""
    e = command.expand
    check_flags(e)
    with locked_folder(Path(e.out), "--out"), collected_warnings() as notices:
        return _synthesise_share(command, notices)


def _synthesise_share(command: ExpandCommand, notices: Sequence[Notice]) -> Path:
    """Generate this process's share, in a folder that no other command uses.

    Page and README of the cohort repeat `notices`.
    """
    e = command.expand
    out = Path(e.out)
    run = load_worded_run(_with_all_gpus(command.model), sampling=command.sampling)
    data = run.options.data
    check_chest_ct(data, "expanding a cohort")
    cohort = load_run_cohort(run.folder, data, e.dataroot, run.options.run.seed, need_images=False)
    cases = select_source_cases(command, run, cohort)
    template = load_template(data.template, cohort.columns, data.key_column, data.patient_column)
    warn_young_run(run)
    rows = [case.row for case in cohort.cases]
    synonyms = known_synonyms(run.generator.encoder)
    reader = TextReader(template, values_by_column(template, rows), synonyms)
    texts = SourceTexts(cases, cohort_prompts(cohort, template), reader)
    planned = plan_cases(command, run, texts)
    settings = record_settings(command, run)
    if cli.is_main_process():
        open_record(out, RECORD, settings, e.overwrite)
    else:
        wait_for_record(out, RECORD, settings)
    records = out / RECORDS
    records.mkdir(exist_ok=True)
    rank = int(os.environ.get("RANK", "0"))
    share = planned[rank :: cli.world_size()]
    remaining = [c for c in share if not is_finished(records / f"{c.id}.json", e.edits)]
    if remaining:
        make_case: Callable[[PlannedCase], dict[str, Any]]
        if e.edits:
            make_case = CaseEditor(e, run, texts)
        else:
            make_case = _open_synthesiser(command, run, cohort, texts, planned)
        title = "edited scans" if e.edits else "synthetic cases"
        for case in progress_bar(remaining, title):
            write_json(records / f"{case.id}.json", make_case(case))
    write_cohort(command, run, cohort, planned, notices)
    return out


def _open_synthesiser(
    command: ExpandCommand,
    run: LoadedRun,
    cohort: Cohort,
    texts: SourceTexts,
    planned: Sequence[PlannedCase],
) -> CaseSynthesiser:
    make_mask = _mask_maker(command, run, cohort, texts, planned)
    synthesiser = CaseSynthesiser(command, run, texts.reader.template, make_mask)
    if not command.expand.check_copies:
        return synthesiser
    training, unseen = scans_by_training(run, cohort)
    data = run.options.data
    copies = CopySearch.from_cases(training, data.lung_labels, data.patient_column)
    return synthesiser.with_copy_search(copies, unseen)


def _mask_maker(
    command: ExpandCommand,
    run: LoadedRun,
    cohort: Cohort,
    texts: SourceTexts,
    planned: Sequence[PlannedCase],
) -> MaskMaker:
    """Return what makes the masks of new cases, as `--masks` says."""
    e, data = command.expand, run.options.data
    if e.masks == "deform":
        return DeformedMasks(command.deform)
    if e.masks == "given":
        return given_mask
    others = {case.body.label for case in texts.cases if case.body is not None}
    others |= set(data.lesion_labels)
    labels = tuple(label for label in run.labels[1:] if label not in others)
    names = MaskLabels(labels, data.lung_labels, data.airway_label, data.lesion_labels)
    patients = patients_of(cohort, data.patient_column)
    return ShapeMasks.from_cases(texts, patients, names, planned, e.seed)


def _with_all_gpus(model: ModelOptions) -> ModelOptions:
    """Return the options with a GPU per process, where several processes share the work."""
    if model.gpu_ids or cli.world_size() == 1:
        return model
    return replace(model, gpu_ids=",".join(map(str, range(torch.cuda.device_count()))))
