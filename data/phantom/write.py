"""Makes a phantom cohort's folder: scans, masks, table, splits, and the record to render cases
again.
"""

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

from data.phantom import effects as phantom_effects
from data.phantom.anatomy import FIELD_MM, LEFT, RIGHT
from data.phantom.cohort import RECORD, VERSION, PhantomCohort
from data.phantom.effects import PlantedEffects
from data.phantom.rows import COLUMNS, draw_rows, hide_cells
from options.phantom_options import PhantomOptions
from util.cli import UserError
from util.files import claim_folder
from util.records import same_settings

log = logging.getLogger(__name__)

UNFINISHED = "phantom.unfinished.json"
FOLDERS = ("img", "gtlung")


def plan_phantom_cohort(
    options: PhantomOptions, effects: PlantedEffects
) -> tuple[PhantomCohort, dict[str, Any]]:
    """The cohort that options ask for, and its record for `phantom.json`."""
    held_out = options.test_cases + options.val_cases
    if options.cases <= held_out:
        raise UserError(
            f"--cases is {options.cases}, but --test_cases and --val_cases take {held_out} of "
            f"them; none is left to train on. Give at least {held_out + 1}."
        )
    cases = [f"phantom_{i + 1:03d}" for i in range(options.cases)]
    train, test = options.cases - held_out, options.cases - options.val_cases
    splits = {"train": cases[:train], "val": cases[test:], "test": cases[train:test]}
    spacing = options.spacing or tuple(
        round(f / n, 4) for f, n in zip(FIELD_MM, options.size, strict=True)
    )
    seeds = np.random.default_rng([options.seed, 0]).integers(2**53, size=len(cases))
    settings = asdict(options) | {"spacing": spacing, "effects": effects.raw}
    for not_a_setting in ("OUT", "overwrite"):
        del settings[not_a_setting]
    cohort = PhantomCohort(
        rows=draw_rows(cases, options.seed, options.confounding),
        seeds=dict(zip(cases, map(int, seeds), strict=True)),
        splits={k: tuple(v) for k, v in splits.items()},
        size=options.size,
        spacing=spacing,  # type: ignore[arg-type]
        patient_sd=options.patient_sd,
        effects=effects,
    )
    record = {
        "version": VERSION,
        "settings": settings,
        "splits": splits,
        "seeds": cohort.seeds,
        "rows": cohort.rows,
    }
    return cohort, json.loads(json.dumps(record))


def make_phantom_cohort(options: PhantomOptions) -> Path:
    """Writes a cohort (img/, gtlung/, clinical.csv, splits.json, and at last phantom.json), or
    finds it already there.

    Raises:
        UserError: Settings that contradict each other, a folder that holds something else, or no
            space.
    """
    cohort, record = plan_phantom_cohort(
        options, phantom_effects.load_effects(Path(options.effects) if options.effects else None)
    )
    out = Path(options.OUT)
    if _finished(out, record, options.overwrite):
        log.info("%s already holds this cohort: nothing to do.", out)
        return out
    if not {LEFT, RIGHT} <= set(np.unique(cohort.render(cohort.case_ids[0]).mask).tolist()):
        raise UserError(
            f"--spacing {cohort.spacing} mm and --size {cohort.size} miss the lungs. Leave "
            "--spacing out."
        )
    try:
        _clear(out)
        _write(cohort, record, out, options)
    except OSError as error:
        where = error.filename or out
        raise UserError(
            f"{where} cannot be written: {error.strerror}. Make room, or choose another OUT."
        ) from None
    return out


def _finished(out: Path, record: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether `out` holds this very cohort; raises `UserError` where it holds something that must
    not be replaced.
    """
    if not claim_folder(out, [RECORD, UNFINISHED], overwrite=True, flag="OUT"):
        return False
    kept = next(out / name for name in (RECORD, UNFINISHED) if (out / name).is_file())
    try:
        stored = json.loads(kept.read_text(encoding="utf-8"))
    except ValueError:
        stored = {}
    same = stored == record
    files = [out / folder / f"{case}.nii.gz" for folder in FOLDERS for case in record["rows"]]
    if (
        same
        and kept.name == RECORD
        and all(f.is_file() for f in [*files, out / "clinical.csv", out / "splits.json"])
    ):
        return True
    if not same:
        before, now = (
            {"version": r.get("version"), **r.get("settings", {})} for r in (stored, record)
        )
        same_settings(before, now, out, overwrite, "OUT")
    return False


def _clear(out: Path) -> None:
    """Takes away what an earlier `make` wrote, its record first."""
    for name in (RECORD, UNFINISHED, "clinical.csv", "splits.json"):
        (out / name).unlink(missing_ok=True)
    for name in FOLDERS:
        if (out / name).is_dir():
            shutil.rmtree(out / name)


def _write(
    cohort: PhantomCohort, record: Mapping[str, Any], out: Path, options: PhantomOptions
) -> None:
    for name in FOLDERS:
        (out / name).mkdir(parents=True)
    unfinished = out / UNFINISHED
    unfinished.write_text(json.dumps(record, indent=1), encoding="utf-8")
    train = {c: dict(cohort.rows[c]) for c in cohort.splits["train"]}
    table = {**cohort.rows, **hide_cells(train, options.missing, options.seed)}
    pd.DataFrame([table[c] for c in cohort.case_ids], columns=list(COLUMNS)).to_csv(
        out / "clinical.csv", index=False
    )
    (out / "splits.json").write_text(json.dumps(cohort.splits, indent=1), encoding="utf-8")
    for case in tqdm(cohort.case_ids, "phantoms", unit="case"):
        scan = cohort.render(case)
        _save(np.rint(scan.hu).astype(np.int16), scan.affine, out / "img" / f"{case}.nii.gz")
        _save(scan.mask, scan.affine, out / "gtlung" / f"{case}.nii.gz")
    unfinished.replace(out / RECORD)


def _save(array: NDArray[Any], affine: NDArray[np.float64], path: Path) -> None:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
