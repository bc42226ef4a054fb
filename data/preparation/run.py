"""Preparation of a dataroot from a folder of scans: plan, cases, then table, splits and report."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from data.checks.case import CaseCheck
from data.checks.cohort import outlier_warnings
from data.cohort import SPLITS_FILE
from data.preparation import dataroot
from data.preparation.case import (
    RECORDS,
    CaseFiles,
    CaseTask,
    DiskFullError,
    Record,
    is_drawn,
    prepare_case,
    read_finished_record,
    redraw_case,
)
from data.preparation.headers import ACQUISITION, DEMOGRAPHICS
from data.preparation.jobs import run_in_processes
from data.preparation.join import JoinedTable, join_table
from data.preparation.masks import MaskPlan
from data.preparation.register import CaseRegister
from data.preparation.report import PreparationReport, hide_paths, write_report
from data.preparation.sources import Discovery, Source, detect_source_kind, discover_sources
from data.preparation.tools import PROGRAMS, check_installed
from data.review import read_review
from data.splits import read_run_splits
from data.table import read_lines
from data.text.prompts import matching_template
from options.prepare_options import GridOptions, PrepareCommand, SourceOptions, TableOptions
from util.cli import UserError, counted, format_list
from util.files import write_csv

log = logging.getLogger(__name__)


class SomeCasesFailed(UserError):
    """Some cases could not be prepared; the others are ready."""

    code = 3


@dataclass(frozen=True)
class PreparationPlan:
    """Everything that is decided before the first case is prepared.

    Attributes:
        options: The flags of the command.
        out: The dataroot.
        discovery: The sources.
        table: The clinical table.
        private: Whether nothing of the source may identify people.
        register: Ids of the cases.
        tasks: The cases to prepare.
    """

    options: PrepareCommand
    out: Path
    discovery: Discovery
    table: JoinedTable | None
    private: bool
    register: CaseRegister
    tasks: tuple[CaseTask, ...]

    @property
    def sources(self) -> dict[str, Source]:
        """Sources by case."""
        return {task.case: task.source for task in self.tasks}


@dataclass
class PreparationResult:
    """The cases of one run.

    Attributes:
        records: Records by case.
        failed: Reasons by case that could not be prepared.
        unchanged: Number of cases that were ready before.
    """

    records: dict[str, Record] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unchanged: int = 0


def prepare_dataroot(options: PrepareCommand) -> Path:
    """Prepare a dataroot, or continue an earlier run.

    Raises:
        UserError: Bad input, before anything long starts, or a full disk; finished cases stay.
        SomeCasesFailed: At the end, where cases failed or folders could not be read (exit code 3).
    """
    plan = plan_preparation(options)
    result = prepare_cases(plan.tasks, options.work.jobs)
    write_summary(plan, result)
    report_outcome(plan, result)
    return plan.out


def plan_preparation(options: PrepareCommand) -> PreparationPlan:
    """Find the sources, give them ids, and open the dataroot.

    Raises:
        UserError: Bad input.
    """
    root = Path(options.source.IN)
    out = Path(options.source.OUT)
    if not root.is_dir():
        raise UserError(f"IN {root} does not exist or is not a folder.")
    kind = options.source.source
    if kind == "auto":
        kind = detect_source_kind(root)
    mask_kind = _mask_kind(options.grid)
    modality = options.source.modality
    if modality != "ct":
        _check_modality(options, kind)
        mask_kind = "load"
    mask_dir = _mask_dir(options.grid)
    discovery = discover_sources(root, kind, options.series, mask_dir, modality)
    private = options.source.ids == "recode"
    if options.source.ids == "auto":
        private = kind in ("dicom", "volumes")
    table = _join_table(discovery, options.table, private)
    read_review(out)  # damaged files are errors before anything long
    read_run_splits(out / SPLITS_FILE)
    key_file = _key_file(options.source, out)
    dataroot.open_dataroot(out, root)
    register = CaseRegister(key_file, private)
    register.add(discovery.sources)
    columns = (*DEMOGRAPHICS, *ACQUISITION) if options.source.demographics else ACQUISITION
    tasks = []
    for source in discovery.sources:
        task = CaseTask(
            case=register.entries[source.identity].case,
            source=source,
            out=out,
            masks=_mask_plan(source, mask_kind, options.grid),
            spacing=options.grid.spacing,
            uneven=options.series.uneven,
            columns=columns,
            slices=options.work.slices,
            modality=modality,
        )
        tasks.append(task)
    log.info("%s: %s (%s).", root, counted(len(tasks), "scan"), kind)
    return PreparationPlan(options, out, discovery, table, private, register, tuple(tasks))


def _check_modality(options: PrepareCommand, kind: str) -> None:
    """Raise `UserError` where flags are for chest CT alone."""
    modality = options.source.modality
    if kind in ("aiib23", "osic"):
        raise UserError(
            f"--modality is {modality}, and {options.source.IN} is a cohort of chest CT ({kind}). "
            "Leave --modality out, or name another --source."
        )
    if options.grid.masks not in ("auto", "load"):
        raise UserError(
            f"--masks is {options.grid.masks}, which finds lungs in chest CT. With --modality "
            f"{modality} give masks: --mask_dir FOLDER, or gtlung/ beside img/."
        )
    if options.series.kernel != "any":
        raise UserError(
            f"--kernel is {options.series.kernel}, which chest CT has. Leave it out with "
            f"--modality {modality}."
        )


def _mask_kind(options: GridOptions) -> str:
    if options.mask_dir and options.masks not in ("load", "auto"):
        raise UserError(
            f"--mask_dir is given, but --masks is {options.masks}. Leave one of them out."
        )
    if options.masks in PROGRAMS:
        check_installed(options.masks)
    return "load" if options.mask_dir else options.masks


def _mask_dir(options: GridOptions) -> Path | None:
    if not options.mask_dir:
        return None
    if not Path(options.mask_dir).is_dir():
        raise UserError(f"--mask_dir {options.mask_dir} does not exist or is not a folder.")
    return Path(options.mask_dir)


def _mask_plan(source: Source, kind: str, options: GridOptions) -> MaskPlan:
    if kind == "auto":
        kind = "threshold" if source.mask is None else "load"
    mask_file = source.mask if kind == "load" else None
    airway_file = source.airway if kind != "load" else None
    return MaskPlan(kind, mask_file, airway_file, options.tool_args, options.tool_hours)


def _key_file(options: SourceOptions, out: Path) -> Path:
    path = Path(options.key_file) if options.key_file else out.with_name(f"{out.name}.key.csv")
    if out.resolve() in path.resolve().parents:
        raise UserError(
            f"--key_file {path} lies in OUT, which may be handed on. Keep the key elsewhere."
        )
    if not path.is_file() and any((out / RECORDS).glob("*.json")):
        raise UserError(
            f"OUT {out} holds cases, but their key {path} is missing, so that nobody knows whose "
            "they are. Name it with --key_file, or give a new OUT."
        )
    return path


def _join_table(discovery: Discovery, options: TableOptions, private: bool) -> JoinedTable | None:
    path = Path(options.table) if options.table else discovery.table
    if path is None:
        if options.key_column or options.patient_column:
            raise UserError(
                "--key_column and --patient_column name columns of a table, and there is none. "
                "Give --table."
            )
        return None
    table = join_table(
        path,
        discovery.sources,
        options.key_column,
        private,
        default_key="" if options.table else discovery.key_column,
        patient_column=options.patient_column,
    )
    columns = [table.key_column, *table.columns]
    if options.patient_column and options.patient_column not in columns:
        raise UserError(
            f"--patient_column {options.patient_column!r} is not a column of {path}; it has: "
            f"{format_list(columns, 30)}."
        )
    return table


def prepare_cases(tasks: Sequence[CaseTask], jobs: int) -> PreparationResult:
    """Prepare the cases that are not ready yet.

    Raises:
        UserError: The disk is full; finished cases stay.
    """
    result = PreparationResult()
    waiting = []
    undrawn = []
    for task in tasks:
        record = read_finished_record(task)
        if record is None:
            waiting.append(task)
        else:
            result.records[task.case] = record
            if not is_drawn(task, record):
                undrawn.append(task)
    result.unchanged = len(result.records)
    if result.unchanged:
        log.info(
            "%s already there and unchanged.", counted(result.unchanged, "case is", "cases are")
        )
    hide_bar = not sys.stderr.isatty()
    with tqdm(total=len(waiting), desc="Preparing", unit="case", disable=hide_bar) as bar:
        for task, outcome in run_in_processes(prepare_case, waiting, jobs):
            bar.update()
            if isinstance(outcome, DiskFullError):
                raise UserError(f"{outcome} Finished cases are kept; run the command again then.")
            if isinstance(outcome, Exception):
                result.failed[task.case] = _discard_failed(task, outcome)
            else:
                result.records[task.case] = outcome
    for task, outcome in run_in_processes(redraw_case, undrawn, jobs):
        if isinstance(outcome, Exception):
            log.warning("%s: its pictures could not be drawn: %s", task.case, outcome)
        else:
            result.records[task.case] = outcome
    return result


def _discard_failed(task: CaseTask, error: Exception) -> str:
    """Remove files of a failed case, log the reason, and return it without paths."""
    reason = str(error)
    if not isinstance(error, UserError):
        reason = f"Unexpected {type(error).__name__}: {reason}"
    log.error("%s: %s", task.case, reason)
    CaseFiles.in_dataroot(task.out, task.case).remove()
    return hide_paths(reason, task.source)


def write_summary(plan: PreparationPlan, result: PreparationResult) -> None:
    """Write table, splits and report of every case in OUT, those of earlier runs among them."""
    records = dataroot.read_records(plan.out)
    sources = plan.sources
    remarks = list(plan.discovery.remarks)
    gone = [case for case in records if case not in sources]
    if gone:
        remarks.append(
            f"{counted(len(gone), 'case')} of an earlier run, no longer in IN, kept: "
            f"{format_list(gone)}."
        )
    for warning in (*_label_warnings(records), *_compare_cases(records)):
        log.warning("%s", warning)
        remarks.append(warning)
    clinical_rows: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    patient_column = plan.options.table.patient_column
    if plan.table is not None:
        remarks += plan.table.remarks
        columns = list(plan.table.columns)
        if plan.private and patient_column in columns:
            columns.remove(patient_column)
        for case, source in sources.items():
            clinical_rows[case] = plan.table.rows.get(source.identity, {})
    patients = _patients(plan, list(records), clinical_rows)
    rows = dataroot.table_rows(records, patients, clinical_rows, columns)
    if records:
        write_csv(plan.out / "clinical.csv", list(rows[0]), rows)
        dataroot.write_splits(plan.out / SPLITS_FILE, patients, plan.options.table.seed)
    for text in remarks:
        log.info("%s", text)
    report = PreparationReport(
        out=plan.out,
        options=plan.options,
        origins=dataroot.column_origins(plan.table, rows),
        records=records,
        failed=result.failed,
        sources=sources,
        remarks=remarks,
        unreadable=plan.discovery.unreadable,
        private=plan.private,
    )
    write_report(report)


def _label_warnings(records: Mapping[str, Record]) -> list[str]:
    """Return a warning of CT whose masks were loaded and number lungs differently; else nothing."""
    measures = [
        record["measures"] for record in records.values() if record.get("modality", "ct") == "ct"
    ]
    labels: set[int] = set()
    for measured in measures:
        if "label_ml" in measured:
            labels |= set(measured["labels"]) - {0}
    if not labels:
        return []
    count = sum("label_ml" in measured for measured in measures)
    names = format_list([str(label) for label in sorted(labels)])
    return [
        f"{counted(count, 'mask holds', 'masks hold')} other labels ({names}) than 1 left lung, 2 "
        "right lung, 3 airway and 4 body. Their lungs were neither measured nor checked here: "
        "look at the outlines. Name the labels to train.py with --lung_labels LEFT,RIGHT and "
        "--airway_label (those of TotalSegmentator, MAISI and VISTA3D are recognised)."
    ]


def training_command(out: Path, modality: str) -> str:
    """Return the command that trains on a dataroot, with the template of its table's columns."""
    header = read_lines(out / "clinical.csv")[0]
    words = ["python train.py", "--dataroot", shlex.quote(str(out))]
    if modality != "ct":
        words += ["--modality", modality]
    if modality == "custom":
        words += ["--intensity_window", "LOW,HIGH"]
    words += ["--template", matching_template(header) or "auto", "--patient_column Patient"]
    return " ".join([*words, "--name run1 --preset 24gb"])


