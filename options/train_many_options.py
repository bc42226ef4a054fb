"""Flags of scripts/train_many.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.parser import flag


@dataclass(frozen=True)
class TrainManyOptions:
    """How many runs are trained."""

    EXAMPLE: ClassVar[str] = "python scripts/train_many.py < runs.jsonl"

    max_runs: int = flag(0, "End after this number of runs (0: with the input).", low=0)
