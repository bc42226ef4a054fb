"""The phantom cohort: synthetic chests with planted effects, against which a model is checked.

`PhantomCohort.from_folder(folder).render(case, {"SMOKING HISTORY": "Current smoker"})` renders a
case of a cohort that `scripts/make_phantoms.py` made, with an attribute changed. Patient and noise
stay the same, so the difference is the true effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

from data.phantom.anatomy import Anatomy, PhantomPatient, build_anatomy
from data.phantom.effects import PlantedEffects, parse_effects
from data.phantom.rows import COLUMNS, LEVELS, NUMBERS, Row
from util.cli import UserError, format_list
from util.files import read_json
from util.schema import check_record

RECORD = "phantom.json"
RECORD_TYPES = {
    "rows": dict[str, dict[str, str]],
    "seeds": dict[str, int],
    "splits": dict[str, list[str]],
    "settings": dict[str, Any],
}
SETTING_TYPES = {
    "size": tuple[int, int, int],
    "spacing": tuple[float, float, float],
    "patient_sd": float,
    "effects": dict[str, Any],
}
VERSION = 1  # of the drawing: a cohort of another version cannot be rendered again
NOISE_HU = 19.0  # SD
NOISE_GRAIN = 0.5  # correlation of the noise, as a sigma in voxels
MAX_OFFSET_SD = 2.5  # of a patient's mean density
RANGE_HU = (-1024, 3071)


@dataclass(frozen=True)
class PhantomScan:
    """A rendered case.

    Attributes:
        hu: CT float32 (X, Y, Z).
        mask: uint8 (X, Y, Z): 0 background, 1 left lung, 2 right lung, 3 airway.
        affine: (4, 4), voxel index to RAS mm.
    """

    hu: NDArray[np.float32]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Sides of a voxel, mm."""
        x, y, z = voxel_sizes(self.affine).tolist()
        return x, y, z


@dataclass(frozen=True)
class PhantomCohort:
    """All patients of a cohort, and how to render each.

    Attributes:
        rows: Complete rows by case, though the table on disk has empty cells.
        seeds: Seeds of the patients by case.
        splits: Cases by split.
        size: (X, Y, Z) of every scan.
        spacing: Voxel size, mm.
        patient_sd: SD of the patients' mean lung density, HU.
    """

    rows: Mapping[str, Row]
    seeds: Mapping[str, int]
    splits: Mapping[str, tuple[str, ...]]
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    patient_sd: float
    effects: PlantedEffects

    @classmethod
    def from_folder(cls, dataroot: Path | str) -> PhantomCohort:
        """Load a cohort; raise `UserError` where the folder does not hold a finished one."""
        path = Path(dataroot) / RECORD
        fix = "Make the cohort again with scripts/make_phantoms.py."
        try:
            record = check_record(read_json(path), {"version": int}, path, fix)
        except UserError as error:
            raise UserError(f"{error} {fix}" if fix not in str(error) else str(error)) from None
        if record["version"] != VERSION:
            raise UserError(
                f"{path} is of version {record.get('version')}; this one draws {VERSION}. Make it "
                "again."
            )
        check_record(record, RECORD_TYPES, path, fix)
        settings = check_record(record["settings"], SETTING_TYPES, path, fix)
        return cls(
            rows=record["rows"],
            seeds=record["seeds"],
            splits={name: tuple(cases) for name, cases in record["splits"].items()},
            size=tuple(settings["size"]),
            spacing=tuple(settings["spacing"]),
            patient_sd=settings["patient_sd"],
            effects=parse_effects(settings["effects"], str(path)),
        )

    @property
    def case_ids(self) -> tuple[str, ...]:
        """All cases, in the order of the table."""
        return tuple(self.rows)

    def row(self, case: str) -> Row:
        """Return the complete row of a case."""
        if case not in self.rows:
            raise UserError(
                f"{case!r} is not a phantom of this cohort; it has: {format_list(self.case_ids)}."
            )
        return dict(self.rows[case])

    def render(
        self, case: str, changes: Mapping[str, str] | None = None, noise: bool = True
    ) -> PhantomScan:
        """Render one case, with cells of its row changed.

        Patient and noise are the same whatever changes, so that the difference of two renderings is
        the effect alone.

        Args:
            case: Its id.
            changes: Columns and their new values; an empty value takes the effect away.
            noise: Add the noise; without it the scan is the best that a model can reach.
        """
        row = self.row(case)
        for column, value in (changes or {}).items():
            _check_cell(column, value)
            row[column] = value
        seed = self.seeds[case]
        anatomy = _anatomy(seed, self.size, self.spacing)
        hu = anatomy.hu.copy()
        offset = np.random.default_rng([seed, 1]).normal()
        hu += (
            self.patient_sd * float(np.clip(offset, -MAX_OFFSET_SD, MAX_OFFSET_SD)) * anatomy.share
        )
        for term in self.effects.terms(row):
            hu += term.field(anatomy)
        if noise:
            white = np.random.default_rng([seed, 2]).standard_normal(hu.shape, np.float32)
            grain = ndimage.gaussian_filter(white, NOISE_GRAIN)
            hu += grain * np.float32(NOISE_HU / grain.std())
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(self.size, self.spacing, strict=True)]
        return PhantomScan(np.clip(hu, *RANGE_HU), anatomy.labels.copy(), affine)


@lru_cache(maxsize=4)
def _anatomy(seed: int, size: tuple[int, int, int], spacing: tuple[float, float, float]) -> Anatomy:
    return build_anatomy(PhantomPatient.random(np.random.default_rng([seed, 0])), size, spacing)


def _check_cell(column: str, value: str) -> None:
    """Raise `UserError` for a column or a value that the cohort does not have."""
    if column not in COLUMNS:
        raise UserError(
            f"{column!r} is not a column of the phantom cohort; it has: {format_list(COLUMNS, 20)}."
        )
    if value and column in LEVELS and value not in LEVELS[column]:
        raise UserError(
            f"{value!r} is not a value of {column!r}; it is one of: {', '.join(LEVELS[column])}."
        )
    if value and column in NUMBERS:
        try:
            finite = bool(np.isfinite(float(value)))
        except ValueError:
            finite = False
        if not finite:
            raise UserError(f"{column!r} takes a number, got {value!r}.")
