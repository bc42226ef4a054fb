"""What a dataroot has beside its volumes: table, splits and report; and whether a folder may become
one.
"""

from __future__ import annotations

import logging
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.cohort import IMAGES, MASKS, natural_key
from data.preparation.case import PAGES, RECORDS, Record
from data.preparation.headers import ACQUISITION, DEMOGRAPHICS
from data.preparation.join import Joined
from data.splits import MIN_CASES, SPLIT_NAMES, Splits, make_splits, save_splits
from util.cli import UserError
from util.files import claim_folder, read_json, write_csv

log = logging.getLogger(__name__)

KEY, PATIENT = "File Name", "Patient"
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp(\..*)?")
FOLDERS = (IMAGES, MASKS, PAGES, RECORDS)


def open_out(out: Path, source: Path) -> None:
    """Makes the folders of a dataroot, or finds those of an earlier run and clears what a killed
    one left half-written.

    Raises:
        UserError: OUT holds something else, lies in IN (or IN in OUT), or cannot be written.
    """
    here, there = out.resolve(), source.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise UserError(
            f"OUT {out} and IN {source} lie within each other. Give a folder apart: no scan is "
            "read twice."
        )
    claim_folder(out, [RECORDS], overwrite=True, flag="OUT")
    try:
        for name in (RECORDS, *FOLDERS):
            (out / name).mkdir(parents=True, exist_ok=True)
            for path in (out / name).iterdir():
                if TEMPORARY.fullmatch(path.name):
                    path.unlink()
        probe = out / RECORDS / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"OUT {out} cannot be written ({error.strerror}). Choose another folder or change "
            "permissions."
        ) from None


def records(out: Path) -> dict[str, Record]:
    """What is known of every finished case."""
    return {
        path.stem: read_json(path)
        for path in sorted((out / RECORDS).glob("*.json"), key=lambda p: natural_key(p.name))
    }


def forget(out: Path, case: str) -> None:
    """Takes a case out of the dataroot, its record first."""
    for path in (
        out / RECORDS / f"{case}.json",
        out / IMAGES / f"{case}.nii.gz",
        out / MASKS / f"{case}.nii.gz",
        out / PAGES / f"{case}.png",
    ):
        path.unlink(missing_ok=True)


def table_rows(
    done: Mapping[str, Record],
    patients: Mapping[str, str],
    joined: Mapping[str, Mapping[str, str]],
    columns: Sequence[str],
) -> list[dict[str, str]]:
    """A row a case: its patient, the clinical columns, and from the header those that the table
    does not know.

    Args:
        done: Records by case.
        patients: Case to patient.
        joined: Clinical rows by case.
        columns: The clinical columns.
    """
    taken = [*DEMOGRAPHICS, *ACQUISITION]
    known = [name for name in taken if any(record["row"].get(name) for record in done.values())]
    rows = []
    for case, record in done.items():
        clinical = joined.get(case, {})
        header = {name: clinical.get(name) or record["row"].get(name, "") for name in known}
        table = {name: clinical.get(name, "") for name in columns if name != PATIENT}
        rows.append({KEY: case, PATIENT: patients[case], **table, **header})
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], fields: Sequence[str] = ()) -> None:
    """A table, whole or not at all; the columns are those of the first row where none are named."""
    write_csv(path, fields or list(rows[0] if rows else {KEY: ""}), rows)


def splits(path: Path, patients: Mapping[str, str], seed: int) -> Splits | None:
    """Draws the splits by patient, or adds new cases to those of an earlier run without moving any.

    Args:
        path: `splits.json`, which is written.
        patients: Case to patient, of every case there is.
        seed: Decides the draw.

    Returns:
        The splits; None, and no file, where there are too few cases or patients: then every case is
        in every split.
    """
    if path.is_file():
        made = _extended(read_json(path), patients, seed)
    elif len(patients) < MIN_CASES or len(set(patients.values())) < len(SPLIT_NAMES):
        log.warning(
            "There are too few cases or patients to split (%d, %d); no splits.json was written.",
            len(patients),
            len(set(patients.values())),
        )
        return None
    else:
        made = make_splits(list(patients), seed, patients)
    save_splits(path, made)
    return made


def _extended(
    before: Mapping[str, Sequence[str]], patients: Mapping[str, str], seed: int
) -> Splits:
    """The earlier splits with the new cases, each patient in one of them."""
    lists = {name: [c for c in before.get(name, ()) if c in patients] for name in SPLIT_NAMES}
    home = {patients[c]: name for name, cases in lists.items() for c in cases}
    for case, patient in patients.items():
        if case not in {c for cases in lists.values() for c in cases}:
            draw = np.random.default_rng([seed, zlib.crc32(patient.encode())]).random()
            split = home.setdefault(
                patient, "train" if draw < 0.8 else "val" if draw < 0.9 else "test"
            )
            lists[split].append(case)
    return {name: tuple(cases) for name, cases in lists.items()}


def used_columns(joined: Joined | None, rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Every column of the table and where it comes from, for the report."""
    clinical = set(joined.columns) if joined else set()
    return {
        name: "made here"
        if name in (KEY, PATIENT)
        else "clinical table"
        if name in clinical
        else "DICOM header"
        for name in (rows[0] if rows else {})
    }
