"""Flags of control."""

from __future__ import annotations

from dataclasses import dataclass

from options.parser import argument, flag, group
from options.test_options import CaseOptions, ModelOptions

CONTROL_KINDS = ("shuffled", "empty", "noise")


@dataclass(frozen=True)
class ControlOptions:
    """What is made."""

    OUT: str = argument("Folder for the volumes.")
    controls: tuple[str, ...] = flag(
        (), f"A control to make; may be repeated. Of: {', '.join(CONTROL_KINDS)}. (default: all)"
    )
    seed: int = flag(
        0, "Seed of the noise, as given to test.py; `noise` takes the next one.", low=0
    )


@dataclass(frozen=True)
class ControlCommand:
    """Everything the command takes."""

    controls: ControlOptions = group(ControlOptions, "Controls")
    source: CaseOptions = group(CaseOptions, "Cases")
    model: ModelOptions = group(ModelOptions, "Run")
