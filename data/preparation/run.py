"""From a folder of scans to a dataroot: the whole way, a step a line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from data.preparation import dataroot, jobs, report, tools
from data.preparation.case import RECORDS, DiskRefuses, Record, Task, finished, prepare
from data.preparation.headers import ACQUISITION, DEMOGRAPHICS
from data.preparation.join import Joined, join
from data.preparation.masks import MaskPlan
from data.preparation.register import Register
from data.preparation.sources import Found, Source, discover, guess
from options.prepare_options import (
    GridOptions,
    PrepareCommand,
    SourceOptions,
    TableOptions,
)
from util.cli import UserError, format_list

log = logging.getLogger(__name__)


class SomeFailed(UserError):
    """Some cases could not be prepared; the others are there."""

    code = 3


@dataclass
class PreparationResult:
    """What a run did: records by case, reasons of failures by case, and how many cases were there
    already.
    """

    done: dict[str, Record] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    kept: int = 0


def prepare_dataroot(options: PrepareCommand) -> Path:
    """Makes or continues the dataroot.

    Raises:
        UserError: Bad input, before anything long starts.
        SomeFailed: At the end, where cases failed or folders could not be read (exit code 3).
        DiskRefuses: The disk is full; finished cases stay.
    """
    root, out = Path(options.source.IN), Path(options.source.OUT)
    if not root.is_dir():
        raise UserError(f"IN {root} does not exist or is no folder.")
    kind = guess(root) if options.source.source == "auto" else options.source.source
    masks = _mask_kind(options.grid)
    found = discover(root, kind, options.series, _mask_dir(options.grid))
    private = options.source.ids == "recode" or (
        options.source.ids == "auto" and kind in ("dicom", "volumes")
    )
    joined = _joined(found, options.table, private)
    key = _key_file(options.source, out)
    dataroot.open_out(out, root)
    register = Register(key, private)
    register.add(found.sources)
    kept = (*DEMOGRAPHICS, *ACQUISITION) if options.source.demographics else ACQUISITION
    tasks = [
        Task(
            register.entries[s.key].case,
            s,
            out,
            _plan(s, masks, options.grid),
            options.grid.spacing,
            options.series.uneven,
            kept,
        )
        for s in found.sources
    ]
    log.info("%s: %d scans (%s).", root, len(tasks), kind)
    prepared = _work(tasks, options.work.jobs)
    _finish(out, prepared, tasks, register, joined, found, options, private)
    _end(out, prepared, found, register.path)
    return out


def _mask_kind(options: GridOptions) -> str:
    if options.mask_dir and options.masks not in ("given", "auto"):
        raise UserError(
            f"--mask_dir is given, but --masks is {options.masks}. Leave one of them out."
        )
    if options.masks in tools.PROGRAMS:
        tools.check_installed(options.masks)
    return "given" if options.mask_dir else options.masks


def _mask_dir(options: GridOptions) -> Path | None:
    if not options.mask_dir:
        return None
    if not Path(options.mask_dir).is_dir():
        raise UserError(f"--mask_dir {options.mask_dir} does not exist or is no folder.")
    return Path(options.mask_dir)


def _key_file(options: SourceOptions, out: Path) -> Path:
    path = Path(options.key_file) if options.key_file else out.with_name(f"{out.name}.key.csv")
    if out.resolve() in path.resolve().parents:
        raise UserError(
            f"--key_file {path} lies in OUT, which is what one hands on. Keep the key elsewhere."
        )
    if not path.is_file() and any((out / RECORDS).glob("*.json")):
        raise UserError(
            f"OUT {out} holds cases, but their key {path} is missing, so that nobody knows whose "
            "they are. Name it with --key_file, or give a new OUT."
        )
    return path


def _plan(source: Source, kind: str, options: GridOptions) -> MaskPlan:
    if kind == "auto":
        kind = "given" if source.mask is not None else "classic"
    given = source.mask if kind == "given" else None
    return MaskPlan(
        kind,
        given,
        source.airway if kind != "given" else None,
        options.tool_args,
        options.tool_hours,
    )


def _joined(found: Found, options: TableOptions, private: bool) -> Joined | None:
    path = Path(options.table) if options.table else found.table
    if path is None:
        if options.key_column or options.patient_column:
            raise UserError(
                "--key_column and --patient_column name columns of a table, and there is none. "
                "Give --table."
            )
        return None
    joined = join(path, found.sources, options.key_column, private)
    if options.patient_column and options.patient_column not in (
        *joined.columns,
        joined.key_column,
    ):
        raise UserError(
            f"--patient_column {options.patient_column!r} is no column of {path}; it has: "
            f"{format_list([joined.key_column, *joined.columns], 30)}."
        )
    return joined


def _work(tasks: Sequence[Task], count: int) -> PreparationResult:
    prepared = PreparationResult()
    todo = []
    for task in tasks:
        record = finished(task)
        if record is None:
            todo.append(task)
        else:
            prepared.done[task.case] = record
    prepared.kept = len(prepared.done)
    if prepared.kept:
        log.info("%d cases are there already and unchanged.", prepared.kept)
    with tqdm(
        total=len(todo), desc="Preparing", unit="case", disable=not sys.stderr.isatty()
    ) as bar:
        for task, outcome in jobs.each(prepare, todo, count):
            bar.update()
            if isinstance(outcome, DiskRefuses):
                raise UserError(f"{outcome} Finished cases are kept; run the command again then.")
            if isinstance(outcome, Exception):
                kind = (
                    ""
                    if isinstance(outcome, UserError)
                    else f"Unexpected {type(outcome).__name__}: "
                )
                reason = f"{kind}{outcome}"
                log.error("%s: %s", task.case, reason)
                dataroot.forget(task.out, task.case)
                prepared.failed[task.case] = report.without_paths(reason, task.source)
            else:
                prepared.done[task.case] = outcome
    return prepared


def _patients(
    cases: Sequence[str],
    by_case: Mapping[str, Source],
    register: Register,
    joined: Joined | None,
    column: str,
) -> dict[str, str]:
    """Case to patient: the scan's own, or cases that share a value of the column as the first of
    them.
    """
    own = {entry.case: entry.patient for entry in register.entries.values()}
    if not column or joined is None or column == joined.key_column:
        return {case: own[case] for case in cases}
    first: dict[str, str] = {}
    rows = {
        case: joined.rows.get(by_case[case].key, {}) if case in by_case else {} for case in cases
    }
    named = {case: rows[case].get(column, "") for case in cases}
    return {
        case: first.setdefault(value, own[case]) if value else own[case]
        for case, value in named.items()
    }


def _finish(
    out: Path,
    prepared: PreparationResult,
    tasks: Sequence[Task],
    register: Register,
    joined: Joined | None,
    found: Found,
    options: PrepareCommand,
    private: bool,
) -> None:
    """Table, splits and report of every case in OUT, those of earlier runs among them."""
    by_case = {task.case: task.source for task in tasks}
    done = dataroot.records(out)
    gone = [case for case in done if case not in by_case]
    if gone:
        found.remarks.append(
            f"{len(gone)} cases of an earlier run are no longer in IN and were kept: "
            f"{format_list(gone)}"
        )
    patients = _patients(list(done), by_case, register, joined, options.table.patient_column)
    rows_by_case = (
        {case: joined.rows.get(source.key, {}) for case, source in by_case.items()}
        if joined
        else {}
    )
    columns = (
        [c for c in joined.columns if not (private and c == options.table.patient_column)]
        if joined
        else []
    )
    rows = dataroot.table_rows(done, patients, rows_by_case, columns)
    if done:
        dataroot.write_rows(out / "clinical.csv", rows)
        dataroot.splits(out / "splits.json", patients, options.table.seed)
    remarks = [*found.remarks, *(joined.remarks if joined else ())]
    for text in remarks:
        log.info("%s", text)
    report.write(
        report.Report(
            out,
            options,
            dataroot.used_columns(joined, rows),
            done,
            prepared.failed,
            by_case,
            tuple(remarks),
            tuple(found.unreadable),
        )
    )


def _end(out: Path, prepared: PreparationResult, found: Found, key: Path) -> None:
    warned = [case for case, record in prepared.done.items() if record["warnings"]]
    log.info(
        "%s: %d cases (%d new), %d with warnings. Look at %s. The key to the case ids is %s.",
        out,
        len(prepared.done),
        len(prepared.done) - prepared.kept,
        len(warned),
        out / "report.html",
        key,
    )
    for text in found.unreadable:
        log.error("%s", text)
    if not prepared.failed and not found.unreadable:
        return
    texts = []
    if prepared.failed:
        texts.append(
            f"{len(prepared.failed)} cases could not be prepared: {format_list(list(prepared.failed))}."
        )
    if found.unreadable:
        texts.append(f"{len(found.unreadable)} files or folders could not be read.")
    raise SomeFailed(
        f"{' '.join(texts)} The reasons stand above and in {out / 'report.html'}; the other "
        f"{len(prepared.done)} cases are ready. Mend them and run the command again."
    )
