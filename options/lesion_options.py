"""Flags of scripts/insert_lesion.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from options.base_options import AIRWAY_LABEL, LUNG_LABELS
from options.parser import argument, flag
from util.cli import UserError

# Density classes of the Fleischner Society, with the labels that masks use unless told otherwise.
DENSITIES: Mapping[str, int] = {"solid": 4, "part_solid": 5, "ground_glass": 6}


@dataclass(frozen=True)
class LesionOptions:
    """Kind, place, size and density of the lesion."""

    EXAMPLE: ClassVar[str] = (
        'python scripts/insert_lesion.py lungs.nii.gz with_nodule.nii.gz --place "right upper '
        'central" --diameter 12'
    )

    MASK: str = argument("Mask of the lungs (NIfTI).", kind="file")
    OUT: str = argument(
        "Mask to write, ending in .nii.gz or .nii; a table that names the lesion is written beside "
        "it."
    )
    kind: Literal["nodule", "ground_glass"] = flag(
        "nodule",
        "nodule (a lobulated ball in the lung) or ground_glass (irregular, ends at the pleura).",
        choices=("nodule", "ground_glass"),
    )
    density: Literal["auto", "solid", "part_solid", "ground_glass"] = flag(
        "auto",
        "Density class (auto: solid for a nodule, ground glass for ground glass).",
        choices=("auto", *DENSITIES),
    )
    diameter: float = flag(12.0, "Diameter in mm of a ball of the same volume.", low=0.1, high=300)
    at: tuple[float, float, float] | None = flag(
        None,
        "Middle of the lesion: mm to the patient's right-left, back-front, foot-head axes, as "
        "viewers show them for NIfTI (RAS: left is negative).",
    )
    place: str = flag(
        "",
        'Place in words instead of --at, such as "right upper central" (left or right; upper, '
        "middle or lower; subpleural or central); the seed chooses the voxel.",
    )
    label: int = flag(
        0,
        "Label of the lesion (0: 4 for solid, 5 for part-solid, 6 for ground glass).",
        low=0,
        high=255,
    )
    lung_labels: tuple[int, ...] = flag(LUNG_LABELS, "Mask labels of the left and the right lung.")
    airway_label: int = flag(AIRWAY_LABEL, "Mask label of the airways.")
    seed: int = flag(0, "Seed of the border, and of the voxel with --place.", low=0)
    overwrite: bool = flag(False, "Replace existing files.")

    def __post_init__(self) -> None:
        """Check what goes together.

        Raises:
            UserError: Neither or both of place and position, or a density that the kind lacks.
        """
        if (self.at is None) == (not self.place):
            raise UserError(
                'Give either --at X,Y,Z (mm) or --place, such as --place "right upper central".'
            )
        if self.density == "auto":
            own = "solid" if self.kind == "nodule" else "ground_glass"
            object.__setattr__(self, "density", own)
        elif self.kind == "ground_glass" != self.density:
            raise UserError(
                f"--density {self.density} belongs to --kind nodule; leave it out for ground glass."
            )
