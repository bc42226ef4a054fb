"""Flags of scripts/compare_models.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.parser import argument, flag, group, path_flag
from options.test_options import CaseOptions, ModelOptions


@dataclass(frozen=True)
class CompareOptions:
    """Runs to compare."""

    OUT: str = argument("Folder for the page, the table and the volumes.")
    run: tuple[str, ...] = path_flag(
        (), "Name of a run; repeated for each further run.", kind="run"
    )
    vary: tuple[str, ...] = flag(
        (), 'Attribute whose effect is compared, as "COLUMN=A,B"; may be repeated.'
    )
    noises: int = flag(
        4, "Volumes of one case, each with new noise, whose similarity is measured.", low=2
    )


@dataclass(frozen=True)
class CompareCommand:
    """All flags of scripts/compare_models.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("run", "dataroot")
    EXAMPLE: ClassVar[str] = (
        "python scripts/compare_models.py comparison --dataroot phantoms --run run1 --run run2"
    )

    compare: CompareOptions = group(CompareOptions, "Comparison")
    source: CaseOptions = group(CaseOptions, "Cases")
    model: ModelOptions = group(ModelOptions, "Runs (all but --name)")
