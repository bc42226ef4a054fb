"""A spike test on a user's own scans: a copy of a cohort with a random yes/no column and its effect
added to the scans.
"""

from __future__ import annotations

import csv
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from data.cohort import IMAGES, MASKS, Case, Cohort
from data.load_cohort import load_cohort
from data.resampling import group_by_patient, patients_of
from data.text.prompts import PROMPTS_FILE
from data.volumes import load_volume, strip_suffix, write_like
from options.base_options import DataOptions
from options.plant_options import PlantOptions
from util import cli
from util.cli import UserError, format_list
from util.files import atomic_folder, atomic_path, claim_folder, write_json
from util.metrics.regions import regions

log = logging.getLogger(__name__)

PLANT_RECORD = "plant.json"
YES, NO = "Yes", "No"


def plant_effect(data: DataOptions, o: PlantOptions) -> Path:
    """Writes the copy, its record last; unchanged files are linked where the disk allows.

    Raises:
        UserError: A bad cohort, a column that is there, a folder that is not empty, or a region
            without a voxel.
    """
    cohort = load_cohort(data)
    out = _checked_out(o.out, cohort)
    if o.column in cohort.columns or o.column == data.key_column or not o.column.strip():
        raise UserError(
            f"--column is {o.column!r}; it must be the name of a new column. The table has: "
            f"{format_list(list(cohort.columns), 30)}."
        )
    given = draw_values(cohort, data.patient_column, o.share, o.plant_seed)
    with atomic_folder(out) as part:
        for case in tqdm(cohort.cases, "Planting", unit="case", disable=not cli.main_rank()):
            _copy_case(case, part, given[case.id] == YES, data, o)
        _copy_table(cohort, part, data.key_column, o.column, given)
        _copy_texts(cohort, part, o.column, given)
        record = {
            "column": o.column,
            "from": NO,
            "to": YES,
            "hu": o.hu,
            "region": o.region,
            "seed": o.plant_seed,
            "source": str(cohort.root.resolve()),
            "cases": given,
        }
        write_json(part / PLANT_RECORD, record)
    log.info(
        "Planted %+g HU in the region %s of %d of %d cases: %s",
        o.hu,
        o.region,
        list(given.values()).count(YES),
        len(given),
        out,
    )
    return out


def _checked_out(name: str, cohort: Cohort) -> Path:
    if not name:
        raise UserError("--out is not given; it is the folder for the copy.")
    out = Path(name)
    claim_folder(out, [], overwrite=False)
    if cohort.root.resolve() in [out.resolve(), *out.resolve().parents]:
        raise UserError(
            f"--out {out} lies within --dataroot {cohort.root}. Choose a folder elsewhere."
        )
    if any(case.image is None for case in cohort.cases):
        raise UserError(
            f"{cohort.root} has masks without scans; an effect can be planted in scans alone."
        )
    return out


def draw_values(cohort: Cohort, patient_column: str, share: float, seed: int) -> dict[str, str]:
    """Case to Yes or No: a random share of the patients, at least one of each."""
    groups = list(
        group_by_patient(
            [case.id for case in cohort.cases], patients_of(cohort, patient_column)
        ).values()
    )
    if len(groups) < 2:
        raise UserError(
            f"{cohort.root} has a single patient; an effect is planted in some of several."
        )
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    chosen = set(np.random.default_rng([seed, 21]).permutation(len(groups))[:count].tolist())
    return {case: YES if k in chosen else NO for k, group in enumerate(groups) for case in group}


def _copy_case(case: Case, part: Path, has_it: bool, data: DataOptions, o: PlantOptions) -> None:
    assert case.image is not None
    _link(case.mask, part / MASKS / case.mask.name)
    mask = load_volume(case.mask)
    where = regions(mask.array, voxel_sizes(mask.affine), data.lung_labels, data.airway_label).get(
        o.region
    )
    if where is None:
        raise UserError(
            f"{case.mask} has no voxel in --region {o.region}. Choose another region, or check "
            "--lung_labels."
        )
    if not has_it:
        _link(case.image, part / IMAGES / case.image.name)
        return
    scan = load_volume(case.image).array
    changed = scan + np.asarray(o.hu * where, np.float32)
    dtype = (
        scan.dtype
        if float(o.hu).is_integer() and scan.dtype.kind == "i" and scan.dtype.itemsize > 1
        else np.float32
    )
    write_like(
        part / IMAGES / f"{strip_suffix(case.image.name)}.nii.gz", changed, case.image, dtype
    )


def _link(source: Path, target: Path) -> None:
    """A hard link, which outlives the source; a copy across disks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sources = [source]
    if source.suffix.lower() == ".mhd":  # its voxels lie in a file beside it
        sources += [p for p in (source.with_suffix(s) for s in (".raw", ".zraw")) if p.is_file()]
    for path in sources:
        try:
            os.link(path.resolve(), target.with_name(path.name))
        except OSError:
            shutil.copy2(path, target.with_name(path.name))


def _copy_table(
    cohort: Cohort, part: Path, key: str, column: str, given: Mapping[str, str]
) -> None:
    with (
        atomic_path(part / "clinical.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([key, *cohort.columns, column])
        writer.writerows(
            [
                [c.id, *(c.row.get(name, "") for name in cohort.columns), given[c.id]]
                for c in cohort.cases
            ]
        )


def _copy_texts(cohort: Cohort, part: Path, column: str, given: Mapping[str, str]) -> None:
    """Splits as they are, and prompts that also tell the new column."""
    if (cohort.root / "splits.json").is_file():
        shutil.copy2(cohort.root / "splits.json", part / "splits.json")
    source = cohort.root / PROMPTS_FILE
    if not source.is_file():
        return
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        case = strip_suffix(row["File Name"].strip())
        if case in given:
            row["Prompt"] = f"{row['Prompt'].strip().rstrip('.,;')}, {column} is {given[case]}."
    with (part / PROMPTS_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["File Name", "Prompt"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
