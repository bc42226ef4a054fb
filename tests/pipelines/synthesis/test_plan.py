"""The plan of a synthetic cohort: rows, sources and texts of new cases."""

from __future__ import annotations

from collections import Counter

import pytest

from data.table import ClinicalTable
from data.text.free_text import TextEdit
from data.text.prompts import Prompt, load_template
from pipelines.synthesis.planning.balance import balanced_counts, plan_balanced
from pipelines.synthesis.planning.table import plan_table
from pipelines.synthesis.planning.wordings import plan_edited
from tests.planned_cohorts import CTD, ROW, texts
from util.cli import UserError


def test_shares_are_as_equal_as_can_be() -> None:
    counts = {"a": 10, "b": 2, "c": 6}
    assert balanced_counts(counts, 7, together=False) == {"a": 3, "b": 2, "c": 2}
    assert balanced_counts(counts, 12, together=True) == {"a": 0, "b": 8, "c": 4}
    assert balanced_counts(counts, 3, together=True) == {"a": 0, "b": 3, "c": 0}


def test_a_changed_row_stays_possible() -> None:
    plan = plan_balanced(
        texts(CTD, CTD, CTD, ROW), ["DIAGNOSIS"], 20, together=False, sources="changed", seed=1
    )
    assert Counter(p.row["DIAGNOSIS"] for p in plan) == {"HP": 10, "CTD-ILD": 10}
    turned = [
        p for p in plan if p.source.row["DIAGNOSIS"] == "CTD-ILD" and p.row["DIAGNOSIS"] == "HP"
    ]
    assert turned
    for planned in turned:
        assert planned.row["TYPE CTD"] == planned.row["CTD DIAG DATE"] == ""
        assert set(planned.dropped) == {"TYPE CTD", "CTD DIAG DATE"}
    assert len({p.id for p in plan}) == len({p.seed for p in plan}) == 20
    assert (
        max(Counter(p.source.id for p in plan if p.row["DIAGNOSIS"] == "HP").values()) <= 3
    )  # patients take turns


def test_own_rows_come_from_patients_who_have_the_value() -> None:
    plan = plan_balanced(
        texts(CTD, ROW, ROW), ["DIAGNOSIS"], 8, together=True, sources="own", seed=1
    )
    assert sorted(Counter(p.row["DIAGNOSIS"] for p in plan).items()) == [
        ("CTD-ILD", 5),
        ("HP", 3),
    ]
    assert all(p.source.row["DIAGNOSIS"] == p.row["DIAGNOSIS"] and not p.dropped for p in plan)


def test_plan_depends_on_the_seed_alone() -> None:
    real = texts(CTD, ROW, ROW)
    one, again, second_seed = (
        plan_balanced(real, ["DIAGNOSIS"], 6, together=False, sources="changed", seed=s)
        for s in (1, 1, 2)
    )
    assert one == again and [p.seed for p in one] != [p.seed for p in second_seed]


