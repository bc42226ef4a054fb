"""Plan of a synthetic cohort: source, row and seed of every new case."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.cohort import Case
from data.provenance import PROVENANCE, SOURCE
from data.table import ClinicalTable
from data.text.counterfactuals import CaseText, WrittenText, case_text, describe_not_stated
from data.text.free_text import TextEdit, TextReader
from data.text.prompts import Prompt, Row, Template
from data.text.values import normalise_key
from pipelines.synthesis.row_features import RowFeatures
from util.cli import MAX_NAME_LENGTH, UserError, format_list

log = logging.getLogger(__name__)

MAX_VALUES = 20  # a column with more is a number or free text, and cannot be balanced
MAX_BALANCED = 2  # columns whose joint distribution is balanced

# Streams of random numbers, so that no two uses of a seed share one.
BALANCE_STREAM = 11
TABLE_STREAM = 12
CASE_STREAM = 13
EDIT_STREAM = 15

Values = tuple[str, ...]  # of the balanced columns
Group = TypeVar("Group", str, Values)
# Patients whose row a new case takes: anybody, those who have its values, or those who do not.
Sources = Literal["changed", "own", "other"]


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
class SourceTexts:
    """The real cases with their texts.

    Attributes:
        cases: The cases.
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
                f"{len(self.cases)} cases in prompts.csv do not state it in words that are "
                f"understood: {format_list(silent)}."
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
            source: The case.
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


@dataclass(frozen=True)
class ChangedCase:
    """Row and text of a case after a change, and the columns that it emptied."""

    row: dict[str, str]
    prompt: Prompt
    dropped: Values


