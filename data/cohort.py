"""A cohort: files paired by name, clinical rows, splits and labels (layout in the README)."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data.splits import Splits
from util.cli import UserError

log = logging.getLogger(__name__)

IMAGES, MASKS = "img", "gtlung"


@dataclass(frozen=True)
class Case:
    """One scan: its files and its clinical row of raw strings, where "" is not known."""

    id: str
    image: Path | None
    mask: Path
    row: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cohort:
    """All cases in natural order, with `splits` (train, val, test) of their ids and the `labels` of
    their masks.
    """

    root: Path
    cases: tuple[Case, ...]
    splits: Splits
    labels: tuple[int, ...]
    columns: tuple[str, ...]

    def __getitem__(self, case_id: str) -> Case:
        return {case.id: case for case in self.cases}[case_id]

    def split(self, name: str) -> tuple[Case, ...]:
        """The cases of a split, one that was drawn twice twice; a split without cases raises
        `UserError`.
        """
        members = Counter(self.splits.get(name, ()))
        if not members:
            sizes = ", ".join(f"{k} {len(v)}" for k, v in self.splits.items())
            raise UserError(f"The split {name!r} of {self.root} has no cases ({sizes}).")
        return tuple(case for case in self.cases for _ in range(members[case.id]))


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts case2 before case10."""
    return [(0, int(p), p) if p.isdigit() else (1, 0, p) for p in re.split(r"([0-9]+)", text) if p]
