"""The folder of a prepared cohort: which folders may become one, its records, table and splits."""

from __future__ import annotations

import logging
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.cohort import IMAGES, MASKS, SPLITS_FILE, natural_key
from data.preparation.case import RECORDS, REPORT_FOLDER, Record
from data.preparation.headers import ACQUISITION, DEMOGRAPHICS
from data.preparation.join import JoinedTable
from data.splits import MIN_CASES, SPLIT_NAMES, Splits, draw_splits, read_run_splits, save_splits
from data.text.values import match_ids
from options.prepare_options import OLD_MASK_KINDS
from util.cli import UserError
from util.files import claim_folder, read_json
from util.schema import check_record

log = logging.getLogger(__name__)

KEY_COLUMN = "File Name"
PATIENT_COLUMN = "Patient"
TEMPORARY_FILE = re.compile(r"\.[0-9a-f]{32}\.tmp(\..*)?")
RECORD_TYPES = {
    "masks": str,
    "row": dict[str, str],
    "measures": dict[str, Any],
    "warnings": list[str],
    "notes": list[str],
    "left_out": list[list[str]],
}
RECORD_FIX = "Remove it, and run the command again: the case is then prepared anew."
FOLDERS = (RECORDS, IMAGES, MASKS, REPORT_FOLDER)


def open_dataroot(out: Path, source: Path) -> None:
    """Make the folders of a dataroot, or clean those of an earlier run of half-written files.

    Raises:
        UserError: OUT holds something else, lies in IN (or IN in OUT), or cannot be written.
    """
    target = out.resolve()
    origin = source.resolve()
    if target == origin or origin in target.parents or target in origin.parents:
        raise UserError(
            f"OUT {out} and IN {source} lie within each other, so that scans could be read twice. "
            "Choose a separate folder."
        )
    claim_folder(out, [RECORDS], overwrite=True, flag="OUT")
    try:
        for name in FOLDERS:
            (out / name).mkdir(parents=True, exist_ok=True)
            for path in (out / name).iterdir():
                if TEMPORARY_FILE.fullmatch(path.name):
                    path.unlink()
        probe = out / RECORDS / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"OUT {out} cannot be written ({error.strerror}). Choose another folder or change "
            "permissions."
        ) from None


def read_records(out: Path) -> dict[str, Record]:
    """Return the records of all finished cases in natural order."""
    records: dict[str, Record] = {}
    for path in sorted((out / RECORDS).glob("*.json"), key=lambda path: natural_key(path.name)):
        record = check_record(read_json(path), RECORD_TYPES, path, RECORD_FIX)
        record["masks"] = OLD_MASK_KINDS.get(record["masks"], record["masks"])
        records[path.stem] = record
    return records


def table_rows(
    records: Mapping[str, Record],
    patients: Mapping[str, str],
    clinical_rows: Mapping[str, Mapping[str, str]],
    columns: Sequence[str],
) -> list[dict[str, str]]:
    """Return a row per case: its patient, the clinical columns, and columns of its header.

    The clinical table takes precedence over the header.
    """
    header_columns = [
        name
        for name in (*DEMOGRAPHICS, *ACQUISITION)
        if any(record["row"].get(name) for record in records.values())
    ]
    rows = []
    for case, record in records.items():
        clinical = clinical_rows.get(case, {})
        row = {KEY_COLUMN: case, PATIENT_COLUMN: patients[case]}
        row |= {name: clinical.get(name, "") for name in columns if name not in row}
        for name in header_columns:
            row[name] = clinical.get(name) or record["row"].get(name, "")
        rows.append(row)
    return rows


def write_splits(path: Path, patients: Mapping[str, str], seed: int) -> Splits | None:
    """Draw the splits by patient, or add new cases to those of an earlier run and move none.

    Args:
        path: `splits.json`, which is written.
        patients: Case to patient, of every case there is.
        seed: Seed of the draw.

    Returns:
        The splits; None, and no file, with too few cases or patients: then every case is in every
        split.
    """
    patient_count = len(set(patients.values()))
    if path.is_file():
        splits = _extend_splits(read_run_splits(path) or {}, patients, seed)
    elif len(patients) < MIN_CASES or patient_count < len(SPLIT_NAMES):
        log.warning(
            "There are too few cases or patients to split (%d, %d); no splits.json was written.",
            len(patients),
            patient_count,
        )
        return None
    else:
        splits = draw_splits(list(patients), seed, patients)
    save_splits(path, splits)
    return splits


def _extend_splits(
    earlier: Mapping[str, Sequence[str]], patients: Mapping[str, str], seed: int
) -> Splits:
    """Return the earlier splits with the new cases, each patient in one of them.

    A person may have written the earlier ones, so that their cases are matched as in any cohort.
    """
    names = [case for cases in earlier.values() for case in cases]
    matches = match_ids(names, patients, SPLITS_FILE)
    lists: dict[str, list[str]] = {}
    split_of_patient: dict[str, str] = {}
    for name in SPLIT_NAMES:
        lists[name] = [matches[case] for case in earlier.get(name, ()) if case in matches]
        split_of_patient |= {patients[case]: name for case in lists[name]}
    split_cases = {case for cases in lists.values() for case in cases}
    for case, patient in patients.items():
        if case not in split_cases:
            name = split_of_patient.setdefault(patient, _draw_split(patient, seed))
            lists[name].append(case)
    return {name: tuple(cases) for name, cases in lists.items()}


def _draw_split(patient: str, seed: int) -> str:
    draw = np.random.default_rng([seed, zlib.crc32(patient.encode())]).random()
    if draw < 0.8:
        return "train"
    return "val" if draw < 0.9 else "test"


def column_origins(table: JoinedTable | None, rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return where every column of the table comes from, for the report."""
    clinical = table.columns if table else ()
    origins = {}
    for name in rows[0] if rows else ():
        if name in (KEY_COLUMN, PATIENT_COLUMN):
            origins[name] = "made here"
        else:
            origins[name] = "clinical table" if name in clinical else "DICOM header"
    return origins