def _compare_cases(records: Mapping[str, Record]) -> list[str]:
    """Return warnings of cases whose lungs, air or voxels are far from those of the other ones."""
    names = [Path(case) for case in records]
    checks = [
        CaseCheck(
            spacing=record["measures"]["spacing_mm"],
            image=record.get("hu") if record.get("modality", "ct") == "ct" else None,
        )
        for record in records.values()
    ]
    return outlier_warnings([(name, name) for name in names], checks)


def _patients(
    plan: PreparationPlan,
    cases: Sequence[str],
    clinical_rows: Mapping[str, Mapping[str, str]],
) -> dict[str, str]:
    """Return case to patient.

    Cases that share a value of `--patient_column` have the patient of the first of them.
    """
    source_patients = {ids.case: ids.patient for ids in plan.register.entries.values()}
    column = plan.options.table.patient_column
    by_column = column and plan.table is not None
    patients: dict[str, str] = {}
    first_patient: dict[str, str] = {}
    for case in cases:
        patients[case] = source_patients[case]
        value = clinical_rows.get(case, {}).get(column, "") if by_column else ""
        if value:
            patients[case] = first_patient.setdefault(value, source_patients[case])
    return patients


def report_outcome(plan: PreparationPlan, result: PreparationResult) -> None:
    """Log the outcome.

    Raises:
        SomeCasesFailed: Cases failed, or folders could not be read.
    """
    page = plan.out / "report.html"
    log.info(
        "%s: %s (%d new), %d with warnings. Look at %s. The key to the case ids is %s.",
        plan.out,
        counted(len(result.records), "case"),
        len(result.records) - result.unchanged,
        sum(bool(record["warnings"]) for record in result.records.values()),
        page,
        plan.register.path,
    )
    for item in plan.discovery.unreadable:
        log.error("%s", item)
    problems = []
    if result.failed:
        cases = format_list(list(result.failed))
        problems.append(f"{counted(len(result.failed), 'case')} could not be prepared: {cases}.")
    if plan.discovery.unreadable:
        count = counted(len(plan.discovery.unreadable), "file or folder", "files or folders")
        problems.append(f"{count} could not be read.")
    if problems:
        raise SomeCasesFailed(
            f"{' '.join(problems)} The reasons stand above and in {page}; "
            f"{counted(len(result.records), 'case is', 'cases are')} ready. Correct the cause "
            "and run the command again."
        )
