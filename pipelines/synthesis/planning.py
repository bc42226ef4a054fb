"""Plan of a synthetic cohort: mask, row and seed of every new case."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.cohort import Case
from data.table import ClinicalTable
from data.text.counterfactuals import CaseText, RowText, WrittenText, case_text
from data.text.free_text import TextReader
from data.text.prompts import Prompt, Template
from util.cli import MAX_NAME_LENGTH, UserError, format_list
from util.markdown import code, escape_text

log = logging.getLogger(__name__)

# Columns of every synthetic row. `data.text.template` keeps these out of all texts.
SYNTHETIC = "SYNTHETIC"
SOURCE = "SYNTHETIC SOURCE"
SEED = "SYNTHETIC SEED"
RUN = "SYNTHETIC RUN"
PROVENANCE = (SYNTHETIC, SOURCE, SEED, RUN)
MAX_VALUES = 20  # a column with more is a number or free text, and cannot be balanced

# Streams of random numbers, so that no two uses of a seed share one.
BALANCE_STREAM = 11
TABLE_STREAM = 12
CASE_STREAM = 13


@dataclass(frozen=True)
class PlannedCase:
    """A case to generate.

    Attributes:
        id: Its name.
        source: The real case whose mask is deformed.
        row: Its clinical row.
        prompt: Its text: the row in words, or the source's written text with the value changed.
        seed: Seed of mask and noise.
        dropped: Columns that were emptied because they would contradict the row.
    """

    id: str
    source: Case
    row: dict[str, str]
    prompt: Prompt
    seed: int
    dropped: tuple[str, ...] = ()


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

    def stating(self, column: str) -> list[Case]:
        """Return the cases in whose text a column can be changed, and warn of the others.

        Raises:
            UserError: There is none.
        """
        silent = []
        for case in self.cases:
            text = self.text(case)
            if isinstance(text, WrittenText) and not self.reader.row(text.prompt)[column]:
                silent.append(case.id)
        if silent:
            problem = (
                f"--balance {column}: the texts of {len(silent)} of {len(self.cases)} cases in "
                f"prompts.csv do not state it in words that are understood: {format_list(silent)}."
            )
            if len(silent) == len(self.cases):
                raise UserError(
                    f"{problem} Use --rows own, word the texts as the template does, or move "
                    "prompts.csv away."
                )
            log.warning("%s They are not used as sources.", problem)
        return [case for case in self.cases if case.id not in silent]


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


def balanced_counts(counts: Mapping[str, int], n: int, together: bool) -> dict[str, int]:
    """Return how many of `n` new cases each value gets, so that values are as equal as possible.

    Args:
        counts: How many real cases have each value.
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
    column: str,
    n: int,
    *,
    together: bool,
    changed: bool,
    seed: int,
) -> list[PlannedCase]:
    """Plan new cases that balance a column.

    Args:
        texts: Real cases whose masks, rows and texts are used.
        column: The column to balance.
        n: Number of new cases.
        together: Balance real and new cases together; else the new ones alone.
        changed: Take any patient, and change the value and what it implies; else only patients who
            have the value.
        seed: Decides which patients come first.

    Raises:
        UserError: See `cases_by_value`; or, with `changed`, no written text states the column.
    """
    template = texts.reader.template
    groups = cases_by_value(texts.cases, template, column)
    cases = texts.stating(column) if changed else list(texts.cases)
    cells = {}  # the most common spelling of each value in the table
    for value, members in groups.items():
        spellings = Counter(case.row[column] for case in members)
        cells[value] = spellings.most_common(1)[0][0]
    counts = balanced_counts({v: len(members) for v, members in groups.items()}, n, together)
    rng = np.random.default_rng([seed, BALANCE_STREAM])
    values = rng.permutation(np.repeat(list(counts), list(counts.values()))).tolist()
    queues = {}
    for value, members in groups.items():
        queues[value] = _cycle_randomly(cases if changed else members, rng)
    planned = []
    for number, value in enumerate(values):
        source = next(queues[value])
        row = template.change(source.row, column, cells[value])
        text = texts.text(source)
        # Patients who have the value themselves keep the text that was written of them.
        new = text.change(column, cells[value]) if changed or isinstance(text, RowText) else None
        dropped = row.dropped if new is None else new.dropped
        prompt = text.prompt if new is None else new.prompt
        case_seed = _case_seed(seed, number)
        planned.append(
            PlannedCase(synthetic_id(number, n), source, row.row, prompt, case_seed, dropped)
        )
    return planned


