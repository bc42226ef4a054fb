"""Attributes that are studied and their values, and paraphrases of prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.text.counterfactuals import RowText
from data.text.free_text import TextEdit
from data.text.paraphrase import reordered, reworded
from data.text.prompts import Phrase, Prompt, load_template
from pipelines.atlas.attributes import (
    attribute_variants,
    choose_attributes,
    classify_column,
    pooled_covariate,
    quantile_values,
    wording_attribute,
    words_among_numbers,
)
from pipelines.atlas.statistics.cautions import pooled_cautions
from pipelines.atlas.statistics.contrasts import AtlasAttribute, contrasts_of
from util.cli import UserError


def rows(**columns: list[str]) -> list[dict[str, str]]:
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def test_kinds_and_references() -> None:
    template = load_template("auto")
    table = rows(
        A=["Yes", "No", "Yes"] * 4,
        B=[str(k) for k in range(12)],
        C=["1.25", "2.5"] * 6,
        D=["x", "y"] * 6,
    )
    a, b, c = (classify_column(template, table, name) for name in "ABC")
    assert isinstance(a, AtlasAttribute) and a.kind == "category" and a.values == ("No", "Yes")
    assert (
        isinstance(b, AtlasAttribute)
        and b.kind == "number"
        and b.values == ("1", "3", "6", "8", "10")
    )
    assert isinstance(c, AtlasAttribute) and c.kind == "category"
    d = classify_column(template, table, "D", "y")
    assert isinstance(d, AtlasAttribute) and d.reference == "y"
    assert quantile_values({"1": 5, "2": 5}) == ("1", "2")
    choice = choose_attributes(template, table, list("ABCD"), ["A"], list("ABCD"), {})
    assert [x.column for x in choice.attributes] == ["A"]
    assert choice.left_out == dict.fromkeys("BCD", "not asked for")
    with pytest.raises(UserError, match="No column of the table can be studied"):
        choose_attributes(template, rows(A=["x"] * 9), ["A"], [], ["A"], {})


@pytest.mark.parametrize(("kind", "values"), [("number", ("0", "1", "2")), ("text", None)])
def test_a_declared_number_of_few_values_stays_a_number(
    kind: str, values: tuple[str, ...] | None, tmp_path: Path
) -> None:
    (tmp_path / "t.yaml").write_text(f"columns: {{STAGE: {{kind: {kind}}}}}")
    template = load_template(str(tmp_path / "t.yaml"), ("STAGE",))
    attribute = classify_column(template, rows(STAGE=["0", "1", "2"] * 4), "STAGE")
    assert isinstance(attribute, AtlasAttribute)
    assert attribute.kind == ("number" if values else "category")
    assert values is None or attribute.values == values


def test_columns_that_cannot_be_compared_say_why() -> None:
    template = load_template("auto")
    table = rows(
        ZEROS=["0"] * 90 + [str(k) for k in range(1, 11)],
        YEARS=[f"{40 + k % 9} years" for k in range(100)],
    )
    for column, why in {
        "ZEROS": "outer quantiles do not differ",
        "YEARS": "numbers written as texts",
    }.items():
        reason = classify_column(template, table, column)
        assert isinstance(reason, str) and why in reason, (column, reason)
    numbers = rows(**{"A b": [str(k) for k in range(20)], "A_b": [str(k) for k in range(20)]})
    choice = choose_attributes(template, numbers, ["A b", "A_b"], [], ["A b", "A_b"], {})
    assert [a.column for a in choice.attributes] == ["A b", "A_b"]
    names = [contrast.id for a in choice.attributes for contrast in contrasts_of(a)]
    assert len(set(names)) == len(names) and names[2].startswith("A_b=")
    sizes = classify_column(template, rows(SIZE=["<3 cm", ">3 cm", "3 cm"] * 40), "SIZE")
    assert isinstance(sizes, AtlasAttribute)
    names = [contrast.id for contrast in contrasts_of(sizes)]
    assert len(set(names)) == 2
    with pytest.raises(UserError, match="--reference: 'A b' holds numbers"):
        choose_attributes(template, numbers, ["A b"], [], ["A b"], {"A b": "3"})


def test_words_among_the_numbers_of_other_rows_are_found() -> None:
    template = load_template("auto")
    table = rows(A=[str(k) for k in range(12)], B=["x", "y"] * 6)
    attributes = [classify_column(template, table, name) for name in "AB"]
    assert all(isinstance(one, AtlasAttribute) for one in attributes)
    known = [one for one in attributes if isinstance(one, AtlasAttribute)]
    assert words_among_numbers(template, known, rows(A=["3", "", "-1.5"], B=["z"] * 3)) == {}
    reasons = words_among_numbers(template, known, rows(A=["3", "few"], B=["z"] * 2))
    assert list(reasons) == ["A"] and "numbers and texts (few)" in reasons["A"]


def test_many_scanners_are_still_adjusted_for() -> None:
    template = load_template("auto")
    table = rows(
        Scanner=[f"type {k % 12}" for k in range(60)], Note=[f"note {k}" for k in range(60)]
    )
    assert isinstance(classify_column(template, table, "Scanner"), str)
    pooled = pooled_covariate(template, table, "Scanner")
    assert pooled is not None and pooled.role == "acquisition" and len(pooled.counts) == 12
    assert pooled_covariate(template, table, "Note") is None
    number = replace(pooled, counts=dict.fromkeys(map(str, range(9)), 1))
    warned = pooled_cautions({"Scanner": pooled, "Thickness": number})
    assert [caution.column for caution in warned] == ["Scanner"]  # a number is one column


@pytest.mark.parametrize(
    ("column", "role"),
    [
        ("Age at scan", "demographic"),
        ("Age at death", "outcome"),
        ("Died within 1 year", "outcome"),
        ("FVC decline", "outcome"),
        ("Convolution Kernel", "acquisition"),
        ("Tube voltage", "acquisition"),
        ("Smoking status", "exposure"),
        ("Forced vital capacity", "exposure"),
        ("Vital status", "outcome"),
        ("Sex", "demographic"),
        ("Patient ID", "id"),
    ],
)
def test_roles_by_name(column: str, role: str) -> None:
    assert load_template("auto").role(column) == role


def test_words_of_the_texts_are_an_attribute() -> None:
    template = load_template("aiib23")
    smokers = rows(**{"SMOKING HISTORY": ["Ex smoker", "Never smoker", "Ex smoker", ""]})
    prompts = [template.phrases(row) for row in smokers]
    edit = TextEdit.parse("--vary_text", "ex smoker=>never smoker=>")
    words = wording_attribute(edit, prompts)
    assert words.values == ("ex smoker", "never smoker", "(removed)")
    assert words.counts == {"ex smoker": 2, "never smoker": 1, "(removed)": 1}
    assert words.is_permuted(frozenset(["AGE", "SMOKING HISTORY"]))
    assert not words.is_permuted(frozenset(["AGE"]))
    written = Prompt.from_free_text("62 years, ex smoker")
    assert not wording_attribute(edit, [written]).is_permuted(frozenset(["SMOKING HISTORY"]))
    assert [v.value for v in attribute_variants(RowText(smokers[0], template), words)] == list(
        words.values
    )
    assert attribute_variants(RowText(smokers[1], template), words) == []
    choice = choose_attributes(template, smokers, ["SMOKING HISTORY"], [], [], {}, [words])
    assert [a.column for a in choice.attributes] == ["text: ex smoker"]
    assert [c.id for c in contrasts_of(choice.attributes[0])] == [
        "text__ex_smoker=ex_smoker_to_never_smoker",
        "text__ex_smoker=ex_smoker_to__removed_",
    ]


def test_what_was_not_reported_is_not_known() -> None:
    template = load_template("auto")
    attribute = classify_column(template, rows(A=["Not reported"] * 9 + ["Yes", "No"] * 9), "A")
    assert isinstance(attribute, AtlasAttribute) and attribute.values == ("No", "Yes")


def test_attributes_that_a_row_rules_out_are_not_tried() -> None:
    template = load_template("aiib23")
    packs = AtlasAttribute("PACK-YEARS", "exposure", "number", ("10", "40"), {"10": 5, "40": 5})
    row = {"SMOKING HISTORY": "Never smoker", "PACK-YEARS": "", "AGE": "60"}
    assert attribute_variants(RowText(row, template), packs) == []
    smoker = RowText({**row, "SMOKING HISTORY": "Ex smoker"}, template)
    assert [arm.value for arm in attribute_variants(smoker, packs)] == ["10", "40"]
    smoking = AtlasAttribute(
        "SMOKING HISTORY", "exposure", "category", ("Never smoker", "Ex smoker"), {}
    )
    smoker = RowText({"SMOKING HISTORY": "Ex smoker", "PACK-YEARS": "20"}, template)
    arms = attribute_variants(smoker, smoking)
    assert arms[0].dropped == ("PACK-YEARS",) and arms[1].dropped == ()


def test_other_words_and_other_order_say_the_same() -> None:
    prompt = Prompt(
        Phrase(text, None)
        for text in ("DIAGNOSIS is IPF", "Patient age: 63.", "No occupational exposure.")
    )
    assert reordered(prompt).texts == [
        "No occupational exposure.",
        "Patient age: 63.",
        "DIAGNOSIS is IPF",
    ]
    assert reworded(prompt).texts == [
        "DIAGNOSIS: IPF.",
        "Patient age is 63",
        "no occupational exposure.",
    ]
