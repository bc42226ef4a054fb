"""Flags of plant."""

from __future__ import annotations

from dataclasses import dataclass

from options.base_options import DataOptions
from options.parser import flag, group


@dataclass(frozen=True)
class PlantOptions:
    """What is planted."""

    out: str = flag("", "Folder for the copy.")
    hu: float = flag(
        20.0, "Effect in HU that is added to the scans of those with Yes.", low=-500, high=500
    )
    region: str = flag(
        "lungs",
        "Where: lungs, left_lung, right_lung, upper, middle, lower, core or rim.",
        choices=("lungs", "left_lung", "right_lung", "upper", "middle", "lower", "core", "rim"),
    )
    column: str = flag("PLANTED", "Name of the column.")
    share: float = flag(0.5, "Share of the patients with Yes.", low=0.01, high=0.99)
    plant_seed: int = flag(0, "Decides who has it.", low=0)


@dataclass(frozen=True)
class PlantCommand:
    """Everything the command takes."""

    plant: PlantOptions = group(PlantOptions, "What is planted")
    data: DataOptions = group(DataOptions, "Cohort")
