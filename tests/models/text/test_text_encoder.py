"""Text encoders: phrases and sentences, numbers, and words not seen in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.text import encoders, language_model
from models.text.encoders import TextEmbedding, TextEncoder, build_text_encoder
from models.text.phrase_encoder import PhraseTable, Wordings, parse_number
from options.base_options import TextOptions
from tests.language_models import MINILM, TABLE, TRAINING
from util.cli import UserError
from util.notices import collected_warnings


def test_shapes_and_sum(minilm: TextEncoder) -> None:
    text = minilm.encode([TRAINING[0], TRAINING[1][:1], []])
    assert text.tokens.shape == (3, 3, minilm.width) and minilm.width == 768
    assert text.valid.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert torch.allclose(text.pooled, text.tokens.sum(1)) and not text.tokens[~text.valid].any()
    assert 0.5 < text.tokens[text.valid][:, :384].square().mean().sqrt() < 2


def test_order_of_phrases_does_not_matter(minilm: TextEncoder) -> None:
    a, b = minilm.encode([TRAINING[0], TRAINING[0][::-1]]).pooled
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("encoder", [MINILM, "table"])
@pytest.mark.parametrize("prompts", [[[]], [[], TRAINING[0]], [["", " . "]]])
def test_empty_prompt_is_zero(encoder: str, prompts: list[list[str]]) -> None:
    text = build_text_encoder(TextOptions(text_encoder=encoder)).encode(prompts)
    assert text.tokens.shape[1] >= 1 and not text.valid[0].any()
    assert not text.pooled[0].any() and torch.isfinite(text.tokens).all()


@pytest.mark.parametrize("encoder", [MINILM, "table"])
def test_an_unseen_number_lies_between_its_neighbours(encoder: str) -> None:
    built = build_text_encoder(TextOptions(text_encoder=encoder))
    built.fit(TRAINING)
    low, between, high = built.encode([[f"Patient age: {age}."] for age in (60, 63, 66)]).pooled
    assert torch.allclose(between, (low + high) / 2, atol=1e-5) and not torch.allclose(low, high)


def test_numbers_are_standardised_over_the_training_prompts(minilm: TextEncoder) -> None:
    ages = minilm.encode([[p[0]] for p in TRAINING]).pooled[:, 384:]
    assert ages.mean(0).abs().max() < 1e-5
    assert ages.square().mean().sqrt().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("Patient age: 76", ("Patient age: #", 76.0)),
        ("Weeks: -4.5 later", ("Weeks: # later", -4.5)),
        ("T2 of 3", ("T2 of #", 3.0)),
        ("COVID-19 and T2", None),
        ("on 2015-03-01", None),
        ("2 of 3", None),
        ("none", None),
    ],
)
def test_which_phrases_hold_a_number(phrase: str, expected: tuple[str, float] | None) -> None:
    assert parse_number(phrase) == expected


@pytest.mark.parametrize("encoder", ["table", MINILM])
@pytest.mark.parametrize("numbers", [True, False])
def test_another_wording_of_a_known_phrase_is_that_phrase(
    encoder: str, numbers: bool, tmp_path: Path
) -> None:
    built = build_text_encoder(TextOptions(text_encoder=encoder, number_tokens=numbers))
    built.fit([("Smoking is Never smoker", f"Patient age: {age}.") for age in (50, 60, 70)])
    expected = built.encode([("Smoking is Never smoker", "Patient age: 60.")])
    rewordings = [("smoking: never smoker.", "Patient age is 60")]
    assert torch.equal(built.encode(rewordings).tokens, expected.tokens)
    again = build_text_encoder(TextOptions(text_encoder=encoder, number_tokens=numbers))
    again.load_state(*built.state())
    assert torch.equal(again.encode(rewordings).tokens, expected.tokens)
    assert not torch.equal(
        built.encode([("Smoking is Ever smoker", "Patient age: 60.")]).tokens, expected.tokens
    )


def test_equivalent_training_phrases_stay_apart() -> None:
    known = Wordings(["Type: a", "Type is A", "Other"])
    assert [known(t) for t in ("Type: a", "Type is A", "type a", "OTHER.")] == [
        "Type: a",
        "Type is A",
        "type a",
        "Other",
    ]


def test_the_phrase_table_embeds_each_phrase_once() -> None:
    calls: list[list[str]] = []

    def embed(phrases: Sequence[str]) -> torch.Tensor:
        calls.append(list(phrases))
        return torch.tensor([[float(len(p))] for p in phrases])

    table = PhraseTable(1, embed, lambda phrases, embeddings: torch.ones(len(phrases)))
    assert table.lookup(["a", "bb", "a"]).tolist() == [0, 1, 0]
    assert table.lookup(["ccc", "bb"]).tolist() == [2, 1]
    assert table.lookup([]).tolist() == []
    assert calls == [["a", "bb"], ["ccc"]]
    assert table.embeddings[table.lookup(["ccc", "a"])].tolist() == [[3.0], [1.0]]


def test_an_embedding_expands_to_tiles() -> None:
    one = TextEmbedding(torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 3))
    tiles = one.expand(4)
    assert tiles.tokens.shape == (4, 2, 3) and tiles.valid.shape == (4, 2)
    assert tiles.pooled.shape == (4, 3) and tiles.weight is None
    weighted = replace(one, weight=torch.ones(1)).expand(4)
    assert weighted.weight is not None and weighted.weight.shape == (4,)


def test_without_number_tokens_a_number_is_text() -> None:
    encoder = build_text_encoder(TextOptions(text_encoder=MINILM, number_tokens=False))
    assert encoder.width == 384
    a, b = encoder.encode([["Patient age: 60."], ["Patient age: 61."]]).pooled
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("mode", ["phrases", "sentence"])
def test_state_carries_everything(mode: str, minilm: TextEncoder) -> None:
    first, second = (
        build_text_encoder(TextOptions(text_encoder=MINILM, text_mode=mode)) for _ in range(2)
    )
    first.fit(TRAINING)
    second.load_state(*first.state())
    assert torch.equal(first.encode(TRAINING).pooled, second.encode(TRAINING).pooled)
    assert torch.equal(first.encode(TRAINING).tokens, second.encode(TRAINING).tokens)


def test_an_embedding_does_not_depend_on_the_rest_of_the_batch(minilm: TextEncoder) -> None:
    alone = build_text_encoder(TextOptions(text_encoder=MINILM))
    alone.load_state(*minilm.state())
    assert torch.equal(alone.encode(TRAINING[3:4]).tokens, minilm.encode(TRAINING).tokens[3:4])


def test_sentences(minilm: TextEncoder) -> None:
    encoder = build_text_encoder(TextOptions(text_encoder=MINILM, text_mode="sentence"))
    encoder.fit(TRAINING)
    text = encoder.encode([TRAINING[0], [], TRAINING[1][:1]])
    assert (
        text.pooled.shape == (3, 384)
        and text.valid.sum(1)[1] == 0 < text.valid.sum(1)[2] < text.valid.sum(1)[0]
    )
    assert not text.pooled[1].any() and torch.isfinite(text.tokens).all()


def test_cache_of_sentences_is_bounded(clip_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "MAX_SENTENCES", 3)
    encoder = build_text_encoder(TextOptions(text_encoder=clip_folder, text_mode="sentence"))
    encoder.encode([[f"age {i}"] for i in range(10)])
    assert len(encoder._encoded) == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["phrases", "sentence"])
def test_too_long_a_text_is_an_error_with_the_count(clip_folder: str, mode: str) -> None:
    encoder = build_text_encoder(TextOptions(text_encoder=clip_folder, text_mode=mode))
    with pytest.raises(UserError, match=r"\d\d+ tokens.* at most 40"):
        encoder.encode([["a phrase far too long " * 20]])
    with pytest.raises(UserError, match=r"\d\d+ tokens.* at most 40"):
        encoder.validate([["short"], ["a phrase far too long " * 20]])
    encoder.validate([["short"], []])


def test_phrases_are_embedded_once_and_kept(
    clip_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    original = language_model.LanguageModel.__call__

    def counted(
        model: language_model.LanguageModel, text: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(text)
        return original(model, text)

    monkeypatch.setattr(language_model.LanguageModel, "__call__", counted)
    pooled = []
    for _ in range(2):
        encoder = build_text_encoder(TextOptions(text_encoder=clip_folder))
        encoder.attach_cache(tmp_path / "run")
        encoder.fit(TRAINING)
        pooled.append(encoder.encode(TRAINING * 2).pooled)
    assert (
        len(calls) == len(set(calls)) == 7
    )  # three diagnoses, three habits, one wording with a number
    assert torch.equal(*pooled)
    (tmp_path / "run" / "phrases.safetensors").write_bytes(b"damaged")
    build_text_encoder(TextOptions(text_encoder=clip_folder)).attach_cache(tmp_path / "run")


def test_table_encoder_warns_of_the_unknown(caplog: pytest.LogCaptureFixture) -> None:
    encoder = build_text_encoder(TABLE)
    encoder.fit(TRAINING)
    text = encoder.encode([["DIAGNOSIS is sarcoidosis"], TRAINING[0]])
    assert "sarcoidosis" in caplog.text and not text.pooled[0].any()
    assert encoder.width == 14  # seven phrases; a number's wording is one of them
    restored = build_text_encoder(TABLE)
    restored.load_state(*encoder.state())
    assert torch.equal(restored.encode(TRAINING).pooled, encoder.encode(TRAINING).pooled)
    with pytest.raises(UserError, match="sentence"):
        build_text_encoder(replace(TABLE, text_mode="sentence"))


def test_unseen_phrases_are_warned_of(
    minilm: TextEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    minilm.encode([["DIAGNOSIS is IPF", "diagnosis: IPF.", "Patient age: 55."]])
    assert not caplog.text
    minilm.encode([["The patient smokes.", "DIAGNOSIS is IPF"]])
    assert (
        "The training prompts do not contain these phrases" in caplog.text
        and "The patient smokes (nearest: SMOKING HISTORY is " in caplog.text
    )
    assert "IPF" not in caplog.text


def test_unseen_wording_is_warned_of_once_per_command(
    minilm: TextEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    """Refits have encoders of their own, which see the same phrase."""
    other = build_text_encoder(TextOptions(text_encoder=MINILM))
    other.load_state(*minilm.state())
    for wording in ("one more wording", "a further wording"):
        caplog.clear()
        with collected_warnings() as notices:
            for encoder in (minilm, other):
                encoder.encode([[f"{wording} of nothing"]])
        assert caplog.text.count(wording) == 1
        assert [notice.phrases for notice in notices] == [(f"{wording} of nothing",)]
