"""Counterfactuals of texts that people wrote: prompts.csv and --prompt."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

import pytest

from tests.commands import TrainedRun, command, refused
from util.files import read_csv, write_csv

TEXTS = (
    "62-year-old woman, current smoker, 40 pack-years, honeycombing.",
    "A nodule in the left lung.",
)
SMOKING = "SMOKING HISTORY=Never smoker,Current smoker"


@pytest.fixture
def reports(cohort_copy: Path) -> Path:
    """The cohort with reports of its two first test cases."""
    cases = json.loads((cohort_copy / "splits.json").read_text())["test"][:2]
    rows = [{"File Name": case, "Prompt": text} for case, text in zip(cases, TEXTS, strict=True)]
    write_csv(cohort_copy / "prompts.csv", ("File Name", "Prompt"), rows)
    return cohort_copy


def prompts(results: Path, kind: str = "varied") -> list[str]:
    (table,) = results.rglob("volumes.csv")
    rows = [row for row in read_csv(table) if row["kind"] == kind]
    return [row["prompt"].removeprefix("Lung CT scan : ") for row in rows]


def test_a_report_is_edited_where_it_states_the_attribute(
    trained_run: TrainedRun, reports: Path, tmp_path: Path
) -> None:
    words = ("--vary", SMOKING, "--how_many", "2", "--page", "--draws", "1")
    done = trained_run.test(tmp_path, *words, cohort=reports)
    assert done.code == 0, done.text
    assert prompts(tmp_path) == [
        "62-year-old woman, never smoker, honeycombing.",
        TEXTS[0],
    ]
    assert prompts(tmp_path, "own") == list(TEXTS)
    page = html.unescape(next(tmp_path.rglob("index.html")).read_text())
    assert "PACK-YEARS was removed from the text" in page
    assert "does not state 'SMOKING HISTORY' in words that are understood" in page
    assert done.text.count("in words that are understood") == 1


def test_a_report_without_the_attribute_is_refused(
    trained_run: TrainedRun, reports: Path, tmp_path: Path
) -> None:
    for flag in ("--vary", "--set"):
        value = "DIAGNOSIS=IPF,HP" if flag == "--vary" else "DIAGNOSIS=IPF"
        done = trained_run.test(tmp_path, flag, value, "--how_many", "2", cohort=reports)
        refused(done, f"{flag}: ", "'DIAGNOSIS'", "never replaced as a whole", "--vary_text")
    edit = ("--vary_text", "emphysema=>clear lungs", "--how_many", "2")
    refused(trained_run.test(tmp_path, *edit, cohort=reports), "do not hold the words 'emphysema'")
    twice = ("--vary_text", "smoker=>fit", "--vary_text", "smoker=>well")
    refused(trained_run.test(tmp_path, *twice, cohort=reports), "2 times for one wording")
    refused(trained_run.test(tmp_path, "--vary_text", "smoker"), "WORDING=>OTHER")
    assert not list((tmp_path / trained_run.name).rglob("*.nii.gz"))


def test_words_of_rows_and_reports_are_edited(
    trained_run: TrainedRun, reports: Path, tmp_path: Path
) -> None:
    edit = "current smoker=>never smoker=>"
    done = trained_run.test(
        tmp_path, "--vary_text", edit, "--how_many", "1", "--draws", "1", cohort=reports
    )
    assert done.code == 0, done.text
    assert prompts(tmp_path) == [
        TEXTS[0],
        TEXTS[0].replace("current", "never"),
        TEXTS[0].replace("current smoker, ", ""),
    ]
    (effects,) = tmp_path.rglob("effects.csv")
    pairs = {(row["column"], row["from"], row["to"]) for row in read_csv(effects)}
    assert ("text: current smoker", "current smoker", "(removed)") in pairs
    files = {row["file"] for row in read_csv(effects.with_name("volumes.csv"))}
    assert all((effects.parent / file).is_file() for file in files) and len(files) == 7


def test_a_prompt_is_changed_by_the_same_rule(
    trained_run: TrainedRun, cohort_dir: Path, tmp_path: Path
) -> None:
    mask = next((cohort_dir / "gtlung").iterdir())
    words = ("--mask", str(mask), "--results_dir", str(tmp_path), *trained_run.flags())
    text = ("--prompt", TEXTS[0], "--no-page", "--draws", "1")
    done = command("test.py", *words, *text, "--set", "AGE=70", "--vary", "SEX=Male,Female")
    assert done.code == 2 and "does not state 'SEX'" in done.text
    done = command("test.py", *words, *text, "--set", "AGE=70", "--vary", SMOKING)
    assert done.code == 0, done.text
    assert prompts(tmp_path, "own") == [TEXTS[0].replace("62", "70")]
    assert prompts(tmp_path)[1] == TEXTS[0].replace("62", "70")
    shutil.rmtree(tmp_path / trained_run.name)


def test_words_are_added_to_a_trained_run(
    trained_run: TrainedRun, cohort_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "words.yaml"
    file.write_text("SMOKING HISTORY: {Current smoker: [puffs away]}")
    mask = next((cohort_dir / "gtlung").iterdir())
    words = ("--mask", str(mask), "--results_dir", str(tmp_path), *trained_run.flags())
    text = ("--prompt", "Puffs away, honeycombing.", "--vary", SMOKING, "--no-page", "--draws", "1")
    done = command("test.py", *words, *text)
    assert done.code == 2 and "does not state 'SMOKING HISTORY'" in done.text
    done = command("test.py", *words, *text, "--paraphrases", str(file))
    assert done.code == 0 and "Puffs away" not in done.text, done.text
    assert prompts(tmp_path)[0] == "SMOKING HISTORY is Never smoker, honeycombing."
    file.write_text("SMOKING HISTORY: {Never smoker: [current smoker], Current smoker: [smokes]}")
    done = command("test.py", *words, *text, "--paraphrases", str(file))
    assert done.code == 2 and "Traceback" not in done.text
