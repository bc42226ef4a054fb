"""Variants of a case: interventions on rows and on free texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.cohort import Case
from data.text.counterfactuals import (
    Intervention,
    WrittenText,
    case_text,
    check_intervention,
    counterfactual_variants,
    edit_variants,
    parse_intervention,
    values_by_column,
    variant_pairs,
)
from data.text.free_text import TextEdit, TextReader
from data.text.prompts import Phrase, Prompt, Template, load_template
from util.cli import UserError

ROW = {"AGE": "60", "SEX": "F", "SMOKING HISTORY": "Ex smoker", "PACK-YEARS": "20"}
SMOKING = Intervention("SMOKING HISTORY", ("Never smoker", "Current smoker"))


@pytest.fixture
def aiib23() -> Template:
    return load_template("aiib23", list(ROW))


def test_flags_are_parsed() -> None:
    parsed = parse_intervention("--vary", 'DRUG = "a, b",c', 2)
    assert parsed == Intervention("DRUG", ("a, b", "c"))
    assert parse_intervention("--set", 'DRUG=""', 1) == Intervention("DRUG", ("",))
    for text in ("DRUG", "=a,b", "DRUG=a", "DRUG=a,"):
        with pytest.raises(UserError, match="COLUMN=A,B"):
            parse_intervention("--vary", text, 2)
    assert parse_intervention("--vary", "DRUG=<50%,>50%", 2).values == ("<50%", ">50%")
    with pytest.raises(UserError, match="'a' twice"):
        parse_intervention("--vary", "DRUG=a,b,a", 2)


def test_values_that_cannot_be_read_are_one_message() -> None:
    for text in ("DRUG=a\nb,c", f"DRUG={'x' * 200_000},c"):
        with pytest.raises(UserError, match="Write them in one"):
            parse_intervention("--vary", text, 2)


@pytest.fixture
def reader(aiib23: Template) -> TextReader:
    smoking = ["Never smoker", "Ex smoker", "Current smoker"]
    values = {"AGE": ["40", "60"], "SEX": ["Female", "Male"], "PACK-YEARS": ["20"]}
    return TextReader(aiib23, {**values, "SMOKING HISTORY": smoking})


def test_a_row_gives_one_variant_per_value(aiib23: Template, reader: TextReader) -> None:
    case = Case("c", None, Path("c.nii.gz"), ROW)
    text = case_text(case, aiib23.phrases(ROW), reader)
    older = text.with_value("AGE", "70")
    assert older is not None and older.prompt == aiib23.phrases({**ROW, "AGE": "70"})
    never, current = counterfactual_variants(older, SMOKING)
    assert never.dropped == ("PACK-YEARS",) and current.dropped == ()
    assert "Patient age: 70." in never.prompt.texts
    assert variant_pairs([never, current]) == [(never, current)]


WRITTEN = "62-year-old woman, current smoker, 20 pack-years, honeycombing."


@pytest.mark.parametrize(
    ("text", "column", "value", "changed", "dropped"),
    [
        (
            WRITTEN,
            "AGE",
            "45",
            "45-year-old woman, current smoker, 20 pack-years, honeycombing.",
            (),
        ),
        (WRITTEN, "SMOKING HISTORY", "Ex smoker", WRITTEN.replace("current", "ex"), ()),
        (
            *(WRITTEN, "SMOKING HISTORY", "Never smoker"),
            *("62-year-old woman, never smoker, honeycombing.", ("PACK-YEARS",)),
        ),
        ("Smoking history: ex-smoker. Nodule.", *("SMOKING HISTORY", "Never smoker"), "", ()),
        ("An Ex-smoker with nodules", "SMOKING HISTORY", "", "An with nodules.", ()),
    ],
)
def test_a_written_text_is_changed_where_it_states_the_attribute(
    reader: TextReader, text: str, column: str, value: str, changed: str, dropped: tuple[str, ...]
) -> None:
    found = reader.change(Prompt.from_free_text(text), column, value)
    assert found is not None
    changed = changed or "SMOKING HISTORY is Never smoker, Nodule."
    assert found.prompt.sentence == f"Lung CT scan : {changed}" and found.dropped == dropped


@pytest.mark.parametrize(
    "text",
    [
        "nodule",
        "Not a current smoker",
        "denies being a current smoker",
        "a non-smoker",
        "smoker",
        "",
    ],
)
def test_nothing_is_guessed(reader: TextReader, text: str) -> None:
    assert reader.change(Prompt.from_free_text(text), "SMOKING HISTORY", "Never smoker") is None


def test_a_changed_age_is_no_other_number(reader: TextReader) -> None:
    for text in (
        "stopped 20 years ago",
        "Age related changes",
        "smoked for 20 years",
        "3 years of cough, a cough of 3 years' duration",
    ):
        row = reader.row(Prompt.from_free_text(text))
        assert row["PACK-YEARS"] == "" and row["AGE"] == "", text
    with pytest.raises(UserError, match="must hold a number"):
        reader.change(Prompt.from_free_text(WRITTEN), "AGE", "old")
    with pytest.raises(UserError, match="no column 'HEIGHT'"):
        reader.change(Prompt.from_free_text(WRITTEN), "HEIGHT", "180")


@pytest.mark.parametrize(
    ("text", "older", "without"),
    [
        ("a 62-year-old man, smoked for 20 years", "a 70-year-old man", "a man"),
        ("Man, 62 years of age", "70 years of age", ""),
        ("man aged 62 years", "man aged 70 years", "man aged"),
        ("62 years, male", "70 years", ""),
    ],
)
def test_years_are_an_age_where_the_words_say_so(
    reader: TextReader, text: str, older: str, without: str
) -> None:
    for value, words in (("70", older), ("", without)):
        changed = reader.change(Prompt.from_free_text(text), "AGE", value)
        assert changed is not None
        others = [piece for piece in text.split(", ") if "62" not in piece]
        assert sorted(changed.prompt.texts) == sorted([*filter(None, [words]), *others])


def test_written_texts_have_variants_only_of_what_they_state(reader: TextReader) -> None:
    text = WrittenText(Prompt.from_free_text(WRITTEN), reader)
    assert [v.value for v in counterfactual_variants(text, SMOKING)] == list(SMOKING.values)
    silent = WrittenText(Prompt.from_free_text("nodule"), reader)
    assert counterfactual_variants(silent, SMOKING) == []
    assert silent.with_value("AGE", "70") is None


def test_words_of_any_text_are_edited() -> None:
    edit = TextEdit.parse("--vary_text", "current smoker=>never smoker=>")
    assert edit.values == ("current smoker", "never smoker", "(removed)")
    text = Prompt(
        [Phrase("SMOKING HISTORY is Current smoker", "SMOKING HISTORY"), Phrase("x", None)]
    )
    one, never, removed = edit_variants(text, edit)
    assert one.prompt == text and one.column == "text: current smoker"
    assert never.prompt.texts == ["SMOKING HISTORY is Never smoker", "x"]
    assert removed.prompt.texts == ["SMOKING HISTORY is", "x"]
    assert edit_variants(Prompt.from_free_text("a non-current smoker"), edit) == []
    both = TextEdit.parse("--vary_text", "Current smoker, 20 pack-years => never smoker, fit")
    edited = edit_variants(Prompt.from_free_text(WRITTEN), both)[1].prompt
    assert edited.texts == ["62-year-old woman", "never smoker", "fit", "honeycombing."]
    assert edit_variants(Prompt.from_free_text("current smoker"), both) == []
    whole = TextEdit.parse("--vary_text", "Age: 60.=>young")
    assert edit_variants(Prompt.from_free_text("AGE is 60, x"), whole)[1].prompt.texts == [
        "young",
        "x",
    ]
    for text_ in ("current smoker", "=>never", "a=>b=>B.", " , =>a"):
        with pytest.raises(UserError, match=r"WORDING=>OTHER|twice"):
            TextEdit.parse("--vary_text", text_)


def test_values_that_no_row_has_are_warned_of_or_refused(
    aiib23: Template, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [ROW, {**ROW, "AGE": "40"}]
    check_intervention("--vary", Intervention("AGE", ("60", "50", "90")), aiib23, rows)
    assert "AGE=50; the model interpolates between its neighbours. Known: 40 to 60" in caplog.text
    assert "AGE=90. Known: 40 to 60" in caplog.text and "AGE=60" not in caplog.text
    check_intervention("--vary", SMOKING, aiib23, rows)
    assert "SMOKING HISTORY=Never smoker; the model may never have seen it" in caplog.text
    trained = values_by_column(aiib23, [{**ROW, "AGE": "70", "SMOKING HISTORY": "Ex smoker"}])
    caplog.clear()
    check_intervention("--vary", Intervention("AGE", ("40", "70")), aiib23, rows, trained)
    assert "no training case has AGE=40. Known: 70 to 70" in caplog.text
    assert "AGE=70" not in caplog.text
    check_intervention("--vary", SMOKING, aiib23, [dict.fromkeys(ROW, "")], trained)  # a mask alone
    assert "SMOKING HISTORY=Never smoker; the model has never seen it" in caplog.text
    with pytest.raises(UserError, match=r"no case has SMOKING HISTORY=Never smoker"):
        check_intervention("--val_effect", SMOKING, aiib23, rows, must_occur=True)
    with pytest.raises(UserError, match="no column 'HEIGHT'"):
        check_intervention("--set", Intervention("HEIGHT", ("180",)), aiib23, rows)


def test_numbers_below_zero_are_numbers_and_words_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    template = load_template("auto", ["DELTA", "NEW"])
    rows = [{"DELTA": value, "NEW": ""} for value in ("-20", "-5", "3")]
    check_intervention("--vary", Intervention("DELTA", ("-7", "low")), template, rows)
    assert "DELTA=-7; the model interpolates" in caplog.text
    assert "DELTA=low; the model may never have seen it" in caplog.text
    check_intervention("--vary", Intervention("NEW", ("a", "b")), template, rows)
    assert "NEW=a; the model may never have seen it" in caplog.text
