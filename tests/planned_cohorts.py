"""Cases, texts and plans of synthetic cohorts, for tests."""

from __future__ import annotations

from pathlib import Path

from data.cohort import Case
from data.text.counterfactuals import values_by_column
from data.text.free_text import TextReader
from data.text.prompts import Prompt, Template, load_template
from pipelines.synthesis.planning.source_texts import SourceTexts

ROW = {"DIAGNOSIS": "HP", "TYPE CTD": "", "CTD DIAG DATE": "", "AGE": "60", "SYNTHETIC": ""}
CTD = ROW | {"DIAGNOSIS": "CTD-ILD", "TYPE CTD": "Myositis", "CTD DIAG DATE": "-300"}


def template() -> Template:
    return load_template("aiib23", list(ROW))


def cases(*rows: dict[str, str]) -> list[Case]:
    return [Case(f"case{k}", None, Path(f"case{k}.nii.gz"), row) for k, row in enumerate(rows)]


def texts(*rows: dict[str, str], written: str = "") -> SourceTexts:
    """Cases with the texts of their rows, or all with one that was written."""
    real = cases(*rows)
    values = values_by_column(template(), rows)
    prompts = {case.id: template().phrases(case.row) for case in real}
    if written:
        prompts = dict.fromkeys(prompts, Prompt.from_free_text(written))
    return SourceTexts(real, prompts, TextReader(template(), values))
