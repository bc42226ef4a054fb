"""Flags of scripts/make_prompts.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.parser import flag, path_flag


@dataclass(frozen=True)
class PromptOptions:
    """Table, template and output file."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("dataroot",)
    EXAMPLE: ClassVar[str] = "python scripts/make_prompts.py --dataroot phantoms --template aiib23"

    dataroot: str = path_flag("", "Folder with clinical.csv or clinical.xlsx.", kind="folder")
    template: str = path_flag(
        "auto",
        "Wording of rows: aiib23, osic, lesions, auto (COLUMN is VALUE), or a YAML file.",
        kind="name or path",
    )
    key_column: str = flag("File Name", "Table column that names the scan.")
    patient_column: str = flag("", "Table column that names the patient; it stays out of the text.")
    text_columns: tuple[str, ...] = flag(
        (),
        "Column to use in the text although nearly every row has another value, such as a "
        "finding in words. May be repeated.",
    )
    out: str = flag("prompts_made.csv", "File to write.")
