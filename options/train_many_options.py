"""Flags of scripts/train_many.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.parser import flag, group


@dataclass(frozen=True)
class TrainManyOptions:
    """How many runs are trained."""

    max_runs: int = flag(0, "End after this number of runs (0: with the input).", low=0)


@dataclass(frozen=True)
class TrainManyCommand:
    """All flags of the command."""

    EXAMPLE: ClassVar[str] = "python scripts/train_many.py < runs.jsonl"

    many: TrainManyOptions = group(TrainManyOptions, "Runs")
