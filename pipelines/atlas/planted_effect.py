"""Planted effects: a copy of a cohort with a random yes/no column whose effect is in its scans."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.checks.masks import load_labels
from data.cohort import IMAGES, MASKS, PROMPTS_FILE, SPLITS_FILE, Case, Cohort
from data.integrity import find_voxel_data
from data.load_cohort import load_cohort
from data.regions import regions_of
from data.resampling import group_by_patient, patients_of
from data.splits import read_splits, save_splits
from data.text.values import match_ids
from data.volumes import load_volume, strip_suffix, write_like
from options.base_options import DataOptions
from options.checks import check_chest_ct
from options.plant_options import PlantOptions
from util.cli import UserError, counted, format_list
from util.files import atomic_folder, claim_folder, read_csv, write_csv, write_json
from util.progress import progress_bar

log = logging.getLogger(__name__)

PLANT_RECORD = "plant.json"
YES, NO = "Yes", "No"


def plant_effect(data: DataOptions, options: PlantOptions) -> Path:
    """Write a copy of a cohort with a planted effect; unchanged files are linked where possible.

    Raises:
        UserError: The cohort is damaged, the column exists already, the folder is not empty, or a
            case has no voxel in the region.
    """
    check_chest_ct(data, "planting an effect")
    cohort = load_cohort(data)
    out = _check_out(options.out, cohort)
    column = options.column
    if column in cohort.columns or column == data.key_column or not column.strip():
        raise UserError(
            f"--column is {column!r}; it must be the name of a new column. The table has: "
            f"{format_list(list(cohort.columns), 30)}."
        )
    values = draw_values(cohort, data.patient_column, options.share, options.plant_seed)
    with atomic_folder(out) as part:
        copy = _CohortCopy(cohort, part, data, options, values)
        copy.write_table()
        copy.write_splits()
        copy.write_prompts()  # what can be wrong with them is found before any volume is written
        for case in progress_bar(cohort.cases, "Planting"):
            copy.write_case(case)
        copy.write_record()
    log.info(
        "Planted %+g HU in the region %s of %d of %s: %s",
        options.hu,
        options.region,
        list(values.values()).count(YES),
        counted(len(values), "case"),
        out,
    )
    return out


def _check_out(name: str, cohort: Cohort) -> Path:
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
    """Return Yes or No by case: Yes for a random share of the patients, at least one of each."""
    case_ids = [case.id for case in cohort.cases]
    groups = list(group_by_patient(case_ids, patients_of(cohort, patient_column)).values())
    if len(groups) < 2:
        raise UserError(
            f"{cohort.root} has a single patient; an effect is planted in some of several."
        )
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    chosen = set(np.random.default_rng([seed, 21]).permutation(len(groups))[:count].tolist())
    values = {}
    for index, group in enumerate(groups):
        values.update(dict.fromkeys(group, YES if index in chosen else NO))
    return values


@dataclass(frozen=True)
class _CohortCopy:
    """Writer of the copy.

    Attributes:
        folder: The folder that is written.
        data: How the cohort is read.
        options: The planted effect.
        values: Yes or No by case.
    """

    cohort: Cohort
    folder: Path
    data: DataOptions
    options: PlantOptions
    values: Mapping[str, str]

    def write_case(self, case: Case) -> None:
        """Link the mask and an unchanged scan, or write the changed one."""
        assert case.image is not None
        _link(case.mask, self.folder / MASKS / case.mask.name)
        where = self._region(case)
        if self.values[case.id] == NO:
            _link(case.image, self.folder / IMAGES / case.image.name)
            return
        hu = self.options.hu
        scan = load_volume(case.image).array
        changed = scan + np.asarray(hu * where, np.float32)
        fits = float(hu).is_integer() and scan.dtype.kind == "i" and scan.dtype.itemsize > 1
        path = self.folder / IMAGES / f"{strip_suffix(case.image.name)}.nii.gz"
        write_like(path, changed, case.image, scan.dtype if fits else np.float32)

    def _region(self, case: Case) -> np.ndarray:
        data, mask = self.data, load_labels(case.mask)
        masks = regions_of(mask.array, mask.spacing, data)
        if self.options.region not in masks:
            raise UserError(
                f"{case.mask} has no voxel in --region {self.options.region}. Choose another "
                "region, or check --lung_labels."
            )
        return masks[self.options.region]

    def write_table(self) -> None:
        """Write the clinical table with the new column."""
        key, column = self.data.key_column, self.options.column
        known = self.cohort.columns
        rows = []
        for case in self.cohort.cases:
            cells = {name: case.row.get(name, "") for name in known}
            rows.append({**cells, key: case.id, column: self.values[case.id]})
        write_csv(self.folder / "clinical.csv", [key, *known, column], rows)

    def write_splits(self) -> None:
        """Copy the splits of the cases in the copy."""
        path = Path(self.data.splits or self.cohort.root / SPLITS_FILE)
        if not path.is_file():
            return
        splits = read_splits(path, [*self.values, *self.cohort.rejected])
        kept = {
            name: tuple(case for case in members if case in self.values)
            for name, members in splits.items()
        }
        save_splits(self.folder / SPLITS_FILE, kept)

    def write_prompts(self) -> None:
        """Copy the prompts, and add the new column to them."""
        source = self.cohort.root / PROMPTS_FILE
        if not source.is_file():
            return
        columns = ["File Name", "Prompt"]
        rows = read_csv(source, columns)
        names = [strip_suffix(row["File Name"].strip()) for row in rows]
        cases = match_ids(names, self.values, str(source))
        for row, name in zip(rows, names, strict=True):
            if name in cases:
                text = row["Prompt"].strip().rstrip(".,;")
                row["Prompt"] = f"{text}, {self.options.column} is {self.values[cases[name]]}."
        prompts = [{column: row[column] for column in columns} for row in rows]
        write_csv(self.folder / PROMPTS_FILE, columns, prompts)

    def write_record(self) -> None:
        """Write the planted truth."""
        options = self.options
        record = {
            "column": options.column,
            "from": NO,
            "to": YES,
            "hu": options.hu,
            "region": options.region,
            "seed": options.plant_seed,
            "source": str(self.cohort.root.resolve()),
            "cases": self.values,
        }
        write_json(self.folder / PLANT_RECORD, record)


def _link(source: Path, target: Path) -> None:
    """Make hard links of a volume's files, which outlive the source, or copies across disks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in dict.fromkeys((source, find_voxel_data(source).path)):
        try:
            os.link(path.resolve(), target.with_name(path.name))
        except OSError:
            shutil.copy2(path, target.with_name(path.name))
