"""Variants of a case: interventions on rows and on free texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.cohort import Case
from data.text.counterfactuals import (
    Intervention,
    check_intervention,
    counterfactual_variants,
    factual_variant,
    free_text_variants,
    parse_intervention,
    values_by_column,
    variant_pairs,
)
from data.text.prompts import Prompt, Template, load_template
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


def test_a_row_gives_a_factual_variant_and_one_per_value(aiib23: Template) -> None:
    case = Case("c", None, Path("c.nii.gz"), ROW)
    factual, row = factual_variant(case, aiib23, [Intervention("AGE", ("70",))], None, "")
    assert factual.prompt == aiib23.phrases({**ROW, "AGE": "70"}) and row["AGE"] == "70"
    never, current = counterfactual_variants(row, aiib23, SMOKING)
    assert never.dropped == ("PACK-YEARS",) and current.dropped == ()
    assert "Patient age: 70." in never.prompt.texts
    assert variant_pairs([never, current]) == [(never, current)]
    written = Prompt.from_free_text("old, smoker")
    assert factual_variant(case, aiib23, [], written, "")[0].prompt == written
    assert factual_variant(case, aiib23, [], written, "young")[0].prompt.texts == ["young"]


def test_a_free_text_has_its_phrase_replaced_or_added(aiib23: Template) -> None:
    empty = dict.fromkeys(ROW, "")
    text = Prompt.from_free_text("Gender: Female. SMOKING HISTORY is Ex smoker, nodule.")
    never, _ = free_text_variants(text, empty, aiib23, SMOKING)
    assert never.prompt.texts == ["Gender: Female.", "SMOKING HISTORY is Never smoker", "nodule."]
    old, _ = free_text_variants(text, empty, aiib23, Intervention("AGE", ("80", "40")))
    assert old.prompt.texts == [*text.texts, "Patient age: 80."]


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
