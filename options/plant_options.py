"""Flags of scripts/plant.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.base_options import DataOptions
from options.parser import flag, group


@dataclass(frozen=True)
class PlantOptions:
    """The planted effect."""

    out: str = flag("", "Folder for the copy.")
    hu: float = flag(
        20.0, "Effect in HU that is added to the scans of those with Yes.", low=-500, high=500
    )
    region: str = flag(
        "lungs",
        "Region: lungs, left_lung, right_lung, upper, middle, lower, core or rim.",
        choices=("lungs", "left_lung", "right_lung", "upper", "middle", "lower", "core", "rim"),
    )
    column: str = flag("PLANTED", "Name of the column.")
    share: float = flag(0.5, "Share of the patients with Yes.", low=0.01, high=0.99)
    plant_seed: int = flag(0, "Seed that decides which patients have Yes.", low=0)


@dataclass(frozen=True)
class PlantCommand:
    """All flags of scripts/plant.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("dataroot", "out")
    EXAMPLE: ClassVar[str] = (
        "python scripts/plant.py --dataroot phantoms --out planted --hu 20 --region lower"
    )

    plant: PlantOptions = group(PlantOptions, "Planted effect")
    data: DataOptions = group(DataOptions, "Cohort")
