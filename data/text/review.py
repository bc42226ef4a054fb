"""A table of prompts to read through before training."""

from __future__ import annotations

import logging
from pathlib import Path

from data.cohort import PROMPTS_FILE
from data.table import find_table, read_table
from data.text.prompts import load_template
from options.prompt_options import PromptOptions
from util.cli import UserError
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
    template = load_template(
        options.template, table.columns, options.key_column, options.patient_column
    )
    rows = []
    for case, row in table.rows.items():
        try:
            prompt = template.phrases(row)
        except UserError as error:
            raise UserError(f"{path}, case {case}: {error}") from None
        dropped = template.consistent(row).dropped
        cells = (case, prompt.sentence, " | ".join(prompt.texts), " | ".join(dropped))
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    if not out.parent.is_dir():
        raise UserError(
            f"--out {out}: the folder {out.parent} does not exist. Make it, or choose another."
        )
    write_csv(out, COLUMNS, rows)
    first = rows[0]["Prompt"] if rows else "none"
    log.info("%d prompts in %s; the first: %s", len(rows), out, first)
    if (root / PROMPTS_FILE).is_file():
        log.warning("%s replaces these prompts for the cases that it names.", root / PROMPTS_FILE)
    return out
