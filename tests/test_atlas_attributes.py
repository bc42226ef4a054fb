"""Which attributes of a table are studied, in which values, and prompts in other words."""

from __future__ import annotations

import pytest

from data.atlas.contrasts import attribute_arms, choose, classify, quantiles
from data.atlas.rewording import reordered, reworded
from data.prompts import Phrase, load_template
from util.atlas.contrasts import Attribute
from util.cli import UserError


def rows(**columns: list[str]) -> list[dict[str, str]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_kinds_and_references() -> None:
    template = load_template("auto")
    made = rows(A=["Yes", "No", "Yes"] * 4, B=[str(k) for k in range(12)], C=["1.25", "2.5"] * 6, D=["x", "y"] * 6)
    a, b, c = (classify(template, made, name) for name in "ABC")
    assert isinstance(a, Attribute) and a.kind == "category" and a.values == ("No", "Yes")
    assert isinstance(b, Attribute) and b.kind == "number" and b.values == ("1", "3", "6", "8", "10")
    assert isinstance(c, Attribute) and c.kind == "category"
    d = classify(template, made, "D", "y")
    assert isinstance(d, Attribute) and d.reference == "y"
    assert quantiles(["1", "2"], {"1": 5, "2": 5}) == ("1", "2")
    chosen, left = choose(template, made, list("ABCD"), ["A"], list("ABCD"), {})
    assert [x.column for x in chosen] == ["A"] and left == dict.fromkeys("BCD", "not asked for")
    with pytest.raises(UserError, match="No column of the table can be studied"):
        choose(template, rows(A=["x"] * 9), ["A"], [], ["A"], {})


def test_attributes_that_a_row_rules_out_are_not_tried() -> None:
    template = load_template("aiib23")
    packs = Attribute("PACK-YEARS", "exposure", "number", ("10", "40"), {"10": 5, "40": 5})
    row = {"SMOKING HISTORY": "Never smoker", "PACK-YEARS": "", "AGE": "60"}
    assert attribute_arms(template, row, packs) == []
    arms = attribute_arms(template, {**row, "SMOKING HISTORY": "Ex smoker"}, packs)
    assert [arm.value for arm in arms] == ["10", "40"]
    smoking = Attribute("SMOKING HISTORY", "exposure", "category", ("Never smoker", "Ex smoker"), {})
    arms = attribute_arms(template, {"SMOKING HISTORY": "Ex smoker", "PACK-YEARS": "20"}, smoking)
    assert arms[0].dropped == ("PACK-YEARS",) and arms[1].dropped == ()


def test_other_words_and_other_order_say_the_same() -> None:
    prompt = tuple(Phrase(text, None) for text in ("DIAGNOSIS is IPF", "Patient age: 63.", "No occupational exposure."))
    assert [p.text for p in reordered(prompt)] == ["No occupational exposure.", "Patient age: 63.", "DIAGNOSIS is IPF"]
    assert [p.text for p in reworded(prompt)] == ["DIAGNOSIS: IPF.", "Patient age is 63", "no occupational exposure."]
