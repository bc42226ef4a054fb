"""Flags of compare."""

from __future__ import annotations

from dataclasses import dataclass

from options.parser import argument, flag, group
from options.test_options import CaseOptions, ModelOptions


@dataclass(frozen=True)
class CompareOptions:
    """What is compared."""

    OUT: str = argument("Folder for the page, the table and the volumes.")
    run: tuple[str, ...] = flag((), "Name of a run; repeated for the others.")
    vary: tuple[str, ...] = flag(
        (), 'Attribute whose effect is compared, as "COLUMN=A,B"; may be repeated.'
    )
    noises: int = flag(
        4, "Volumes of one case, each with new noise, whose similarity tells the diversity.", low=2
    )


@dataclass(frozen=True)
class CompareCommand:
    """Everything the command takes."""

    compare: CompareOptions = group(CompareOptions, "Comparison")
    source: CaseOptions = group(CaseOptions, "Cases")
    model: ModelOptions = group(ModelOptions, "Runs (all but --name)")
