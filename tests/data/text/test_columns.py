"""Columns that stay out of the text, and values that are warned of."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from data.load_cohort import load_cohort
from data.text.columns import find_unique_columns, review_columns, review_table
from data.text.prompts import cohort_prompts, load_template
from data.text.review import write_prompt_table
from options.base_options import DataOptions
from options.prompt_options import PromptOptions
from tests.shared_cases import shared_case
from util.cli import UserError

AUTO = load_template("auto", ())


def rows(**columns: list[str]) -> list[dict[str, str]]:
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def test_a_column_with_a_value_per_row_stays_out(caplog: pytest.LogCaptureFixture) -> None:
    table = rows(
        FINDING=[f"nodule {k}" for k in range(12)],
        FVC=[f"{k},5" for k in range(12)],
        SCANNED=[f"2020-01-{k + 10}" for k in range(12)],
        DIAGNOSIS=["IPF", "HP"] * 6,
        DRUG=[f"drug {k}" if k < 9 else "?" for k in range(12)],
    )
    assert find_unique_columns(table, AUTO, ()) == ("FINDING", "SCANNED")
    assert review_table(table, AUTO, ["FINDING"]).left_out == ("SCANNED",)
    assert "SCANNED" in caplog.text and "--text_columns" in caplog.text
    assert review_table(table, AUTO, (), left_out=()).left_out == ()  # as a run's checkpoint says
    with pytest.raises(UserError, match="--text_columns: the table has no column 'NOTE'"):
        review_table(table, AUTO, ["NOTE"])


def test_a_template_asks_for_a_column(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("columns: {FINDING: {kind: text}, Comments: {kind: text}}")
    template = load_template(str(tmp_path / "t.yaml"), ("FINDING",))
    table = rows(FINDING=[f"nodule {k}" for k in range(12)])
    assert find_unique_columns(table, template, ()) == ()
    assert template.phrases({"Comments": "cough"}).texts == ["Comments is cough"]
    assert not AUTO.phrases({"Comments": "cough"})


@pytest.mark.parametrize(
    ("cells", "part"),
    [
        (["Never", "Ex", "999"], "'999' (1 row) may mean 'not known'"),
        (["5", "7", "9", "999"], "'999' (1 row) may mean 'not known'"),
        (["5", "7", "9", "-1"], "'-1' (1 row) may mean 'not known'"),
        (["IPF", "none", "none"], "'none' (2 rows) may mean 'not known'"),
        (["M", "m", "F", "male"], "'M', 'm', 'male' may be one value"),
        (["Never smoker", "never-smoker"], "may be one value"),
        (["Yes", "Y", "No"], "'Y', 'Yes' may be one value"),
        (["1", "2", "3", "4", "5", "abt. 6"], "'abt. 6' (1 row) stands among numbers"),
        (["1,5", "2", "3", "4", "5", "1,200"], "'1,200' (1 row) stands among numbers"),
        (["+", "-", "+"], "'-' is read as not known"),
    ],
)
def test_odd_values_are_named(cells: list[str], part: str) -> None:
    remarks = review_columns(rows(COLUMN=cells), AUTO, ())
    assert any(part in remark for remark in remarks), remarks
    assert all("'COLUMN'" in remark for remark in remarks)


@pytest.mark.parametrize(
    "cells",
    [
        ["Never", "Ex", "?"],
        ["800", "999", "1200"],
        ["M", "F"],
        ["-3", "-1", "4"],
        ["1,5", "2"],
        ["0", "1", "1"],
        ["IPF", "HP", ""],
    ],
)
def test_plain_values_are_not_warned_of(cells: list[str]) -> None:
    assert review_columns(rows(COLUMN=cells), AUTO, ()) == []


def test_a_template_names_values(tmp_path: Path) -> None:
    """A value that a template words is meant, also where other tables mean "not known" by it."""
    path = tmp_path / "t.yaml"
    path.write_text(
        'columns: {DRUG: {values: {"none": None}}, TEST: {phrases: {"-": Negative test.}},'
        " SEX: {values: {M: Male}}, PACKS: {unknown: [999]}}"
    )
    template = load_template(str(path))
    table = rows(
        DRUG=["none", "x1"], TEST=["-", "+"], SEX=["male", "M"], PACKS=["999", "5"], AGE=["91", "5"]
    )
    remarks = review_columns(table, template, ())
    assert len(remarks) == 1 and "ages above 89 identify people" in remarks[0]
    assert template.phrases(table[0]).texts == [
        "DRUG is None",
        "Negative test.",
        "SEX is Male",
        "AGE is 91",
    ]


def test_spellings_stay_several_values_until_a_template_joins_them(tmp_path: Path) -> None:
    """The remark holds the entry that joins them."""
    cells = ["M", "male", "Male", "MALE", "F", "Male"]
    table = rows(SEX=cells)
    (remark,) = review_columns(table, AUTO, ())
    assert "'Male', 'M', 'MALE', 'male' may be one value, and are used as several" in remark
    assert [AUTO.phrases(row).texts for row in table] == [[f"SEX is {cell}"] for cell in cells]
    path = tmp_path / "t.yaml"
    path.write_text(f"columns: {{SEX: {{{remark.partition('template: ')[2]}}}}}")
    template = load_template(str(path))
    assert review_columns(table, template, ()) == []
    words = ["Male", "Male", "Male", "Male", "F", "Male"]
    assert [template.phrases(row).texts for row in table] == [[f"SEX is {w}"] for w in words]


def test_unknown_values_of_a_cohort(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    root = shared_case("65_unknowns") / "cohort"
    cohort = load_cohort(DataOptions(dataroot=str(root)), check=False)
    prompts = cohort_prompts(cohort, AUTO)
    smoking = [c for c, prompt in prompts.items() if "SMOKING HISTORY" in prompt.sentence]
    assert len(cohort.warnings) == 1 and "'999'" in cohort.warnings[0]  # for pages
    assert smoking == ["case005"] and "'999'" in caplog.text  # named, because it may be a value
    packs = [c for c, prompt in prompts.items() if "PACK-YEARS" in prompt.sentence]
    assert packs == [f"case{k:03d}" for k in (1, 3, 5, 7, 9, 11)]


def test_nothing_that_identifies_is_in_a_prompt(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    root = shared_case("68_identity") / "cohort"
    cohort = load_cohort(DataOptions(dataroot=str(root)), check=False)
    prompts = cohort_prompts(cohort, load_template("auto", cohort.columns, "File Name"))
    assert {phrase.column for prompt in prompts.values() for phrase in prompt} == {"AGE"}
    assert "Patient Name, Date of birth, Phone, Comments" in caplog.text
    out = write_prompt_table(PromptOptions(str(root), out=str(tmp_path / "out.csv"))).read_text()
    assert "AGE is 50" in out and not any(word in out for word in ("Doe", "1950", "555", "Dr."))
