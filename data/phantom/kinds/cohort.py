"""A cohort with effects of every kind, in drawn or scanned chests, and its rendering.

The folder has what a user's cohort has (img/, gtlung/, clinical.csv, splits.json), the chests
without effects (clean/), and kinds.json to render a case again with a cell changed.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from data.cohort import IMAGES, MASKS, SPLITS_FILE
from data.geometry import Volume
from data.phantom.anatomy import FIELD_MM, PhantomPatient, build_anatomy
from data.phantom.cohort import MAX_OFFSET_SD, NOISE_GRAIN, NOISE_HU, RANGE_HU, PhantomScan
from data.phantom.kinds.chest import Chest
from data.phantom.kinds.columns import GROUPS, Group, draw_rows
from data.phantom.rows import KEY, Row
from data.volumes import load_volume
from util.cli import UserError, format_list
from util.files import read_json, write_frame, write_json
from util.schema import check_record

RECORD = "kinds.json"
CLEAN = "clean"
TABLE_FILE = "clinical.csv"
VERSION = 1  # of the drawing: a cohort of another version cannot be rendered again
RECORD_TYPES = {
    "version": int,
    "group": str,
    "rows": dict[str, dict[str, str]],
    "seeds": dict[str, int],
    "splits": dict[str, list[str]],
    "noise_hu": float,
    "patient_sd": float,
}


@dataclass(frozen=True)
class SourceChest:
    """A chest without effects.

    Attributes:
        case: Its id.
        hu: CT.
        mask: uint8 labels on the same grid: 1 left lung, 2 right lung, 3 airway.
    """

    case: str
    hu: Volume
    mask: Volume


@dataclass(frozen=True)
class KindsCohort:
    """All patients of a cohort, and how to render each.

    Attributes:
        root: The cohort's folder.
        group: Name in `GROUPS` of the planted columns.
        rows: Rows by case.
        seeds: Seeds of the patients by case.
        splits: Cases by split.
        noise_hu: SD of the noise that is added; 0 for scans, which have their own.
        patient_sd: SD of the patients' mean lung density, HU.
    """

    root: Path
    group: str
    rows: Mapping[str, Row]
    seeds: Mapping[str, int]
    splits: Mapping[str, tuple[str, ...]]
    noise_hu: float
    patient_sd: float

    @classmethod
    def from_folder(cls, root: Path | str) -> KindsCohort:
        """Load a cohort; raise `UserError` where the folder does not hold a finished one."""
        path = Path(root) / RECORD
        fix = "Make the cohort again with benchmarks/kinds.py."
        record = check_record(read_json(path), RECORD_TYPES, path, fix)
        if record["version"] != VERSION or record["group"] not in GROUPS:
            raise UserError(
                f"{path} was made by another version of the project, which drew other effects. "
                f"{fix}"
            )
        del record["version"]
        splits = {name: tuple(cases) for name, cases in record.pop("splits").items()}
        return cls(root=Path(root), splits=splits, **record)

    @property
    def columns(self) -> Group:
        """The planted columns."""
        return GROUPS[self.group]

    def chests(self) -> Iterator[SourceChest]:
        """Read the chests without effects, for another cohort of the same patients."""
        for case in self.rows:
            hu, mask = (load_volume(self.root / f / f"{case}.nii.gz") for f in (CLEAN, MASKS))
            yield SourceChest(case, hu, mask)

    def chest(self, case: str) -> Chest:
        """Return a case without effects, with its maps of place."""
        return _load_chest(self.root, case)[0]

    def render(self, case: str, changes: Mapping[str, str] | None = None) -> PhantomScan:
        """Render one case, with cells of its row changed.

        Patient, noise and the random draws of every effect are the same whatever changes, so that
        the difference of two renderings is the effect alone.
        """
        row = self._changed_row(case, changes or {})
        seed = self.seeds[case]
        chest, affine = _load_chest(self.root, case)
        anatomy = chest.anatomy
        hu = anatomy.hu.copy()
        offset = np.random.default_rng([seed, 1]).normal() * self.patient_sd
        limit = MAX_OFFSET_SD * self.patient_sd
        hu += np.float32(np.clip(offset, -limit, limit)) * anatomy.share
        for column in self.columns.all_columns:
            weight = column.weight(row)
            if column.effect is not None and weight:
                draws = np.random.default_rng([seed, 3, zlib.crc32(column.name.encode())])
                hu += np.float32(weight) * column.effect(chest, draws)
        if self.noise_hu:
            white = np.random.default_rng([seed, 2]).standard_normal(hu.shape, np.float32)
            grain = ndimage.gaussian_filter(white, NOISE_GRAIN)
            hu += grain * np.float32(self.noise_hu / grain.std())
        return PhantomScan(np.clip(hu, *RANGE_HU), anatomy.labels.copy(), affine)

    def _changed_row(self, case: str, changes: Mapping[str, str]) -> Row:
        if case not in self.rows:
            raise UserError(
                f"{case!r} is not a case of {self.root}; it has: {format_list(list(self.rows))}."
            )
        columns = {column.name: column.values for column in self.columns.all_columns}
        for name, value in changes.items():
            if name not in columns:
                raise UserError(
                    f"{name!r} is not a column of {self.root}; it has: "
                    f"{format_list(list(columns))}."
                )
            if columns[name] and value not in columns[name]:
                raise UserError(
                    f"{value!r} is not a value of {name!r}; it is one of: "
                    f"{', '.join(columns[name])}."
                )
        return {**self.rows[case], **changes}


@lru_cache(maxsize=4)
def _load_chest(root: Path, case: str) -> tuple[Chest, NDArray[np.float64]]:
    hu = load_volume(root / CLEAN / f"{case}.nii.gz")
    mask = load_volume(root / MASKS / f"{case}.nii.gz")
    labels = mask.array.astype(np.uint8)
    return Chest.from_scan(hu.array.astype(np.float32), labels, hu.spacing), hu.affine


def phantom_chests(
    cases: Iterable[str], seed: int, size: tuple[int, int, int]
) -> Iterable[SourceChest]:
    """Draw phantoms that fill a grid."""
    x, y, z = (round(mm / n, 4) for mm, n in zip(FIELD_MM, size, strict=True))
    spacing = (x, y, z)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(size, spacing, strict=True)]
    for number, case in enumerate(cases):
        patient = PhantomPatient.random(np.random.default_rng([seed, 4, number]))
        anatomy = build_anatomy(patient, size, spacing)
        yield SourceChest(case, Volume(anatomy.hu, affine), Volume(anatomy.labels, affine))


@dataclass(frozen=True)
class Variation:
    """How the patients of a cohort vary beyond the effects.

    Attributes:
        noise_hu: SD of the noise to add.
        patient_sd: SD of the patients' mean lung density, HU.
        counts: Number of training cases with `Yes` of columns that are to be rare.
    """

    noise_hu: float = NOISE_HU
    patient_sd: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)


def make_kinds_cohort(
    root: Path,
    group: str,
    splits: Mapping[str, tuple[str, ...]],
    chests: Iterable[SourceChest],
    seed: int,
    variation: Variation | None = None,
) -> Path:
    """Write a cohort; a finished one stays as it is. Its record is written last.

    Args:
        root: The folder.
        group: Name in `GROUPS`.
        splits: Cases by split; each split has its own balanced rows.
        chests: A chest for every case.
        seed: Seed of rows, patients and effects.
        variation: How patients vary beyond the effects.
    """
    variation = variation or Variation()
    if (root / RECORD).is_file():
        return root
    for name in (IMAGES, MASKS, CLEAN):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True)
    cases = [case for names in splits.values() for case in names]
    rows: dict[str, Row] = {}
    for number, (name, names) in enumerate(sorted(splits.items())):
        rng = np.random.default_rng([seed, 0, number])
        is_training = name == "train"
        rows |= draw_rows(
            GROUPS[group], names, rng, is_training, variation.counts if is_training else {}
        )
    seeds = np.random.default_rng([seed, 1]).integers(2**53, size=len(cases)).tolist()
    cohort = KindsCohort(
        root,
        group,
        rows,
        dict(zip(cases, seeds, strict=True)),
        splits,
        variation.noise_hu,
        variation.patient_sd,
    )
    for chest in chests:
        _save(chest.hu.array, chest.hu.affine, root / CLEAN / f"{chest.case}.nii.gz", np.int16)
        _save(chest.mask.array, chest.mask.affine, root / MASKS / f"{chest.case}.nii.gz", np.uint8)
        scan = cohort.render(chest.case)
        _save(scan.hu, scan.affine, root / IMAGES / f"{chest.case}.nii.gz", np.int16)
    columns = [KEY, *(column.name for column in cohort.columns.all_columns)]
    write_frame(root / TABLE_FILE, pd.DataFrame([rows[case] for case in cases], columns=columns))
    write_json(root / SPLITS_FILE, dict(splits))
    record: dict[str, Any] = asdict(cohort) | {"version": VERSION}
    del record["root"]
    write_json(root / RECORD, record)
    return root


def _save(array: NDArray[Any], affine: NDArray[np.float64], path: Path, dtype: Any) -> None:
    image = nib.Nifti1Image(np.rint(array).astype(dtype), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
