"""Files of other words for a template's phrases, and encoders that know them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.text.free_text import TextReader
from data.text.prompts import Prompt, Template, load_template
from data.text.synonyms import Paraphrases, load_paraphrases
from models.text.table_encoder import TableEncoder
from pipelines.clip_pretraining import draw_phrases
from util.cli import UserError

COLUMNS = ("SMOKING HISTORY", "AGE", "SEX")
FILE = """
SMOKING HISTORY:
  Current smoker: [The patient currently smokes., active smoker]
  Never smoker: [has never smoked]
AGE:
  "{value}": ["{value} years old", "aged {value}."]
SEX:
  M: [a man]
"""
PROMPTS = [
    ["Patient age: 50.", "SMOKING HISTORY is Current smoker", "Gender: Male."],
    ["Patient age: 60.", "SMOKING HISTORY is Never smoker", "Gender: Female."],
    ["Patient age: 70.", "SMOKING HISTORY is Never smoker", "Gender: Male."],
]


@pytest.fixture
def template() -> Template:
    return load_template("aiib23", COLUMNS)


def load(tmp_path: Path, template: Template, text: str) -> Paraphrases:
    path = tmp_path / "words.yaml"
    path.write_text(text)
    return load_paraphrases(str(path), template, COLUMNS)


def test_listed_words_are_the_phrase(tmp_path: Path, template: Template) -> None:
    paraphrases = load(tmp_path, template, FILE)
    encoder = TableEncoder()
    encoder.synonyms = paraphrases.synonyms
    encoder.fit(PROMPTS)
    restored = TableEncoder()
    restored.load_state(*encoder.state())
    own = restored.encode([["Patient age: 63.", "SMOKING HISTORY is Current smoker"]]).pooled
    for prompt in (
        ["63 years old", "The patient currently smokes"],
        ["Aged 63.", "Active smoker."],
    ):
        assert restored.encode([prompt]).pooled.equal(own)
    large = [
        restored.encode([[words]]).pooled for words in ("Patient age: 1234567", "aged 1234567")
    ]
    assert large[0].equal(large[1])  # all digits of a number, as it was written
    assert not restored.encode([["smokes a lot"]]).pooled.any()
    old = TableEncoder()
    values = {k: v for k, v in encoder.state()[1].items() if k != "synonyms"}
    old.load_state({}, values)  # a run of an earlier version
    assert old.synonyms == {}


def test_clip_learns_from_all_words(tmp_path: Path, template: Template) -> None:
    paraphrases = load(tmp_path, template, FILE)
    assert paraphrases.alternatives("Patient age: 63.") == ["63 years old", "aged 63"]
    assert paraphrases.alternatives("DIAGNOSIS is IPF") == []
    prompt = Prompt.from_free_text("Patient age: 63. SMOKING HISTORY is Never smoker.")
    rng = np.random.default_rng(0)
    drawn = {text for _ in range(60) for text in draw_phrases(prompt, rng, paraphrases)}
    assert {"63 years old", "aged 63", "has never smoked", "Patient age: 63."} <= drawn
    plain = [draw_phrases(prompt, np.random.default_rng(1)) for _ in range(2)]
    assert plain[0] == plain[1] == draw_phrases(prompt, np.random.default_rng(1), Paraphrases({}))


def test_texts_with_listed_words_are_varied(tmp_path: Path, template: Template) -> None:
    synonyms = load(tmp_path, template, FILE).synonyms
    reader = TextReader(template, dict.fromkeys(COLUMNS, ()), synonyms)
    text = Prompt.from_free_text("The patient currently smokes, nodule.")
    changed = reader.change(text, "SMOKING HISTORY", "Never smoker")
    assert changed is not None
    assert changed.prompt.texts == ["SMOKING HISTORY is Never smoker", "nodule."]


def test_words_are_added_to_a_trained_encoder(tmp_path: Path, template: Template) -> None:
    encoder = TableEncoder()
    encoder.synonyms = load(tmp_path, template, FILE).synonyms
    encoder.fit(PROMPTS)
    more = "SMOKING HISTORY: {Current smoker: [still smokes, active smoker]}"
    encoder.add_synonyms(load(tmp_path, template, more).synonyms)
    own = encoder.encode([["SMOKING HISTORY is Current smoker"]]).pooled
    for words in ("Still smokes.", "Active smoker", "the patient currently smokes"):
        assert encoder.encode([[words]]).pooled.equal(own)
    for phrase in ("active smoker", "SMOKING HISTORY is Current smoker", "Gender: Male"):
        other = load(tmp_path, template, f"SMOKING HISTORY: {{Never smoker: ['{phrase}']}}")
        with pytest.raises(UserError, match=r"stands for '.*' in this run, not for '.*Never"):
            encoder.add_synonyms(other.synonyms)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEX: {M: [a patient], F: [A patient.]}", "stands for two phrases"),
        ("SEX: {M: ['Gender: Female'], F: [a woman]}", "stands for two phrases"),
        ("HEIGHT: {tall: [long]}", "no such column; it has: SMOKING HISTORY.* Write, for example"),
        ("SEX: {M: ['a man, old']}", "must be one phrase"),
        ("AGE: {'{value}': [old]}", r"holds \{value\}"),
        ("SEX: {M: ['{value} man']}", r"without \{value\}"),
        ("AGE: {old: [aged]}", "must hold a number"),
        ("SEX: {unknown: [a person]}", "has no phrase"),
        ("SEX: [M]", "must be a mapping of values"),
        ("SEX: {M: man}", "must be a list of texts"),
        ("[a]", "must be a mapping of columns"),
        ("a: [", "not valid YAML.* Write, for example"),
    ],
)
def test_files_that_cannot_be(tmp_path: Path, template: Template, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, template, text)


def test_the_files_of_the_benchmark_agree() -> None:
    """No held-out wording is listed, and both have ten of current smoking."""
    folder = Path(__file__).resolve().parents[3] / "benchmarks" / "paraphrases"
    template = load_template("aiib23", COLUMNS)
    listed, held_out = (
        load_paraphrases(str(folder / name), template, COLUMNS)
        for name in ("training.yaml", "held_out.yaml")
    )
    phrase = "SMOKING HISTORY is Current smoker"
    assert len(listed.wordings[phrase]) == len(held_out.wordings[phrase]) == 10
    assert not set(listed.synonyms) & set(held_out.synonyms)
