"""Flags of scripts/make_controls.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.parser import argument, flag, group
from options.test_options import CaseOptions, ModelOptions

CONTROL_KINDS = ("shuffled", "empty", "noise")


@dataclass(frozen=True)
class ControlOptions:
    """Controls to make."""

    OUT: str = argument("Folder for the volumes.")
    controls: tuple[str, ...] = flag(
        (), "Control to make; may be repeated (default: all).", choices=CONTROL_KINDS
    )
    seed: int = flag(
        0, "Seed of the noise, the same as of test.py; `noise` takes the next one.", low=0
    )


@dataclass(frozen=True)
class ControlCommand:
    """All flags of scripts/make_controls.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("dataroot", "name")
    EXAMPLE: ClassVar[str] = (
        "python scripts/make_controls.py controls --dataroot phantoms --name run1"
    )

    controls: ControlOptions = group(ControlOptions, "Controls")
    source: CaseOptions = group(CaseOptions, "Cases")
    model: ModelOptions = group(ModelOptions, "Run")