@pytest.mark.parametrize(
    ("rows", "column", "message"),
    [
        ((ROW, ROW), "DIAGNOSIS", r"2 cases with 1 known value \(HP\).*two or more"),
        (({**ROW, "DIAGNOSIS": ""},), "DIAGNOSIS", r"0 known values \(none\)"),
        ((ROW, CTD), "HEIGHT", r"no column 'HEIGHT'; it has: DIAGNOSIS"),
        ((ROW, {**ROW, "AGE": "70"}), "AGE", r"more like a measurement"),
        (
            (ROW, {**ROW, "DIAGNOSIS": "a"}, {**ROW, "DIAGNOSIS": "b"}),
            "DIAGNOSIS",
            r"3 different values, more like",
        ),
    ],
)
def test_columns_that_cannot_be_balanced(
    rows: tuple[dict[str, str], ...], column: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_balanced(texts(*rows), [column], 4, together=False, sources="changed", seed=0)


def test_written_texts_are_changed_and_never_replaced() -> None:
    written = "62-year-old woman with HP, honeycombing."
    planned = plan_balanced(
        texts(ROW, CTD, written=written),
        ["DIAGNOSIS"],
        4,
        together=False,
        sources="changed",
        seed=0,
    )
    assert {p.prompt.sentence.partition(": ")[2] for p in planned} == {
        "62-year-old woman with HP, honeycombing.",
        "62-year-old woman with CTD-ILD, honeycombing.",
    }
    own = plan_balanced(
        texts(ROW, CTD, written=written), ["DIAGNOSIS"], 4, together=False, sources="own", seed=0
    )
    assert {p.prompt.sentence for p in own} == {Prompt.from_free_text(written).sentence}
    silent = texts(ROW, CTD, written="nodule")
    with pytest.raises(
        UserError, match=r"2 of 2 cases in prompts\.csv do not state it.*--rows own"
    ):
        plan_balanced(silent, ["DIAGNOSIS"], 4, together=False, sources="changed", seed=0)


def test_words_of_texts_are_replaced_and_rows_follow_them() -> None:
    written = "62-year-old woman with CTD-ILD, honeycombing."
    real = texts(ROW, CTD, written=written)
    edits = [TextEdit.parse("--vary_text", "CTD-ILD=>HP=>")]
    planned = plan_edited(real, edits, 6, together=False, changed=True, seed=0)
    assert Counter(p.wording for p in planned) == {"CTD-ILD": 2, "HP": 2, "(removed)": 2}
    for p in planned:
        word = {"CTD-ILD": " with CTD-ILD", "HP": " with HP", "(removed)": " with"}[p.wording]
        assert p.prompt.sentence.endswith(f"62-year-old woman{word}, honeycombing.")
    by_wording = {p.wording: p for p in planned}
    assert by_wording["CTD-ILD"].row == by_wording["CTD-ILD"].source.row  # the text as it stands
    assert by_wording["HP"].row["DIAGNOSIS"] == "HP" and not by_wording["HP"].row["TYPE CTD"]
    assert by_wording["(removed)"].row["DIAGNOSIS"] == ""
    assert "DIAGNOSIS" in by_wording["(removed)"].dropped
    several = [*edits, TextEdit.parse("--vary_text", "honeycombing=>nodules")]
    named = plan_edited(real, several, 10, together=False, changed=True, seed=0)
    assert Counter(p.wording for p in named)["honeycombing => nodules"] == 2
    with pytest.raises(UserError, match=r"no text holds 'HP', which --rows own needs"):
        plan_edited(real, edits, 6, together=False, changed=False, seed=0)
    with pytest.raises(UserError, match=r"do not hold the words 'emphysema'"):
        edit = TextEdit.parse("--vary_text", "emphysema=>clear lungs")
        plan_edited(real, [edit], 6, together=False, changed=True, seed=0)


def test_rows_of_a_table() -> None:
    columns = ("DIAGNOSIS", "TYPE CTD", "SYNTHETIC SOURCE")
    rows = {
        "a": {"DIAGNOSIS": "HP", "TYPE CTD": "Myositis", "SYNTHETIC SOURCE": "case1"},
        "b": {"DIAGNOSIS": "CTD-ILD", "TYPE CTD": "Myositis", "SYNTHETIC SOURCE": ""},
    }
    first, second = plan_table(ClinicalTable(columns, rows), texts(ROW, CTD), 0, 3)
    assert (
        first.source.id == "case1"
        and first.row == {"DIAGNOSIS": "HP", "TYPE CTD": ""}
        and first.dropped == ("TYPE CTD",)
    )
    assert second.row == {"DIAGNOSIS": "CTD-ILD", "TYPE CTD": "Myositis"}
    assert [p.id for p in plan_table(ClinicalTable(columns, rows), texts(ROW, CTD), 1, 3)] == ["a"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": {"SYNTHETIC SOURCE": "nobody"}}, "which is no case of the split; it has: case0"),
        ({"case0": {}}, "'case0' is the name of a real case"),
        ({}, "--table holds no rows"),
    ],
)
def test_bad_tables(rows: dict[str, dict[str, str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_table(ClinicalTable(("DIAGNOSIS",), rows), texts(ROW), 0, 0)


def test_provenance_never_enters_a_text() -> None:
    row = {
        "DIAGNOSIS": "HP",
        "SYNTHETIC": "yes",
        "SYNTHETIC SOURCE": "case1",
        "SYNTHETIC SEED": "3",
        "SYNTHETIC RUN": "r",
    }
    for name in ("aiib23", "auto"):
        assert [p.column for p in load_template(name, list(row)).phrases(row)] == ["DIAGNOSIS"]
