"""The phantom cohort: synthetic chests with known effects of attributes, so that what a model
reveals can be checked.

`PhantomCohort.load(folder).render(case, {"SMOKING HISTORY": "Current smoker"})` renders a case of a
cohort that `scripts/make_phantoms.py` made, with an attribute changed: same patient, same noise, so
the difference is the truth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data.phantom import effects as phantom_effects
from data.phantom.anatomy import Anatomy, PhantomPatient, build_anatomy
from data.phantom.effects import PlantedEffects
from data.phantom.rows import COLUMNS, LEVELS, NUMBERS, Row
from util.cli import UserError, format_list

RECORD = "phantom.json"
VERSION = 1  # of the drawing: a cohort of another version cannot be rendered again
NOISE_HU, NOISE_GRAIN = 19.0, 0.5  # SD, and its correlation as a sigma in voxels
RANGE_HU = (-1024, 3071)


@dataclass(frozen=True)
class PhantomScan:
    """`hu` float32 (X,Y,Z); `mask` uint8: 0 background, 1 left lung, 2 right lung, 3 airway;
    `affine` (4,4) RAS, mm.
    """

    hu: NDArray[np.float32]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class PhantomCohort:
    """Every patient of a cohort, and how to render each.

    `rows` are complete, though the table on disk has empty cells; `seeds` are the patients';
    `spacing` is in mm, `patient_sd` in HU.
    """

    rows: Mapping[str, Row]
    seeds: Mapping[str, int]
    splits: Mapping[str, tuple[str, ...]]
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    patient_sd: float
    effects: PlantedEffects

    @staticmethod
    def from_folder(dataroot: Path | str) -> PhantomCohort:
        """The cohort of a folder; raises `UserError` where it is none, or not finished."""
        path = Path(dataroot) / RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            hint = "Make the cohort with scripts/make_phantoms.py."
            raise UserError(f"{path} cannot be read ({error}). {hint}") from None
        if record.get("version") != VERSION:
            raise UserError(
                f"{path} is of version {record.get('version')}; this one draws {VERSION}. Make it "
                "again."
            )
        settings = record["settings"]
        return PhantomCohort(
            rows=record["rows"],
            seeds=record["seeds"],
            splits={k: tuple(v) for k, v in record["splits"].items()},
            size=tuple(settings["size"]),
            spacing=tuple(settings["spacing"]),
            patient_sd=settings["patient_sd"],
            effects=phantom_effects.parse_effects(settings["effects"], str(path)),
        )

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Every case, in the order of the table."""
        return tuple(self.rows)

    def row(self, case: str) -> Row:
        """The complete row of a case."""
        if case not in self.rows:
            raise UserError(
                f"{case!r} is no phantom of this cohort; it has: {format_list(list(self.rows))}."
            )
        return dict(self.rows[case])

    def render(
        self, case: str, changes: Mapping[str, str] | None = None, noise: bool = True
    ) -> PhantomScan:
        """One case, with cells of its row changed.

        Same patient and same noise whatever changes, so that the difference of two renderings is
        the effect alone.

        Args:
            case: Its id.
            changes: Columns and their new values; an empty value takes the effect away.
            noise: Whether to add the noise; without it this is the truth that a model can know at
                best.
        """
        row = self.row(case)
        for column, value in (changes or {}).items():
            _check_cell(column, value)
            row[column] = value
        return render_scan(self.seeds[case], row, self, noise)


def _check_cell(column: str, value: str) -> None:
    if column not in COLUMNS:
        raise UserError(
            f"{column!r} is no column of the phantom cohort; it has: {format_list(list(COLUMNS), 20)}."
        )
    if value and column in LEVELS and value not in LEVELS[column]:
        raise UserError(
            f"{value!r} is no value of {column!r}; it is one of: {', '.join(LEVELS[column])}."
        )
    if value and column in NUMBERS:
        try:
            finite = bool(np.isfinite(float(value)))
        except ValueError:
            finite = False
        if not finite:
            raise UserError(f"{column!r} takes a number, got {value!r}.")


@lru_cache(maxsize=4)
def _anatomy(seed: int, size: tuple[int, int, int], spacing: tuple[float, float, float]) -> Anatomy:
    return build_anatomy(PhantomPatient.random(np.random.default_rng([seed, 0])), size, spacing)


def render_scan(
    seed: int, row: Mapping[str, str], cohort: PhantomCohort, noise: bool = True
) -> PhantomScan:
    """A patient's scan, from their seed and row."""
    anatomy = _anatomy(seed, cohort.size, cohort.spacing)
    hu = anatomy.hu.copy()
    offset = cohort.patient_sd * float(
        np.clip(np.random.default_rng([seed, 1]).normal(), -2.5, 2.5)
    )
    hu += offset * anatomy.share
    for term in cohort.effects.terms(row):
        hu += term.field(anatomy)
    if noise:
        white = np.random.default_rng([seed, 2]).standard_normal(hu.shape, np.float32)
        grain = ndimage.gaussian_filter(white, NOISE_GRAIN)
        hu += grain * np.float32(NOISE_HU / grain.std())
    affine = np.diag([*cohort.spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(cohort.size, cohort.spacing, strict=True)]
    return PhantomScan(np.clip(hu, *RANGE_HU), anatomy.labels.copy(), affine)
