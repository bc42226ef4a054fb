"""Plan of a synthetic cohort from a table of rows (`--table`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.provenance import PROVENANCE, SOURCE
from data.table import ClinicalTable
from data.text.prompts import Prompt
from pipelines.synthesis.planning.planned_case import (
    ChangedCase,
    PlannedCase,
    case_seed,
    cycle_randomly,
)
from pipelines.synthesis.planning.source_texts import SourceTexts
from pipelines.synthesis.random_streams import TABLE_STREAM
from util.cli import MAX_NAME_LENGTH, UserError, format_list

PROMPT = "Prompt"  # column of the table with texts, as in prompts.csv


def plan_table(
    table: ClinicalTable,
    texts: SourceTexts,
    n: int,
    seed: int,
    *,
    edits: bool = False,
) -> list[PlannedCase]:
    """Plan new cases from a table of rows.

    Its column `SYNTHETIC SOURCE` may name the case whose mask is used. Edits need it: it names the
    scan, and the row is the source's with the cells of the table that are not empty. A column
    `Prompt` may hold texts, which replace the row's words; what they state enters the row.

    Args:
        table: Rows by the new cases' ids.
        texts: Real cases whose masks, or scans, are used; what values imply, so that contradicting
            cells are emptied.
        n: Only the first `n` rows (0: all).
        seed: Decides the masks of rows that name none.
        edits: Whether scans are edited.

    Raises:
        UserError: A source that is missing or not a case, or an id that a real case has.
    """
    template = texts.reader.template
    by_id = {case.id: case for case in texts.cases}
    rng = np.random.default_rng([seed, TABLE_STREAM])
    queue = cycle_randomly(texts.cases, rng)
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
        case = by_id[source] if source else next(queue)
        if edits:
            new = texts.changed(case, {c: v for c, v in row.items() if v and c in case.row})
        else:
            prompt = Prompt.from_free_text(row.pop(PROMPT, ""))
            row |= {c: value for c, value in texts.reader.row(prompt).items() if value}
            consistent = template.consistent(row)
            prompt = prompt or template.phrases(consistent.row)
            new = ChangedCase(consistent.row, prompt, consistent.dropped)
        planned.append(PlannedCase.from_change(name, case, new, case_seed(seed, number)))
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
