"""Makes a phantom cohort's folder: scans, masks, table, splits, and the record to render cases again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from data import phantom_effects
from data.phantom import RECORD, VERSION, PhantomCohort
from data.phantom_anatomy import FIELD_MM, LEFT, RIGHT
from data.phantom_effects import Effects
from data.phantom_rows import COLUMNS, draw_rows, hide
from options.parser import argument, flag
from util.cli import UserError

log = logging.getLogger(__name__)

UNFINISHED = "phantom.unfinished.json"
FOLDERS = ("img", "gtlung")


@dataclass(frozen=True)
class PhantomOptions:
    """What `scripts/make_phantoms.py` makes."""

    OUT: str = argument("Folder for the cohort; one made with the same settings is used again.")
    cases: int = flag(96, "Number of patients, test and validation cases included.", low=1)
    size: tuple[int, int, int] = flag((64, 64, 48), "Voxels from left to right, back to front, bottom to top.", low=16)
    spacing: tuple[float, float, float] | None = flag(
        None, "Voxel size in mm; by default such that the chest fills the volume.", low=0.1)
    seed: int = flag(1, "Seed of everything that is random.", low=0)
    test_cases: int = flag(6, "Cases of the test split.", low=0)
    val_cases: int = flag(4, "Cases of the validation split.", low=0)
    missing: float = flag(0.12, "Share of the training rows' cells left empty.", low=0, high=0.9)
    patient_sd: float = flag(
        20.0, "SD in HU of the lungs' density between patients for reasons outside the table.", low=0, high=100)
    confounding: float = flag(0.0, "Probability that smoking history decides the diagnosis.", low=0, high=1)
    effects: str = flag("", "YAML table of effects (data/effects/phantom.yaml by default).")
    overwrite: bool = flag(False, "Replace a phantom cohort made with other settings.")


def plan(options: PhantomOptions, effects: Effects) -> tuple[PhantomCohort, dict[str, Any]]:
    """The cohort that options ask for, and its record for `phantom.json`."""
    held_out = options.test_cases + options.val_cases
    if options.cases <= held_out:
        raise UserError(
            f"--cases is {options.cases}, but --test_cases and --val_cases take {held_out} of them; none is left "
            f"to train on. Give at least {held_out + 1}.")
    cases = [f"phantom_{i + 1:03d}" for i in range(options.cases)]
    train, test = options.cases - held_out, options.cases - options.val_cases
    splits = {"train": cases[:train], "val": cases[test:], "test": cases[train:test]}
    spacing = options.spacing or tuple(round(f / n, 4) for f, n in zip(FIELD_MM, options.size, strict=True))
    seeds = np.random.default_rng([options.seed, 0]).integers(2**53, size=len(cases))
    settings = asdict(options) | {"spacing": spacing, "effects": effects.raw}
    for not_a_setting in ("OUT", "overwrite"):
        del settings[not_a_setting]
    cohort = PhantomCohort(
        rows=draw_rows(cases, options.seed, options.confounding), seeds=dict(zip(cases, map(int, seeds), strict=True)),
        splits={k: tuple(v) for k, v in splits.items()}, size=options.size, spacing=spacing,  # type: ignore[arg-type]
        patient_sd=options.patient_sd, effects=effects,
    )
    record = {"version": VERSION, "settings": settings, "splits": splits, "seeds": cohort.seeds, "rows": cohort.rows}
    return cohort, json.loads(json.dumps(record))


def make(options: PhantomOptions) -> Path:
    """Writes a cohort (img/, gtlung/, clinical.csv, splits.json, and at last phantom.json), or finds it already there.

    Raises:
        UserError: Settings that contradict each other, a folder that holds something else, or no space.
    """
    cohort, record = plan(options, phantom_effects.load(Path(options.effects) if options.effects else None))
    out = Path(options.OUT)
    if _finished(out, record, options.overwrite):
        log.info("%s already holds this cohort: nothing to do.", out)
        return out
    if not {LEFT, RIGHT} <= set(np.unique(cohort.render(cohort.case_ids[0]).mask).tolist()):
        raise UserError(f"--spacing {cohort.spacing} mm and --size {cohort.size} miss the lungs. Leave --spacing out.")
    try:
        _clear(out)
        _write(cohort, record, out, options)
    except OSError as error:
        where = error.filename or out
        raise UserError(f"{where} cannot be written: {error.strerror}. Make room, or choose another OUT.") from None
    return out


def _finished(out: Path, record: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether `out` holds this very cohort; raises `UserError` where it holds something that must not be replaced."""
    if out.exists() and not out.is_dir():
        raise UserError(f"OUT is {out}, which is a file; give a folder.")
    if not out.exists() or not any(out.iterdir()):
        return False
    kept = next((out / name for name in (RECORD, UNFINISHED) if (out / name).is_file()), None)
    if kept is None:
        raise UserError(f"{out} is not empty and holds no phantom cohort; choose another folder.")
    try:
        there = json.loads(kept.read_text(encoding="utf-8"))
    except ValueError:
        there = {}
    same = there == record
    files = [out / folder / f"{case}.nii.gz" for folder in FOLDERS for case in record["rows"]]
    if same and kept.name == RECORD and all(f.is_file() for f in [*files, out / "clinical.csv", out / "splits.json"]):
        return True
    if not same and not overwrite:
        old, new = there.get("settings", {}), record["settings"]
        differ = [f"{k} {old.get(k)} there, {v} now" for k, v in new.items() if old.get(k) != v and k != "effects"]
        differ += ["another table of effects"] if old.get("effects") != new["effects"] else []
        text = "; ".join(differ) or "another version"
        raise UserError(f"{out} holds a phantom cohort of other settings ({text}). Give another folder or --overwrite.")
    return False


def _clear(out: Path) -> None:
    """Takes away what an earlier `make` wrote, its record first."""
    for name in (RECORD, UNFINISHED, "clinical.csv", "splits.json"):
        (out / name).unlink(missing_ok=True)
    for name in FOLDERS:
        if (out / name).is_dir():
            shutil.rmtree(out / name)


def _write(cohort: PhantomCohort, record: Mapping[str, Any], out: Path, options: PhantomOptions) -> None:
    for name in FOLDERS:
        (out / name).mkdir(parents=True)
    unfinished = out / UNFINISHED
    unfinished.write_text(json.dumps(record, indent=1), encoding="utf-8")
    train = {c: dict(cohort.rows[c]) for c in cohort.splits["train"]}
    table = {**cohort.rows, **hide(train, options.missing, options.seed)}
    pd.DataFrame([table[c] for c in cohort.case_ids], columns=list(COLUMNS)).to_csv(out / "clinical.csv", index=False)
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
