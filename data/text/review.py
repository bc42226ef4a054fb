"""A table of prompts to read through before training."""

from __future__ import annotations

import logging
from pathlib import Path

from data.cohort import MASKS, PROMPTS_FILE
from data.load_cohort import files_by_case
from data.review import rejected_cases
from data.table import find_table, match_table, read_table
from data.text.columns import review_table
from data.text.prompts import load_template
from options.prompt_options import PromptOptions
from util.cli import UserError, counted, unknown_column
from util.files import write_csv

COLUMNS = ("File Name", "Prompt", "Phrases", "Left out")

log = logging.getLogger(__name__)


def write_prompt_table(options: PromptOptions) -> Path:
    """Write the prompt of every row of a clinical table to a CSV file.

    Returns:
        The path of the file.

    Raises:
        UserError: The table, the template or a value is missing or malformed.
    """
    root = Path(options.dataroot)
    out = Path(options.out)
    path = find_table(root) if options.dataroot and root.is_dir() else None
    if path is None:
        raise UserError(
            f"--dataroot {options.dataroot or '(not given)'} holds no clinical.csv or "
            "clinical.xlsx."
        )
    table = read_table(path, options.key_column)
    read = table.rows
    if (root / MASKS).is_dir():
        cases = list(files_by_case(root / MASKS))
        table = match_table(table, cases, path, options.key_column)
        rejected = rejected_cases(root, cases)
        read = {
            case: table.rows[case] for case in cases if case not in rejected and case in table.rows
        }
    patients = options.patient_column
    if patients and patients not in (*table.columns, options.key_column):
        raise UserError(unknown_column("--patient_column: the table", patients, table.columns))
    template = load_template(
        options.template, table.columns, options.key_column, options.patient_column
    )
    left_out = review_table(list(read.values()), template, options.text_columns).left_out
    rows = []
    for case, cells in table.rows.items():
        row = {column: cell for column, cell in cells.items() if column not in left_out}
        try:
            prompt = template.phrases(row)
        except UserError as error:
            raise UserError(f"{path}, case {case}: {error}") from None
        dropped = template.consistent(row).dropped
        line = (case, prompt.sentence, " | ".join(prompt.texts), " | ".join(dropped))
        rows.append(dict(zip(COLUMNS, line, strict=True)))
    if not out.parent.is_dir():
        raise UserError(
            f"--out {out}: the folder {out.parent} does not exist. Make it, or choose another."
        )
    write_csv(out, COLUMNS, rows)
    first = rows[0]["Prompt"] if rows else "none"
    log.info("%s in %s; the first: %s", counted(len(rows), "prompt"), out, first)
    if (root / PROMPTS_FILE).is_file():
        log.warning("%s replaces these prompts for the cases that it names.", root / PROMPTS_FILE)
    return out
