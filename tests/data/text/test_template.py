"""Templates that are damaged or ask for too much."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from data.text.prompts import load_template
from data.text.template import TEMPLATES
from util.cli import UserError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("columns: {A: &x {kind: text}, B: *x}", "aliases"),
        ("columns: {A: {kind: text}, A: {kind: number}}", "'A' occurs twice|A occurs twice"),
        ("columns: {A: {phrase: null}}", "phrase is None"),
        ("columns: {A: {values: null}}", "values must be a mapping"),
        ("columns: {A: {values: {a: null}}}", "values holds None"),
        ("columns: {A: {unit: 5}}", "unit is 5"),
        ("columns: {A: {digits: many}}", "digits is 'many'; it must be a whole number"),
        ("columns: {A: {digits: 99999}}", "digits is 99999; it must be 0 to"),
        ("columns: {A: {absolute: 1}}", "absolute is 1"),
        ("columns: {A: {implies: null}}", "implies must be a list"),
        ("columns: {A: {unknown: [[1]]}}", r"unknown holds \[1\]"),
        ("columns: {A: {role: [id]}}", r"role is \['id'\]"),
        ("columns: " + "[" * 3000, "not valid YAML"),
        ("columns: {? [a] : 1}", "not valid YAML"),
        (f"columns: {{A: {{digits: {'9' * 5000}}}}}", "not valid YAML|digits"),
    ],
    ids=range(15),
)
def test_wrong_entries_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_template(str(path))
    assert len(str(caught.value)) < 1000


def test_mutated_templates_are_read_or_named(tmp_path: Path) -> None:
    original = (TEMPLATES / "aiib23.yaml").read_text().splitlines()
    generator = random.Random(0)
    symbols = [
        "null",
        "[",
        "{",
        "&a",
        "*a",
        ": ",
        "- ",
        "!!int x",
        "\t",
        "9" * 50,
        "true",
        "2020-1-1",
    ]
    path = tmp_path / "t.yaml"
    for _ in range(200):
        lines = list(original)
        for _ in range(generator.randint(1, 3)):
            k = generator.randrange(len(lines))
            place = generator.randrange(len(lines[k]) + 1)
            lines[k] = lines[k][:place] + generator.choice(symbols) + lines[k][place:]
        path.write_text("\n".join(lines))
        try:
            load_template(str(path)).phrases({"AGE": "50", "SEX": "M", "label": "1"})
        except UserError as error:
            assert len(str(error)) < 2000
