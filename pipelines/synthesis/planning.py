"""The plan of a synthetic cohort: which mask, which row and which seed every new case gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.cohort import Case
from data.table import ClinicalTable
from data.text.prompts import Template
from util.cli import UserError, format_list

# What every synthetic row says of itself. `data.text.template` keeps these out of all texts.
SYNTHETIC, SOURCE, SEED, RUN = "SYNTHETIC", "SYNTHETIC SOURCE", "SYNTHETIC SEED", "SYNTHETIC RUN"
PROVENANCE = (SYNTHETIC, SOURCE, SEED, RUN)
MAX_VALUES = 20  # a column with more is a number or free text, and nothing to balance


@dataclass(frozen=True)
class PlannedCase:
    """A case to make: its id, the real case whose mask is varied, its row, and the seed of mask and
    noise.
    """

    id: str
    source: Case
    row: dict[str, str]
    seed: int
    dropped: tuple[str, ...] = ()


def cases_by_value(cases: Sequence[Case], template: Template, column: str) -> dict[str, list[Case]]:
    """The cases of every known value of a column, by the value as the text says it.

    Raises:
        UserError: The table has no such column, or it has fewer than two values or too many to
            balance.
    """
    if column not in (cases[0].row if cases else ()):
        columns = template.attributes(cases[0].row) if cases else []
        raise UserError(
            f"--balance: the table has no column {column!r}; it has: {format_list(columns, 40)}."
        )
    found: dict[str, list[Case]] = {}
    for case in cases:
        if value := template.format_value(template.consistent(case.row).row, column):
            found.setdefault(value, []).append(case)
    if len(found) < 2:
        raise UserError(
            f"--balance {column}: {len(cases)} cases have {len(found)} known values "
            f"({format_list(sorted(found)) or 'none'}); it takes two or more to balance. Choose "
            "another column."
        )
    if len(found) > min(MAX_VALUES, max(2, len(cases) // 2)) or template[column].kind == "number":
        raise UserError(
            f"--balance {column}: the column has {len(found)} different values, more like a "
            "measurement than groups. Add a column of groups to the table and balance that."
        )
    return found


def balanced_counts(counts: Mapping[str, int], n: int, together: bool) -> dict[str, int]:
    """How many of `n` new cases each value gets, so that the values are as equal as `n` allows.

    Args:
        counts: How many real cases have each value.
        n: New cases.
        together: Make real and new cases together equal; else the new cases alone.
    """
    total = Counter({value: count if together else 0 for value, count in sorted(counts.items())})
    for _ in range(n):
        total[min(total, key=lambda v: total[v])] += 1
    return {value: total[value] - (counts[value] if together else 0) for value in total}


def plan_balanced(
    cases: Sequence[Case],
    template: Template,
    column: str,
    n: int,
    *,
    together: bool,
    changed: bool,
    seed: int,
) -> list[PlannedCase]:
    """New cases that balance a column.

    Args:
        cases: Real cases whose masks and rows are used.
        template: What a value implies for the others of its row.
        column: The column to balance.
        n: How many new cases.
        together: Balance real and new cases together; else the new ones alone.
        changed: Take any patient, and change the value and what it implies; else only patients who
            have the value.
        seed: Decides which patients come first.

    Raises:
        UserError: See `known_rows`.
    """
    groups = cases_by_value(cases, template, column)
    raw = {
        value: Counter(case.row[column] for case in members).most_common(1)[0][0]
        for value, members in groups.items()
    }
    rng = np.random.default_rng([seed, 11])
    wanted = balanced_counts({v: len(members) for v, members in groups.items()}, n, together)
    values = rng.permutation(
        [value for value, count in wanted.items() for _ in range(count)]
    ).tolist()
    queues = {value: _endless(cases if changed else groups[value], rng) for value in groups}
    made = []
    for number, value in enumerate(values):
        source = next(queues[value])
        new = template.change(source.row, column, raw[value])
        made.append(
            PlannedCase(
                synthetic_id(number, n), source, new.row, _case_seed(seed, number), new.dropped
            )
        )
    return made


def plan_table(
    table: ClinicalTable, cases: Sequence[Case], template: Template, n: int, seed: int
) -> list[PlannedCase]:
    """New cases from a table of rows; its column `SYNTHETIC SOURCE` may name the case whose mask is
    used.

    Args:
        table: Rows by the new cases' ids.
        cases: Real cases whose masks are used.
        template: What values imply; contradicting cells are emptied.
        n: Only the first so many rows (0: all).
        seed: Decides the masks of rows that name none.

    Raises:
        UserError: A source that is no case, or an id that a real case has.
    """
    by_id = {case.id: case for case in cases}
    queue = _endless(cases, np.random.default_rng([seed, 12]))
    made = []
    for number, (name, given) in enumerate(list(table.rows.items())[: n or None]):
        row = {k: v for k, v in given.items() if k not in PROVENANCE}
        source = given.get(SOURCE, "").strip()
        if source and source not in by_id:
            raise UserError(
                f"--table, row {name}: {SOURCE} is {source!r}, which is no case of the split; it "
                f"has: {format_list(list(by_id))}."
            )
        if name in by_id:
            raise UserError(
                f"--table: {name!r} is the name of a real case. Give synthetic cases names of "
                "their own."
            )
        kept = template.consistent(row)
        case = by_id[source] if source else next(queue)
        made.append(PlannedCase(name, case, kept.row, _case_seed(seed, number), kept.dropped))
    if not made:
        raise UserError("--table holds no rows. Give a row for every case to make.")
    return made


def synthetic_id(number: int, n: int) -> str:
    """The name of a new case; all of a cohort sort in their order."""
    return f"synthetic_{number + 1:0{max(4, len(str(n)))}d}"


def _case_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, 13, number]).generate_state(1)[0])


def _endless(cases: Sequence[Case], rng: np.random.Generator) -> Iterator[Case]:
    """The cases in random order, again and again."""
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
    """The README.md of a synthetic cohort: what it is, how it was made, and what it may be used
    for.

    Args:
        records: What was done for every case (`case`, `redrawn`, `left_out`).
        run, step: The generator.
        source: Folder of the real cohort.
        column: The balanced column, or "".
        counts: Cases kept by its raw value.
        checked: Whether copies of training scans were looked for.
    """
    left = sum(bool(r["left_out"]) for r in records)
    lines = [f"| {value or '(not known)'} | {n} |" for value, n in sorted(counts.items())]
    table = [f"| {column} | cases |", "|---|---|", *lines, ""] if column else []
    again = sum(int(r["redrawn"]) for r in records)
    found = f"Copies: {again} draws were too close to a training scan and made again; {left} cases were left out."
    return "\n".join(
        [
            "# Synthetic chest CT",
            "",
            f"{len(records) - left} volumes generated by Mask2CT (run `{run}`, step {step}). "
            "**Nobody's scans.**",
            "",
            f"Masks are those of cases of `{source}`, varied by smooth deformation. In "
            f"`clinical.csv` the column `{SOURCE}`",
            f"names the case, `{SEED}` the seed and `{RUN}` the generator; `copies.csv` holds the "
            "nearest training scan.",
            "",
            *table,
            found if checked else "Copies: **not looked for** (`--no-check_copies`).",
            "",
            *CAUTIONS,
            "",
        ]
    )


CAUTIONS = (
    "## Research use only",
    "",
    "- Not for diagnosis, treatment or any other clinical decision, and not to test a product for "
    "the clinic.",
    "- Train with these volumes if you like; **test on real scans alone**. All are in the split "
    "`train` for that reason.",
    "- They hold what the generator learnt, with its errors and the biases of its training cohort. "
    "What it says of a rare",
    "  group rests on the few real patients of that group; many volumes of few patients are no new "
    "patients.",
    "- A mask comes from a real patient. Keep volumes made from test patients' masks out of "
    "training: the source is named.",
    "- The search for copies finds close ones; it is no proof of privacy. Treat the volumes as you "
    "treat the scans.",
    "- Say in every publication that the data are synthetic, and how they were made.",
)
