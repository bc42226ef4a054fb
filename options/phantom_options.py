"""Flags of scripts/make_phantoms.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.parser import argument, flag, path_flag


@dataclass(frozen=True)
class PhantomOptions:
    """The phantom cohort that `scripts/make_phantoms.py` makes."""

    EXAMPLE: ClassVar[str] = "python scripts/make_phantoms.py phantoms --cases 40"

    OUT: str = argument(
        "Folder for the cohort; an existing one with the same settings is used again."
    )
    cases: int = flag(96, "Number of patients, test and validation cases included.", low=1)
    size: tuple[int, int, int] = flag(
        (64, 64, 48), "Voxels from left to right, back to front, bottom to top.", low=16
    )
    spacing: tuple[float, float, float] | None = flag(
        None, "Voxel size in mm (none: the chest fills the volume).", low=0.1
    )
    seed: int = flag(1, "Seed of all random choices.", low=0)
    test_cases: int = flag(6, "Cases of the test split.", low=0)
    val_cases: int = flag(4, "Cases of the validation split.", low=0)
    missing: float = flag(
        0.12, "Share of cells of the training rows that are left empty.", low=0, high=0.9
    )
    patient_sd: float = flag(
        20.0,
        "SD in HU of the lungs' density between patients for reasons outside the table.",
        low=0,
        high=100,
    )
    confounding: float = flag(
        0.0, "Probability that smoking history decides the diagnosis.", low=0, high=1
    )
    effects: str = path_flag(
        "", "YAML table of effects (data/effects/phantom.yaml by default).", kind="file"
    )
    overwrite: bool = flag(False, "Replace a phantom cohort made with other settings.")
