"""Language models: their identity, kinds of folders, and models that are missing or damaged."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

from models.text import language_model
from models.text.encoders import TextEncoder, build_text_encoder
from options.base_options import TextOptions
from tests.language_models import TABLE, clip_config
from util.cli import UserError


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
    refused = 0
    for key in ("model_type", "architectures", "hidden_size", "max_position_embeddings"):
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        try:
            build_text_encoder(TextOptions(text_encoder=str(folder)))
        except UserError as error:
            assert str(folder) in str(error)
            refused += 1
    assert refused  # some entries may be anything


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
