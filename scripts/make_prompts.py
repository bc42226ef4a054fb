"""Writes the prompts of a clinical table for reading; no scans are needed.

The file has the columns File Name, Prompt, Phrases and Left out (values that others of the row contradict). Corrected and
saved as DATAROOT/prompts.csv, its prompts are used instead of the template.
"""

from __future__ import annotations

import csv
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from data.prompts import PROMPTS_FILE, load_template, sentence
from data.table import find_table, read_table
from options.parser import flag, group, parse
from util.cli import UserError, run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptOptions:
    """Which table, which template, where to."""

    dataroot: str = flag("", "Folder with clinical.csv or clinical.xlsx.")
    template: str = flag("auto", "aiib23, osic, auto (COLUMN is VALUE), or a YAML file.")
    key_column: str = flag("File Name", "Table column that names the scan.")
    patient_column: str = flag("", "Table column that names the patient; it stays out of the text.")
    out: str = flag("prompts_made.csv", "File to write.")


@dataclass(frozen=True)
class Options:
    """Everything the command takes."""

    prompts: PromptOptions = group(PromptOptions, "Prompts")


def make_prompts(options: PromptOptions) -> Path:
    """Writes the file; raises `UserError` for a missing or bad table, template or value."""
    root, out = Path(options.dataroot), Path(options.out)
    path = find_table(root) if options.dataroot and root.is_dir() else None
    if path is None:
        raise UserError(f"--dataroot {options.dataroot or '(not given)'} holds no clinical.csv or clinical.xlsx.")
    table = read_table(path, options.key_column)
    template = load_template(options.template, table.columns, options.key_column, options.patient_column)
    lines = []
    for case, row in table.rows.items():
        try:
            prompt = template.phrases(row)
        except UserError as error:
            raise UserError(f"{path}, case {case}: {error}") from None
        lines.append([case, sentence(prompt), " | ".join(p.text for p in prompt),
                      " | ".join(template.consistent(row).dropped)])
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist. Make it, or choose another.")
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["File Name", "Prompt", "Phrases", "Left out"], *lines])
    log.info("%d prompts in %s; the first: %s", len(lines), out, lines[0][1] if lines else "none")
    if (root / PROMPTS_FILE).is_file():
        log.warning("%s stands instead of these for the cases that it names.", root / PROMPTS_FILE)
    return out


def main() -> None:
    """Parses the command line and writes."""
    make_prompts(parse(Options, (__doc__ or "").splitlines()[0]).prompts)


if __name__ == "__main__":
    run(main)
