"""Masks by retrieval: new cases get the mask of the patient with the most similar row or text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest

from data.cache import load_mask
from data.load_cohort import load_cohort
from data.volumes import load_volume
from models.text.base_encoder import TextEncoder
from models.text.encoders import build_text_encoder
from options.base_options import DataOptions, TextOptions
from pipelines.synthesis.planning.planned_case import PlannedCase
from pipelines.synthesis.planning.retrieval import retrieve_sources
from pipelines.synthesis.planning.source_texts import SourceTexts
from tests.commands import Outcome, TrainedRun, command, refused
from tests.planned_cohorts import ROW, cases, template, texts
from util.cli import UserError
from util.files import write_csv

AGES = ("40", "50", "60", "70", "80")
ROWS = [ROW | {"DIAGNOSIS": d, "AGE": age} for d in ("HP", "IPF") for age in AGES]


def encoder(real: SourceTexts) -> TextEncoder:
    built = build_text_encoder(TextOptions(text_encoder="table"))
    built.fit([prompt.texts for prompt in real.prompts.values()])
    return built


def new_case(row: dict[str, str], seed: int = 0, name: str = "new") -> PlannedCase:
    return PlannedCase(name, cases(ROW)[0], row, template().phrases(row), seed)


@pytest.mark.parametrize("by", ["row", "text"])
def test_the_most_similar_case_is_found(by: Literal["row", "text"]) -> None:
    real = texts(*ROWS)
    planned = [new_case(row, seed) for seed, row in enumerate(ROWS)]
    found = retrieve_sources(planned, real, by, encoder(real))
    assert [case.source.row for case in found] == ROWS
    assert [(c.id, c.row, c.prompt, c.seed) for c in found] == [
        (c.id, c.row, c.prompt, c.seed) for c in planned
    ]
    between = retrieve_sources([new_case(ROWS[5] | {"AGE": "62"})], real, by, encoder(real))
    assert between[0].source.row == ROWS[7]


def test_equally_similar_cases_take_turns_and_named_ones_stay() -> None:
    real = texts(*ROWS)
    planned = [new_case({"DIAGNOSIS": "IPF", "AGE": ""}, seed) for seed in range(60)]
    planned.append(new_case(ROWS[3], name="kept"))
    # The mean age is that of one case: an unknown age counts as average.
    found = retrieve_sources(planned, real, "row", encoder(real), named=["kept"])
    assert {case.source.row["AGE"] for case in found[:-1]} == {"60"}
    assert found[-1].source is planned[-1].source
    twice = texts(*ROWS, *ROWS)
    sources = [c.source.id for c in retrieve_sources(planned, twice, "row", encoder(real))[:-1]]
    assert set(sources) == {"case7", "case17"}
    again = retrieve_sources(planned, twice, "row", encoder(real))[:-1]
    assert sources == [case.source.id for case in again]


def test_rows_and_texts_that_are_all_alike_are_refused() -> None:
    real = texts(ROW, ROW, ROW, written="A nodule.")
    alike: tuple[Literal["row", "text"], ...] = ("row", "text")
    for by in alike:
        with pytest.raises(UserError, match=f"--retrieve {by}: the {by}s of all 3 cases are alike"):
            retrieve_sources([new_case(ROW)], real, by, encoder(real))


# --- the command


def expand(run: TrainedRun, out: Path, *words: str | Path) -> Outcome:
    start = ("--dataroot", run.cohort, "--out", out, "--no-check_copies")
    return command("scripts/expand.py", *start, *run.flags(), *words)


def test_texts_of_a_table_choose_masks_and_are_kept(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    real = load_cohort(DataOptions(dataroot=str(trained_run.cohort)))
    wanted, other, *_ = real.split("train")
    rows = [
        {"File Name": "a", "Prompt": "54-year-old man, never smoker.", "SYNTHETIC SOURCE": ""},
        {"File Name": "b", "Prompt": "", "SYNTHETIC SOURCE": other.id, "SEX": "Female"},
        {"File Name": "c", "Prompt": "", **wanted.row},
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    write_csv(tmp_path / "rows.csv", columns, [dict.fromkeys(columns, "") | row for row in rows])
    words = ("--table", tmp_path / "rows.csv", "--masks", "given", "--retrieve", "text")
    done = expand(trained_run, tmp_path / "out", *words)
    assert done.code == 0, done.text
    assert "trained without" not in done.text
    table = pd.read_csv(tmp_path / "out" / "clinical.csv", dtype=str).set_index("File Name")
    assert (
        table["SYNTHETIC SOURCE"]["b"] == other.id and table["SYNTHETIC SOURCE"]["c"] == wanted.id
    )
    assert table["SMOKING HISTORY"]["a"] == "Never smoker" and table["SEX"]["b"] == "Female"
    assert set(table["SYNTHETIC HOW"]) == {"generate, masks given of the most similar text"}
    prompts = pd.read_csv(tmp_path / "out" / "prompts.csv", dtype=str).set_index("File Name")
    assert "54-year-old man, never smoker" in prompts["Prompt"]["a"]
    mask = load_volume(tmp_path / "out" / "gtlung" / "c.nii.gz").array
    assert np.array_equal(mask, load_mask(wanted).array)
    assert "most similar text" in (tmp_path / "out" / "README.md").read_text()
    assert "retrieved by text" in (tmp_path / "out" / "index.html").read_text()


def test_retrieval_is_for_generated_rows_of_a_table(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    write_csv(tmp_path / "rows.csv", ["File Name", "SEX"], [{"File Name": "a", "SEX": "Male"}])
    table = ("--table", str(tmp_path / "rows.csv"))
    for words in (
        ("--balance", "SEX", "--n", "2"),
        (*table, "--masks", "shape"),
        (*table, "--how", "residual"),
    ):
        done = expand(trained_run, tmp_path / "out", *words, "--retrieve", "row")
        refused(done, "--retrieve row finds masks of patients for the rows or texts of --table")
