"""Writing of a phantom cohort: scans, masks, table, splits, and the record to render it again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from data.cohort import IMAGES, MASKS, SPLITS_FILE
from data.geometry import as_shape
from data.phantom.anatomy import FIELD_MM, LEFT, RIGHT
from data.phantom.cohort import RECORD, VERSION, PhantomCohort
from data.phantom.effects import PlantedEffects, load_effects
from data.phantom.rows import COLUMNS, draw_rows, hide_cells
from options.phantom_options import PhantomOptions
from util.cli import UserError
from util.files import claim_folder, write_frame, write_json
from util.records import read_record, same_settings

log = logging.getLogger(__name__)

UNFINISHED = "phantom.unfinished.json"
TABLE_FILE = "clinical.csv"


def plan_phantom_cohort(options: PhantomOptions, effects: PlantedEffects) -> PhantomCohort:
    """Draw patients, rows and splits; raise `UserError` where no case is left to train on."""
    held_out = options.test_cases + options.val_cases
    if options.cases <= held_out:
        raise UserError(
            f"--cases is {options.cases}, but --test_cases and --val_cases take {held_out} of "
            f"them; none is left to train on. Give at least {held_out + 1}."
        )
    cases = tuple(f"phantom_{i + 1:03d}" for i in range(options.cases))
    first_test = options.cases - held_out
    first_val = options.cases - options.val_cases
    spacing = options.spacing
    if spacing is None:
        x, y, z = (round(mm / n, 4) for mm, n in zip(FIELD_MM, options.size, strict=True))
        spacing = (x, y, z)
    seeds = np.random.default_rng([options.seed, 0]).integers(2**53, size=len(cases))
    return PhantomCohort(
        rows=draw_rows(cases, options.seed, options.confounding),
        seeds=dict(zip(cases, seeds.tolist(), strict=True)),
        splits={
            "train": cases[:first_test],
            "val": cases[first_val:],
            "test": cases[first_test:first_val],
        },
        size=as_shape(options.size),
        spacing=spacing,
        patient_sd=options.patient_sd,
        effects=effects,
    )


def _cohort_record(cohort: PhantomCohort, options: PhantomOptions) -> dict[str, Any]:
    """Return the content of `phantom.json`, as JSON brings it back."""
    settings = asdict(options) | {"spacing": cohort.spacing, "effects": cohort.effects.raw}
    for name in ("OUT", "overwrite"):  # they do not change the cohort
        del settings[name]
    record = {
        "version": VERSION,
        "settings": settings,
        "splits": cohort.splits,
        "seeds": cohort.seeds,
        "rows": cohort.rows,
    }
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain


def make_phantom_cohort(options: PhantomOptions) -> Path:
    """Write a cohort (img/, gtlung/, clinical.csv, splits.json, and at last phantom.json).

    A folder that holds this very cohort already is left as it is.

    Returns:
        The folder.

    Raises:
        UserError: Settings contradict each other, the folder holds something else, or the disk is
            full.
    """
    effects = load_effects(Path(options.effects) if options.effects else None)
    cohort = plan_phantom_cohort(options, effects)
    record = _cohort_record(cohort, options)
    out = Path(options.OUT)
    if _is_finished(out, record, options.overwrite):
        log.info("%s already holds this cohort: nothing to do.", out)
        return out
    if not {LEFT, RIGHT} <= set(np.unique(cohort.render(cohort.case_ids[0]).mask).tolist()):
        raise UserError(
            f"--spacing {cohort.spacing} mm and --size {cohort.size} miss the lungs. Leave "
            "--spacing out."
        )
    train = {case: cohort.rows[case] for case in cohort.splits["train"]}
    rows = {**cohort.rows, **hide_cells(train, options.missing, options.seed)}
    try:
        _clear(out)
        _write(cohort, rows, record, out)
    except OSError as error:
        raise UserError(
            f"{error.filename or out} cannot be written: {error.strerror}. Make room, or choose "
            "another OUT."
        ) from None
    return out


def _is_finished(out: Path, record: Mapping[str, Any], overwrite: bool) -> bool:
    """Return whether `out` holds this very cohort.

    Raises:
        UserError: It holds something that must not be replaced.
    """
    if not claim_folder(out, [RECORD, UNFINISHED], overwrite=True, flag="OUT"):
        return False
    path = out / RECORD
    is_complete = path.is_file()
    if not is_complete:
        path = out / UNFINISHED
    stored = read_record(path, {"settings": dict[str, Any]}, "It is taken for another cohort") or {}
    if stored != record:
        before = {"version": stored.get("version"), **stored.get("settings", {})}
        now = {"version": VERSION, **record["settings"]}
        same_settings(before, now, out, overwrite, "OUT")
        return False
    files = [out / TABLE_FILE, out / SPLITS_FILE]
    for case in record["rows"]:
        files += [out / IMAGES / f"{case}.nii.gz", out / MASKS / f"{case}.nii.gz"]
    return is_complete and all(file.is_file() for file in files)


def _clear(out: Path) -> None:
    """Remove the files of an earlier cohort, its record first."""
    for name in (RECORD, UNFINISHED, TABLE_FILE, SPLITS_FILE):
        (out / name).unlink(missing_ok=True)
    for name in (IMAGES, MASKS):
        if (out / name).is_dir():
            shutil.rmtree(out / name)


def _write(
    cohort: PhantomCohort,
    rows: Mapping[str, Mapping[str, str]],
    record: Mapping[str, Any],
    out: Path,
) -> None:
    """Write all files; the record gets its name last, so that a killed run is not taken for one."""
    for name in (IMAGES, MASKS):
        (out / name).mkdir(parents=True)
    write_json(out / UNFINISHED, record)
    table = pd.DataFrame([rows[case] for case in cohort.case_ids], columns=list(COLUMNS))
    write_frame(out / TABLE_FILE, table)
    write_json(out / SPLITS_FILE, cohort.splits)
    for case in tqdm(cohort.case_ids, "phantoms", unit="case"):
        scan = cohort.render(case)
        hu = np.rint(scan.hu).astype(np.int16)
        _save(hu, scan.affine, out / IMAGES / f"{case}.nii.gz")
        _save(scan.mask, scan.affine, out / MASKS / f"{case}.nii.gz")
    (out / UNFINISHED).replace(out / RECORD)


def _save(array: NDArray[Any], affine: NDArray[np.float64], path: Path) -> None:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
