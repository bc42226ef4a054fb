"""A cohort of scans: files paired by name, clinical rows, splits and labels."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data.body import BodyLabel
from data.intensity import IntensityScale
from data.splits import Splits
from data.volumes import strip_suffix
from util.cli import UserError, safe_name, unique_names

IMAGES = "img"  # folders of a dataroot
MASKS = "gtlung"
PROMPTS_FILE = "prompts.csv"  # optional file of a dataroot with prompts that replace the rows
SPLITS_FILE = "splits.json"


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        id: Name of its files without the suffix.
        image: CT, None where only the mask exists.
        mask: Integer labels on the grid of the CT.
        row: Clinical row of raw strings by column, "" where a value is not known.
        body: How the mask gets a body on reading, None where it stays as it is.
        scale: How intensities of the scan are scaled on reading, None for HU.
    """

    id: str
    image: Path | None
    mask: Path
    row: dict[str, str] = field(default_factory=dict)
    body: BodyLabel | None = None
    scale: IntensityScale | None = None


@dataclass(frozen=True)
class Cohort:
    """The cases of a dataroot.

    Attributes:
        root: The dataroot.
        cases: All cases in natural order.
        splits: Ids of the cases by split.
        labels: Labels of the masks: background first, the body last, if there is one; empty where
            the volumes were not read.
        columns: Columns of the clinical table.
        left_out: Columns of the table that are in no row, because nearly every case has another
            value.
        warnings: What a person should know of the table (see `data.text.columns`) and of the
            volumes (see `data.checks.cohort.check_volumes`).
        body_label: Label of the body, None where there is none.
        rejected: Ids of cases that `review.csv` rejects; they are not among the cases.
    """

    root: Path
    cases: tuple[Case, ...]
    splits: Splits
    labels: tuple[int, ...]
    columns: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    body_label: int | None = None
    rejected: tuple[str, ...] = ()

    @cached_property
    def file_names(self) -> dict[str, str]:
        """The name of each case in the names of its files, without ending; no two are alike."""
        return unique_names((case.id for case in self.cases), _readable)

    @cached_property
    def _by_id(self) -> dict[str, Case]:
        return {case.id: case for case in self.cases}

    def __getitem__(self, case_id: str) -> Case:
        return self._by_id[case_id]

    def split(self, name: str) -> tuple[Case, ...]:
        """Return the cases of a split; a resampled case occurs as often as it was drawn.

        Raises:
            UserError: The split has no cases.
        """
        counts = Counter(self.splits.get(name, ()))
        if not counts:
            sizes = ", ".join(f"{split} {len(ids)}" for split, ids in self.splits.items())
            raise UserError(f"The split {name!r} of {self.root} has no cases ({sizes}).")
        members: list[Case] = []
        for case in self.cases:
            members += [case] * counts[case.id]
        return tuple(members)


def _readable(case_id: str) -> str:
    """Return a case as part of a file name; the case of a single mask has the file's ending."""
    return safe_name(strip_suffix(case_id))


def natural_key(text: str) -> list[tuple[int, int, str, str]]:
    """Sort key that puts case2 before case10."""
    key = []
    for part in re.split(r"([0-9]+)", text):
        if part.isascii() and part.isdigit():
            digits = part.lstrip("0")  # compared by length, because int() takes 4,300 digits only
            key.append((0, len(digits), digits, part))
        elif part:
            key.append((1, 0, part, ""))
    return key
