"""Rules for cells, columns and ids of tables."""

from __future__ import annotations

import pytest

from data.text.values import (
    cap_age,
    clean_cell,
    clean_value,
    is_identifying,
    is_never_text,
    is_unknown,
    match_ids,
    normalise_id,
    parse_number,
)
from util.cli import UserError


@pytest.mark.parametrize(
    "cell",
    [
        "",
        " ",
        "-",
        "--",
        "–",
        ".",
        "?",
        "unk",
        "UNK.",
        "n.a.",
        "N/A",
        "#DIV/0!",
        "#N/A",
        "NaN",
        "not_known",
        "Missing",
        "Not Available",
        "null",
        "k.A.",
        "Keine Angabe",
        "unbekannt",
        "non renseigné",
        "未知",
    ],
)
def test_cells_that_mean_not_known(cell: str) -> None:
    assert is_unknown(cell)


@pytest.mark.parametrize("cell", ["0", "no", "none", "999", "negative", "+", "IPF"])
def test_cells_that_are_values(cell: str) -> None:
    assert not is_unknown(cell)


@pytest.mark.parametrize(
    ("cell", "text", "number"),
    [
        ("55.0", "55", 55.0),
        ("55,0", "55", 55.0),
        ("0,5", "0.5", 0.5),
        ("-2,25", "-2.25", -2.25),
        (",5", "0.5", 0.5),
        ("0,500", "0.500", 0.5),
        ("1,200", "1,200", None),  # thousands or decimals
        ("1,2,3", "1,2,3", None),
        ("1e3", "1e3", 1000.0),
        ("1_000", "1_000", None),
        ("inf", "inf", None),
        ("9" * 5000, "9" * 5000, None),
        ("²", "²", None),
    ],
)
def test_numbers(cell: str, text: str, number: float | None) -> None:
    assert clean_cell(cell) == text and parse_number(cell) == number


def test_ages_with_a_unit_are_years() -> None:
    assert [clean_value("AGE", cell) for cell in ("045Y", "45 years", "018M", "45")] == [
        "45",
        "45",
        "1",
        "45",
    ]
    assert clean_value("PatientAge", "067Y") == "67" and clean_value("SITE", "001D") == "001D"


def test_ages_over_89_are_written_as_90() -> None:
    ages = ("89", "90", "93,5", "101Y", "unknown")
    assert [cap_age("Age", age) for age in ages] == ["89", "90", "90", "90", "unknown"]
    assert cap_age("Stage", "101") == "101"


@pytest.mark.parametrize(
    "column",
    [
        "Patient Name",
        "PatientName",
        "NAME",
        "first_name",
        "Date of birth",
        "DOB",
        "Birth year",
        "Phone",
        "e-mail",
        "Comments",
        "Notes",
        "Hospital number",
        "Hospital No.",
        "MRN",
        "zip code",
        "Patient ID",
        "patient_id",
        "Mapping ID",
        "Home address",
        "Geburtsdatum",
        "Geb.datum",
        "Geb.-Datum",
        "geb_dat",
        "Geb.",
        "Date de naissance",
        "Fecha de nacimiento",
        "姓名",
        "File Name",
    ],
)
def test_identifying_columns(column: str) -> None:
    assert is_identifying(column) and is_never_text(column)


@pytest.mark.parametrize(
    "column",
    [
        "AGE",
        "SEX",
        "DIAGNOSIS",
        "Drug name",
        "Scanner name",
        "Birth weight",
        "FVC",
        "Nodule",
        "TYPE CTD OTHER",
        "FAMILIAL PF AND/OR RARE VARIANT",
        "Notable fibrosis",
        "Packs per day",
    ],
)
def test_columns_of_the_text(column: str) -> None:
    assert not is_never_text(column)


def test_row_numbers_are_no_text() -> None:
    assert is_never_text("Unnamed: 0") and is_never_text("index") and is_never_text("")
    assert not is_identifying("index")


def test_ids_match_across_suffix_capitals_and_zeros() -> None:
    assert normalise_id("007.nii.gz") == normalise_id(" 7.0 ") == "7"
    assert normalise_id("Mu\u0308ller") == normalise_id("MÜLLER.mha")  # as macOS writes it
    names = ["Case1.nii.gz", "002", "other", "3"]
    assert match_ids(names, ["case1", "2", "3"], "t.csv") == {
        "3": "3",
        "Case1.nii.gz": "case1",
        "002": "2",
    }


def test_the_same_text_goes_before_a_similar_one() -> None:
    assert match_ids(["7", "007"], ["7", "007"], "t.csv") == {"7": "7", "007": "007"}
    assert match_ids(["7", "007"], ["7"], "t.csv") == {"7": "7"}


@pytest.mark.parametrize(
    ("names", "known"), [(["07"], ["7", "007"]), (["07", "007"], ["7"]), (["A"], ["a", "A.nii"])]
)
def test_ids_that_may_mean_several_are_refused(names: list[str], known: list[str]) -> None:
    with pytest.raises(UserError, match=r"t\.csv: .* may mean .*"):
        match_ids(names, known, "t.csv")