def cases_by_value(
    cases: Sequence[Case], template: Template, column: str, flag: str = "--balance"
) -> dict[str, list[Case]]:
    """Return the cases of every known value of a column, by the value as in the text.

    Args:
        cases: The cases.
        template: How rows become text.
        column: The column.
        flag: The flag that names the column, for messages.

    Raises:
        UserError: The table has no such column, or it has fewer than two values or too many to
            balance.
    """
    if column not in (cases[0].row if cases else ()):
        columns = template.attributes(cases[0].row) if cases else []
        raise UserError(
            f"{flag}: the table has no column {column!r}; it has: {format_list(columns, 40)}."
        )
    groups: dict[str, list[Case]] = {}
    for case in cases:
        if value := template.format_value(template.consistent(case.row).row, column):
            groups.setdefault(value, []).append(case)
    if len(groups) < 2:
        raise UserError(
            f"{flag} {column}: {len(cases)} cases have {len(groups)} known values "
            f"({format_list(sorted(groups)) or 'none'}); two or more are needed. Choose "
            "another column."
        )
    max_values = min(MAX_VALUES, max(2, len(cases) // 2))
    if len(groups) > max_values or template[column].kind == "number":
        raise UserError(
            f"{flag} {column}: the column has {len(groups)} different values, more like a "
            "measurement than groups. Add a column of groups to the table and choose that."
        )
    return groups


def cases_by_values(
    cases: Sequence[Case], template: Template, columns: Sequence[str]
) -> dict[Values, list[Case]]:
    """Return the cases of every combination of known values of columns.

    Args:
        cases: The cases.
        template: How rows become text.
        columns: The columns, see `cases_by_value`.

    Raises:
        UserError: More than `MAX_BALANCED` columns, a column twice, or one that cannot be
            balanced.
    """
    if len(columns) > MAX_BALANCED or len(set(columns)) < len(columns):
        raise UserError(
            f"--balance is given for {format_list(columns)}; it takes one column, or "
            f"{MAX_BALANCED} different ones whose combinations are balanced."
        )
    members = [cases_by_value(cases, template, column) for column in columns]
    value_of = [{case.id: v for v, group in by.items() for case in group} for by in members]
    groups: dict[Values, list[Case]] = {}
    for case in cases:
        if all(case.id in by_case for by_case in value_of):
            groups.setdefault(tuple(by_case[case.id] for by_case in value_of), []).append(case)
    absent = [" and ".join(v) for v in product(*map(sorted, members)) if v not in groups]
    if absent:
        log.warning(
            "--balance %s: no case has %s, so none is made. What the generator would make of a "
            "combination that it never saw means nothing.",
            " and ".join(columns),
            format_list(absent),
        )
    return groups


def balanced_counts(counts: Mapping[Group, int], n: int, together: bool) -> dict[Group, int]:
    """Return how many of `n` new cases each group gets, so that groups are as equal as possible.

    Args:
        counts: How many real cases each group has.
        n: New cases.
        together: Balance real and new cases together; else the new cases alone.
    """
    start = {value: counts[value] if together else 0 for value in sorted(counts)}
    total = dict(start)
    for _ in range(n):
        rarest = min(total, key=lambda value: total[value])
        total[rarest] += 1
    return {value: total[value] - start[value] for value in total}


def plan_balanced(
    texts: SourceTexts,
    columns: Sequence[str],
    n: int,
    *,
    together: bool,
    sources: Sources,
    seed: int,
) -> list[PlannedCase]:
    """Plan new cases that balance a column, or the combinations of two.

    Args:
        texts: Real cases whose masks, scans, rows and texts are used.
        columns: The columns to balance.
        n: Number of new cases.
        together: Balance real and new cases together; else the new ones alone.
        sources: Take any patient, and change the values and what they imply; only patients who have
            the values; or only patients who have others, those with one other value first.
        seed: Decides which patients come first.

    Raises:
        UserError: See `cases_by_values`; no written text states the columns; or no case has other
            values.
    """
    template = texts.reader.template
    groups = cases_by_values(texts.cases, template, columns)
    candidates = list(texts.cases) if sources == "own" else texts.stating(columns)
    spellings = [  # the most common spelling of each value in the table
        _common_spellings(cases_by_value(texts.cases, template, column), column)
        for column in columns
    ]
    counts = balanced_counts({v: len(members) for v, members in groups.items()}, n, together)
    rng = np.random.default_rng([seed, BALANCE_STREAM])
    targets = [value for value, count in counts.items() for _ in range(count)]
    targets = [targets[k] for k in rng.permutation(len(targets))]
    queues = {}
    for value, members in groups.items():
        chosen = members if sources == "own" else candidates
        if sources == "other" and counts[value]:
            chosen = _cases_with_other_values(groups, value, candidates, columns)
        queues[value] = _cycle_randomly(chosen, rng)
    planned = []
    for number, value in enumerate(targets):
        source = next(queues[value])
        cells = {c: by[v] for c, by, v in zip(columns, spellings, value, strict=True)}
        new = texts.changed(source, cells)
        name = case_name(number, n, is_edit=sources == "other")
        case_seed = _case_seed(seed, number)
        planned.append(PlannedCase(name, source, new.row, new.prompt, case_seed, new.dropped))
    return planned


def plan_edited(
    texts: SourceTexts,
    edits: Sequence[TextEdit],
    n: int,
    *,
    together: bool,
    changed: bool,
    seed: int,
) -> list[PlannedCase]:
    """Plan new cases whose texts hold each wording of some edits equally often.

    Args:
        texts: Real cases whose masks, rows and texts are used.
        edits: The edits; the words of each are in the text of some case.
        n: Number of new cases.
        together: Balance real and new cases together; else the new ones alone.
        changed: Take any patient whose text holds the words, and replace them; else only patients
            whose text holds the wording itself.
        seed: Decides which patients come first.

    Raises:
        UserError: No text holds the words of an edit, or, without `changed`, one of its wordings.
    """
    rng = np.random.default_rng([seed, EDIT_STREAM])
    counts: dict[str, int] = {}
    queues = {}
    wordings = {}
    for edit in edits:
        holding = texts.holding(edit)
        by_value: dict[str, list[Case]] = {value: [] for value in edit.values}
        for case in texts.cases:
            by_value.get(edit.value(texts.prompts[case.id]), []).append(case)
        for wording, value in zip(edit.wordings, edit.values, strict=True):
            name = value if len(edits) == 1 else f"{edit.wordings[0]} => {value}"
            if not (changed or by_value[value]):
                raise UserError(
                    f"--vary_text: no text holds {value!r}, which --rows own needs. Leave it out, "
                    "or use --rows changed."
                )
            counts[name] = len(by_value[value])
            queues[name] = _cycle_randomly(holding if changed else by_value[value], rng)
            wordings[name] = (edit, wording)
    shares = balanced_counts(counts, n, together)
    names = [name for name, share in shares.items() for _ in range(share)]
    planned = []
    for number, k in enumerate(rng.permutation(len(names))):
        name = names[k]
        edit, wording = wordings[name]
        source = next(queues[name])
        prompt = texts.prompts[source.id]
        if changed and wording != edit.wordings[0]:
            prompt = edit.apply(prompt, wording) or prompt
        new = texts.with_text(source, prompt)
        planned.append(
            PlannedCase(
                case_name(number, n),
                source,
                new.row,
                new.prompt,
                _case_seed(seed, number),
                new.dropped,
                name,
            )
        )
    return planned


def _common_spellings(groups: Mapping[str, Sequence[Case]], column: str) -> dict[str, str]:
    return {
        value: Counter(case.row[column] for case in members).most_common(1)[0][0]
        for value, members in groups.items()
    }


def _cases_with_other_values(
    groups: Mapping[Values, Sequence[Case]],
    values: Values,
    candidates: Sequence[Case],
    columns: Sequence[str],
) -> list[Case]:
    """Return the candidates whose scans can be given values: with as few changes as possible."""
    allowed = {case.id for case in candidates}
    by_distance: dict[int, list[Case]] = {}
    for group, members in groups.items():
        distance = sum(a != b for a, b in zip(group, values, strict=True))
        by_distance.setdefault(distance, []).extend(c for c in members if c.id in allowed)
    for distance in range(1, len(columns) + 1):
        if by_distance.get(distance):
            return by_distance[distance]
    raise UserError(
        f"--balance {' and '.join(columns)}: no training scan with another value than "
        f"{' and '.join(values)} can be edited. Choose another column, or use --how generate."
    )


def plan_table(
    table: ClinicalTable,
    texts: SourceTexts,
    n: int,
    seed: int,
    *,
    edits: bool = False,
    similar: bool = False,
) -> list[PlannedCase]:
    """Plan new cases from a table of rows.

    Its column `SYNTHETIC SOURCE` may name the case whose mask is used. Edits need it: it names the
    scan, and the row is the source's with the cells of the table that are not empty.

    Args:
        table: Rows by the new cases' ids.
        texts: Real cases whose masks, or scans, are used; what values imply, so that contradicting
            cells are emptied.
        n: Only the first `n` rows (0: all).
        seed: Decides the masks of rows that name none.
        edits: Whether scans are edited.
        similar: Whether rows that name no case take the one with the most similar row, instead of
            a random one.

    Raises:
        UserError: A source that is missing or not a case, or an id that a real case has.
    """
    template = texts.reader.template
    by_id = {case.id: case for case in texts.cases}
    rng = np.random.default_rng([seed, TABLE_STREAM])
    retrieval = Retrieval.from_cases(texts, rng) if similar else None
    queue = _cycle_randomly(texts.cases, rng)
    planned = []
    for number, (name, cells) in enumerate(list(table.rows.items())[: n or None]):
        row = {column: value for column, value in cells.items() if column not in PROVENANCE}
        source = cells.get(SOURCE, "").strip()
        if edits and not source:
            raise UserError(
                f"--table, row {name}: {SOURCE} is empty. An edit needs the case whose scan is "
                "edited; name it there."
            )
        if source and source not in by_id:
            raise UserError(
                f"--table, row {name}: {SOURCE} is {source!r}, which is no case of the split; it "
                f"has: {format_list(list(by_id))}."
            )
        _check_name(name)
        if name in by_id:
            raise UserError(
                f"--table: {name!r} is the name of a real case. Give synthetic cases other names."
            )
        if source:
            case = by_id[source]
        else:
            case = retrieval.most_similar(row) if retrieval else next(queue)
        if edits:
            new = texts.changed(case, {c: v for c, v in row.items() if v and c in case.row})
        else:
            consistent = template.consistent(row)
            prompt = template.phrases(consistent.row)
            new = ChangedCase(consistent.row, prompt, consistent.dropped)
        case_seed = _case_seed(seed, number)
        planned.append(PlannedCase(name, case, new.row, new.prompt, case_seed, new.dropped))
    if not planned:
        raise UserError("--table holds no rows. Give a row for every case to make.")
    return planned


@dataclass(frozen=True)
class Retrieval:
    """Search for the case whose row is most like another: nearest by standardised columns.

    Attributes:
        cases: The cases.
        features: How rows are encoded.
        encoded: `(N, F)` their rows.
    """

    cases: Sequence[Case]
    features: RowFeatures
    encoded: NDArray[np.float64]

    @classmethod
    def from_cases(cls, texts: SourceTexts, rng: np.random.Generator) -> Retrieval | None:
        """Encode the rows of cases; None where no column tells them apart.

        Args:
            texts: The cases.
            rng: Decides between cases that are equally similar.
        """
        cases = [texts.cases[k] for k in rng.permutation(len(texts.cases))]
        rows = [case.row for case in cases]
        features = RowFeatures.from_rows(rows, texts.reader.template)
        if not features.columns:
            return None
        return cls(cases, features, features.encode(rows))

    def most_similar(self, row: Row) -> Case:
        """Return the case whose row is nearest."""
        distances = np.linalg.norm(self.encoded - self.features.encode([row]), axis=1)
        return self.cases[int(distances.argmin())]


def _check_name(name: str) -> None:
    """Raise `UserError` for a name that cannot be that of a file in the cohort's folders."""
    is_plain = Path(name).name == name and "\\" not in name and name.isprintable()
    if not is_plain or name.startswith(".") or len(name) > MAX_NAME_LENGTH:
        raise UserError(
            f"--table: {name[:MAX_NAME_LENGTH]!r} cannot be the name of a file. Give names of at "
            f"most {MAX_NAME_LENGTH} characters, without slashes or a dot in front."
        )


def case_name(number: int, n: int, is_edit: bool = False) -> str:
    """Return the name of a new case; all names of a cohort sort in their order."""
    return f"{'edited' if is_edit else 'synthetic'}_{number + 1:0{max(4, len(str(n)))}d}"


def _case_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, CASE_STREAM, number]).generate_state(1)[0])


def _cycle_randomly(cases: Sequence[Case], rng: np.random.Generator) -> Iterator[Case]:
    """Yield the cases in random order, again and again."""
    while True:
        for k in rng.permutation(len(cases)):
            yield cases[k]
