"""The real cases that new ones are made from, and changes of their rows and texts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.cohort import Case
from data.text.counterfactuals import CaseText, WrittenText, case_text, describe_not_stated
from data.text.free_text import TextEdit, TextReader
from data.text.prompts import Prompt
from data.text.values import normalise_key
from pipelines.synthesis.planning.planned_case import ChangedCase
from util.cli import UserError, counted, format_list

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceTexts:
    """The real cases with their texts.

    Attributes:
        prompts: Their prompts, of their rows or of `prompts.csv`.
        reader: Reads texts that people wrote, and words rows.
    """

    cases: Sequence[Case]
    prompts: Mapping[str, Prompt]
    reader: TextReader

    def text(self, case: Case) -> CaseText:
        """Return the text of a case."""
        return case_text(case, self.prompts[case.id], self.reader)

    def stating(self, columns: Sequence[str]) -> list[Case]:
        """Return the cases in whose text columns can be changed, and warn of the others.

        Raises:
            UserError: There is none.
        """
        silent = []
        for case in self.cases:
            text = self.text(case)
            if isinstance(text, WrittenText):
                stated = self.reader.row(text.prompt)
                if not all(stated[column] for column in columns):
                    silent.append(case.id)
        if silent:
            problem = (
                f"--balance {' and '.join(columns)}: the texts of {len(silent)} of "
                f"{counted(len(self.cases), 'case')} in prompts.csv do not state it in words that "
                f"are understood: {format_list(silent)}."
            )
            if len(silent) == len(self.cases):
                raise UserError(
                    f"{problem} Use --rows own, word the texts as the template does, or move "
                    "prompts.csv away."
                )
            log.warning("%s They are not used as sources.", problem)
        return [case for case in self.cases if case.id not in silent]

    def holding(self, edit: TextEdit) -> list[Case]:
        """Return the cases whose texts hold the words of an edit, and warn of the others.

        Raises:
            UserError: There is none.
        """
        holding = [case for case in self.cases if edit.apply(self.prompts[case.id], "") is not None]
        if len(holding) < len(self.cases):
            others = [case.id for case in self.cases if case not in holding]
            problem = describe_not_stated("--vary_text", edit, others)
            if not holding:
                raise UserError(problem)
            log.warning("%s They are not used as sources.", problem)
        return holding

    def with_text(self, source: Case, prompt: Prompt) -> ChangedCase:
        """Return a case with another text, whose row follows it.

        What the text states otherwise than before is taken from it; what it states no more is not
        known, and what contradicts it neither.
        """
        template = self.reader.template
        before, after = self.reader.row(self.prompts[source.id]), self.reader.row(prompt)
        row = dict(source.row)
        emptied: list[str] = []
        for column, stated in after.items():
            if stated == before[column]:
                continue
            known = {normalise_key(shown): shown for shown in self.reader.values[column]}
            value = known.get(normalise_key(stated), stated)
            changed = template.change(row, column, value)
            row = changed.row
            emptied += changed.dropped if value else [column, *changed.dropped]
        return ChangedCase(row, prompt, tuple(dict.fromkeys(emptied)))

    def changed(self, source: Case, cells: Mapping[str, str]) -> ChangedCase:
        """Return row and text of a case with cells set; those of the same value stay as they are.

        Args:
            cells: New cells by column.

        Raises:
            UserError: The written text of the case does not state a column, or a cell does not fit
                its column.
        """
        template = self.reader.template
        row = template.consistent(source.row).row
        text = self.text(source)
        dropped: list[str] = []
        for column, cell in cells.items():
            if template[column].format_value(cell) == template.format_value(row, column):
                continue
            row = template.change(row, column, cell).row
            changed = text.change(column, cell)
            new = text.with_value(column, cell)
            if changed is None or new is None:
                raise UserError(
                    f"The text of {source.id} in prompts.csv does not state {column} in words that "
                    "are understood, so it cannot be changed. Word it as the template does, or "
                    "choose another case."
                )
            dropped += changed.dropped
            text = new
        return ChangedCase(row, text.prompt, tuple(dropped))