def plan_table(
    table: ClinicalTable, cases: Sequence[Case], template: Template, n: int, seed: int
) -> list[PlannedCase]:
    """Plan new cases from a table of rows.

    Its column `SYNTHETIC SOURCE` may name the case whose mask is used.

    Args:
        table: Rows by the new cases' ids.
        cases: Real cases whose masks are used.
        template: What values imply; contradicting cells are emptied.
        n: Only the first `n` rows (0: all).
        seed: Decides the masks of rows that name none.

    Raises:
        UserError: A source that is not a case, or an id that a real case has.
    """
    by_id = {case.id: case for case in cases}
    queue = _cycle_randomly(cases, np.random.default_rng([seed, TABLE_STREAM]))
    planned = []
    for number, (name, cells) in enumerate(list(table.rows.items())[: n or None]):
        row = {column: value for column, value in cells.items() if column not in PROVENANCE}
        source = cells.get(SOURCE, "").strip()
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
        new = template.consistent(row)
        case = by_id[source] if source else next(queue)
        prompt = template.phrases(new.row)
        case_seed = _case_seed(seed, number)
        planned.append(PlannedCase(name, case, new.row, prompt, case_seed, new.dropped))
    if not planned:
        raise UserError("--table holds no rows. Give a row for every case to make.")
    return planned


def _check_name(name: str) -> None:
    """Raise `UserError` for a name that cannot be that of a file in the cohort's folders."""
    is_plain = Path(name).name == name and "\\" not in name and name.isprintable()
    if not is_plain or name.startswith(".") or len(name) > MAX_NAME_LENGTH:
        raise UserError(
            f"--table: {name[:MAX_NAME_LENGTH]!r} cannot be the name of a file. Give names of at "
            f"most {MAX_NAME_LENGTH} characters, without slashes or a dot in front."
        )


def synthetic_id(number: int, n: int) -> str:
    """Return the name of a new case; all names of a cohort sort in their order."""
    return f"synthetic_{number + 1:0{max(4, len(str(n)))}d}"


def _case_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, CASE_STREAM, number]).generate_state(1)[0])


def _cycle_randomly(cases: Sequence[Case], rng: np.random.Generator) -> Iterator[Case]:
    """Yield the cases in random order, again and again."""
    while True:
        for k in rng.permutation(len(cases)):
            yield cases[k]


def cohort_readme(
    records: Sequence[Mapping[str, Any]],
    run: str,
    step: int,
    source: str,
    column: str,
    counts: Mapping[str, int],
    checked: bool,
) -> str:
    """Return the README.md of a synthetic cohort: its origin and its limits.

    Names and values of users are escaped, so that none becomes markup.

    Args:
        records: Records of every case (`redrawn`, `left_out`).
        run: Name of the generator's run.
        step: Step of its checkpoint.
        source: Folder of the real cohort.
        column: The balanced column, or "".
        counts: Number of cases by value of that column.
        checked: Whether copies of training scans were searched for.
    """
    left_out = sum(bool(record["left_out"]) for record in records)
    table = []
    if column:
        table = [f"| {escape_text(column)} | cases |", "|---|---|"]
        for value, n in sorted(counts.items()):
            table.append(f"| {escape_text(value) or '(not known)'} | {n} |")
        table.append("")
    copies = "Copies: **not searched for** (`--no-check_copies`)."
    if checked:
        redrawn = sum(int(record["redrawn"]) for record in records)
        copies = (
            f"Copies: {redrawn} draws were too close to a training scan and made again; "
            f"{left_out} cases were left out."
        )
    lines = [
        "# Synthetic chest CT",
        "",
        f"{len(records) - left_out} volumes generated by Mask2CT (run {code(run)}, step {step}). "
        "**Nobody's scans.**",
        "",
        f"Masks are those of cases of {code(source)}, varied by smooth deformation. In "
        f"`clinical.csv` the column `{SOURCE}`",
        f"names the case, `{SEED}` the seed and `{RUN}` the generator; `copies.csv` holds the "
        "nearest training scan.",
        "",
        *table,
        copies,
        "",
        "## Research use only",
        "",
        *(f"- {text}" for text in LIMITS),
        "",
    ]
    return "\n".join(lines)


def warning_section(warnings: Sequence[str]) -> str:
    """Return the part of the README.md with the warnings of the command; "" without any."""
    if not warnings:
        return ""
    lines = ["", "## Read before use", "", *(f"- {escape_text(text)}" for text in warnings), ""]
    return "\n".join(lines)


LIMITS = (
    "Not for diagnosis, treatment or any other clinical decision, and not to test a product for "
    "the clinic.",
    "Train with these volumes if you like; test on real scans alone. All are in the split train "
    "for that reason.",
    "They hold what the generator learned, with its errors and the biases of its training cohort. "
    "A rare group rests on the few real patients of that group; many volumes of few patients are "
    "not new patients.",
    "A mask comes from a real patient. Keep volumes made from test patients' masks out of "
    "training: the source is named.",
    "The search for copies finds close ones; it is not a proof of privacy. Treat the volumes as "
    "you treat the scans.",
    "Say in every publication that the data are synthetic, and how they were made.",
)
