"""A case to make: source, row, text and seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.cohort import Case
from data.text.prompts import Prompt
from pipelines.synthesis.random_streams import CASE_STREAM

Values = tuple[str, ...]  # of the balanced columns


@dataclass(frozen=True)
class PlannedCase:
    """A case to make.

    Attributes:
        id: Its name.
        source: The real case whose mask, or scan, is used.
        row: Its clinical row.
        prompt: Its text: the row in words, or the source's written text with the value changed.
        seed: Seed of mask and noise.
        dropped: Columns that were emptied because they would contradict the row or the text.
        wording: Its wording, where words of the texts are balanced.
    """

    id: str
    source: Case
    row: dict[str, str]
    prompt: Prompt
    seed: int
    dropped: Values = ()
    wording: str = ""

    @classmethod
    def from_change(
        cls, id: str, source: Case, change: ChangedCase, seed: int, wording: str = ""
    ) -> PlannedCase:
        """Return the case that a change of a real one makes."""
        return cls(id, source, change.row, change.prompt, seed, change.dropped, wording)

    @property
    def changes(self) -> dict[str, tuple[str, str]]:
        """Cells of the source's row before and after, by column, where they differ."""
        changed = {}
        for column, before in self.source.row.items():
            after = self.row.get(column, "")
            if after != before:
                changed[column] = (before, after)
        return changed


@dataclass(frozen=True)
class ChangedCase:
    """Row and text of a case after a change, and the columns that it emptied."""

    row: dict[str, str]
    prompt: Prompt
    dropped: Values


def case_name(number: int, n: int, is_edit: bool = False) -> str:
    """Return the name of a new case; all names of a cohort sort in their order."""
    return f"{'edited' if is_edit else 'synthetic'}_{number + 1:0{max(4, len(str(n)))}d}"


def case_seed(seed: int, number: int) -> int:
    """Return the seed of mask and noise of a new case."""
    return int(np.random.SeedSequence([seed, CASE_STREAM, number]).generate_state(1)[0])


def cycle_randomly(cases: Sequence[Case], rng: np.random.Generator) -> Iterator[Case]:
    """Yield the cases in random order, again and again."""
    while True:
        for k in rng.permutation(len(cases)):
            yield cases[k]
