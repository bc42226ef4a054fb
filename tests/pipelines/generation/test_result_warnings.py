"""Warnings that decide what generated volumes mean stand on their page, not only in the log."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from data.load_cohort import load_cohort
from options.base_options import DataOptions
from tests.commands import TrainedRun
from tests.pages import page_warnings, printed_warnings
from util.notices import collected_warnings


def notice(results: Path) -> str:
    """Return the warnings on the results' page; "" where it has none."""
    (page,) = results.rglob("index.html")
    return page_warnings(page)


def change_column(cohort: Path, column: str, **cells: str) -> None:
    """Write cells of a column, by case."""
    table = cohort / "clinical.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    place = lines[0].index(column)
    for line in lines[1:]:
        line[place] = cells.get(line[0], line[place])
    table.write_text("".join(",".join(line) + "\n" for line in lines))


def test_a_page_without_warnings_has_no_notice(trained_run: TrainedRun, tmp_path: Path) -> None:
    done = trained_run.test(tmp_path / "res", "--page", "--vary", "AGE=60,61", "--how_many", "1")
    assert done.code == 0 and (" WARNING " in done.text) == bool(notice(tmp_path / "res"))


def test_warnings_stand_on_the_page(
    trained_run: TrainedRun, cohort_copy: Path, tmp_path: Path
) -> None:
    """Training cases, look-alike unknowns, and values that no case has."""
    split = json.loads((cohort_copy / "splits.json").read_text())["train"]
    change_column(cohort_copy, "SMOKING HISTORY", **{split[0]: "pending"})
    flags = ("--page", "--split", "train", "--how_many", "2", "--vary", "SEX=Male,Unicorn")
    done = trained_run.test(tmp_path / "res", *flags, cohort=cohort_copy)
    assert done.code == 0, done.text
    text = notice(tmp_path / "res")
    printed = printed_warnings(done.text)
    assert len(printed) > 3 and all(warning in text for warning in printed)
    assert f"Training cases of the run among 2 cases: 2 ({split[0]}" in text
    assert "may mean 'not known'" in text and "no training case has SEX=Unicorn" in text


def test_another_scan_of_the_same_name_is_no_training_case(
    trained_run: TrainedRun, cohort_copy: Path, tmp_path: Path
) -> None:
    for kind in ("img", "gtlung"):
        files = sorted((cohort_copy / kind).iterdir())
        volumes = [file.read_bytes() for file in files]
        for file, volume in zip(files, volumes[1:] + volumes[:1], strict=True):
            file.write_bytes(volume)
    splits = json.loads((cohort_copy / "splits.json").read_text())
    (cohort_copy / "splits.json").write_text(json.dumps({"test": splits["train"]}))
    flags = ("--page", "--split", "test", "--how_many", "2")
    done = trained_run.test(tmp_path / "res", *flags, cohort=cohort_copy)
    assert done.code == 0, done.text
    assert "training cases of the run" not in notice(tmp_path / "res")


def test_only_warnings_of_the_project_are_collected(cohort_dir: Path) -> None:
    with collected_warnings() as notices:
        logging.getLogger("data.text").warning("once, %d", 1)
        logging.getLogger("data.text").warning("once, %d", 1)
        logging.getLogger("data.text").info("no warning")
        logging.getLogger("py.warnings").warning("of a library")
        load_cohort(DataOptions(dataroot=str(cohort_dir)), seed=0)
    logging.getLogger("data.text").warning("too late")
    texts = [notice.text for notice in notices]
    assert texts[0] == "once, 1" and "too late" not in texts
    assert not any("library" in text or text == "no warning" for text in texts)


@pytest.mark.parametrize("recorded", [True, False], ids=["run", "earlier-version"])
def test_a_value_that_only_test_cases_have(
    recorded: bool, run_copy: TrainedRun, cohort_copy: Path, tmp_path: Path
) -> None:
    """The values of training decide, which the checkpoint holds, or the rows of its split."""
    tested = json.loads((cohort_copy / "splits.json").read_text())["test"][0]
    change_column(cohort_copy, "DIAGNOSIS", **{tested: "Sarcoidosis"})
    if not recorded:
        path = run_copy.folder / "latest" / "state.json"
        state = json.loads(path.read_text())
        assert "Sarcoidosis" not in state["data"].pop("values")["DIAGNOSIS"]
        del state["digest"]
        path.write_text(json.dumps(state))
        options = run_copy.folder / "options.json"
        options.write_text(options.read_text().replace(str(run_copy.cohort), str(cohort_copy)))
    flags = ("--page", "--how_many", "1", "--vary", "DIAGNOSIS=IPF,Sarcoidosis")
    done = run_copy.test(tmp_path / "res", *flags, cohort=cohort_copy)
    assert done.code == 0, done.text
    text = "no training case has DIAGNOSIS=Sarcoidosis; the model has never seen it"
    assert text in notice(tmp_path / "res")
