"""Plan of a synthetic cohort that balances columns (`--balance`)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal, TypeVar

import numpy as np

from data.cohort import Case
from data.text.prompts import Template
from pipelines.synthesis.planning.planned_case import (
    PlannedCase,
    Values,
    case_name,
    case_seed,
    cycle_randomly,
)
from pipelines.synthesis.planning.source_texts import SourceTexts
from pipelines.synthesis.random_streams import BALANCE_STREAM
from util.cli import UserError, counted, format_list, unknown_column

log = logging.getLogger(__name__)

MAX_VALUES = 20  # a column with more is a number or free text, and cannot be balanced
MAX_BALANCED = 2  # columns whose joint distribution is balanced
Group = TypeVar("Group", str, Values)
# Patients whose row a new case takes: anybody, those who have its values, or those who do not.
Sources = Literal["changed", "own", "other"]


def cases_by_value(
    cases: Sequence[Case], template: Template, column: str, flag: str = "--balance"
) -> dict[str, list[Case]]:
    """Return the cases of every known value of a column, by the value as in the text.

    Args:
        template: How rows become text.
        flag: The flag that names the column, for messages.

    Raises:
        UserError: The table has no such column, or it has fewer than two values or too many to
            balance.
    """
    if column not in (cases[0].row if cases else ()):
        columns = template.attributes(cases[0].row) if cases else []
        raise UserError(unknown_column(f"{flag}: the table", column, columns))
    groups: dict[str, list[Case]] = {}
    for case in cases:
        if value := template.format_value(template.consistent(case.row).row, column):
            groups.setdefault(value, []).append(case)
    if len(groups) < 2:
        raise UserError(
            f"{flag} {column}: {counted(len(cases), 'case')} with "
            f"{counted(len(groups), 'known value')} ({format_list(sorted(groups)) or 'none'}); "
            "two or more are needed. Choose another column."
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
        queues[value] = cycle_randomly(chosen, rng)
    planned = []
    for number, value in enumerate(targets):
        source = next(queues[value])
        cells = {c: by[v] for c, by, v in zip(columns, spellings, value, strict=True)}
        new = texts.changed(source, cells)
        name = case_name(number, n, is_edit=sources == "other")
        planned.append(PlannedCase.from_change(name, source, new, case_seed(seed, number)))
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
