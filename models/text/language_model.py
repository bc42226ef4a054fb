"""Frozen language models: CLIP's text side, BERT-type models, MedCLIP; a text in, its tokens and
pooled vector out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)
from transformers.utils import logging as hf_logging

from options.base_options import TextOptions
from util.cli import UserError

TEXT_FILES = ["*.json", "*.txt", "*.model"]
MEDCLIP_LAYERS = (
    1,
    2,
    -1,
)  # MedCLIP averages these hidden states (Wang et al. 2022, arXiv 2210.10163)


class LanguageModel:
    """A frozen text model with its tokenizer, on the CPU in float32.

    Args:
        tokenizer: Of transformers.
        model: Of transformers.
        projection: Applied to every token, and so to the pooled output too; None where the model
            has none.
        layers: Hidden states to average; None for the last one.

    Attributes:
        width: Channels of tokens and of the pooled vector.
        limit: Most tokens a text may have, those at start and end included.
    """

    def __init__(
        self,
        tokenizer: Any,
        model: nn.Module,
        projection: nn.Linear | None,
        layers: tuple[int, ...] | None = None,
    ) -> None:
        self.tokenizer, self.layers = tokenizer, layers
        self.model, self.projection = model.eval().requires_grad_(False), projection
        config: Any = model.config
        self.is_clip = "clip" in config.model_type
        self.width = projection.out_features if projection else config.hidden_size
        self.limit = min(tokenizer.model_max_length, config.max_position_embeddings)

    def count(self, text: str) -> int:
        """Tokens of a text, those at start and end included."""
        return len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    @torch.no_grad()
    def __call__(self, text: str) -> tuple[Tensor, Tensor]:
        """Tokens `(L,C)` and pooled vector `(C,)` of one text.

        One at a time: a batch changes the last bits of a result with its company, and a continued
        run would differ.

        Raises:
            UserError: More tokens than the model takes.
        """
        count = self.count(text)
        if count > self.limit:
            raise UserError(
                f"A text has {count} tokens, and the text encoder takes at most {self.limit}: "
                f"{text[:120]!r}... Use --text_mode phrases, a shorter text, or an encoder that "
                "takes longer ones."
            )
        inputs = {
            k: torch.tensor([v])
            for k, v in self.tokenizer(text).items()
            if k in ("input_ids", "attention_mask")
        }
        output = self.model(**inputs, output_hidden_states=self.layers is not None)
        hidden = output.last_hidden_state[0]
        if self.layers is not None:
            hidden = torch.stack([output.hidden_states[i][0] for i in self.layers]).mean(0)
        pooled = output.pooler_output[0] if self.is_clip else hidden.mean(0)
        if self.projection is not None:
            hidden, pooled = self.projection(hidden), self.projection(pooled)
        return hidden.float(), pooled.float()

    def sha256(self) -> str:
        """Hash of weights and vocabulary, the same for every file format."""
        made = hashlib.sha256(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        tensors = {
            **self.model.state_dict(),
            **(self.projection.state_dict() if self.projection else {}),
        }
        for name, tensor in sorted(tensors.items()):
            made.update(name.encode())
            made.update(tensor.contiguous().numpy().tobytes())
        return made.hexdigest()


def load(options: TextOptions) -> tuple[LanguageModel, dict[str, str]]:
    """The language model that the options name, and its identity.

    Raises:
        UserError: Nothing there, nothing reachable, or not a model of text.
    """
    name = options.text_encoder
    if name.startswith("medclip:"):
        model, revision = load_medclip(Path(name.partition(":")[2]), options.medclip_bert), ""
    else:
        folder, revision = find(name, options.text_revision)
        model = load_folder(folder)
    identity = {
        "source": name,
        "revision": revision,
        "kind": type(model.model).__name__,
        "sha256": model.sha256(),
    }
    return model, identity


def find(name: str, revision: str) -> tuple[Path, str]:
    """The folder of a model, downloaded from the hub if need be, and the hub's commit."""
    if Path(name).is_dir():
        return Path(name), ""
    download = partial(snapshot_download, name, revision=revision or None)
    try:
        folder = Path(download(allow_patterns=[*TEXT_FILES, "*.safetensors"]))
        if not list(folder.glob("*.safetensors")):
            folder = Path(download(allow_patterns=[*TEXT_FILES, "pytorch_model.bin"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(unreachable(name, str(error).strip().splitlines()[0])) from None
    return folder, folder.name


def unreachable(name: str, reason: str) -> str:
    """What to do when a model is neither local nor reachable."""
    target = f"models_text/{Path(name).name}"
    return (
        f"--text_encoder {name} is no folder here, and the model hub did not give it ({reason}). "
        "Choose one of:\n"
        f"  1. a local folder with config.json, weights and tokenizer: --text_encoder FOLDER\n"
        f"  2. on a machine with network: hf download {name} --local-dir {target}\n"
        f"     then copy that folder here: --text_encoder {target}\n"
        "  3. the cohort's own CLIP: python scripts/pretrain_clip.py --dataroot DATAROOT --out "
        "checkpoints/clip\n"
        f"     then --text_encoder checkpoints/clip (or --text_encoder table, without language)"
    )


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Errors of reading a model folder as messages."""
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{folder} is not a complete text model of transformers ({reason}). It needs "
            "config.json, model.safetensors and the tokenizer's files of a CLIP text model or a "
            "BERT-type model."
        ) from None
    finally:
        hf_logging.set_verbosity(verbosity)
        hf_logging.enable_progress_bar()


def load_folder(folder: Path) -> LanguageModel:
    """A CLIP text model (with or without projection, or as part of a whole CLIP), or a BERT-type
    model.
    """
    with _readable(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        made = (config.architectures or [""])[0]
        kind: Any = {
            "CLIPTextModel": CLIPTextModel,
            "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
            "CLIPModel": CLIPTextModelWithProjection,  # AutoModel would drop the projection
        }.get(made, AutoModel)
        model, info = kind.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        missing = [k for k in info["missing_keys"] if "pooler" not in k and "position_ids" not in k]
        if missing:
            raise ValueError(f"weights are missing: {', '.join(missing[:3])}")
        if not hasattr(model.config, "max_position_embeddings"):
            raise ValueError(f"{made or config.model_type} is no text model with a bounded length")
    if kind is CLIPTextModelWithProjection:
        return LanguageModel(tokenizer, model.text_model, model.text_projection)
    return LanguageModel(tokenizer, model, None)


def load_medclip(file: Path, bert: str) -> LanguageModel:
    """MedCLIP's text side: BERT under `text_model.model.*`, its projection under
    `text_model.projection_head.*`.
    """
    weights = _read_weights(file)
    folder = Path(bert) if bert else file.parent
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no config.json: MedCLIP's checkpoint lacks its BERT's configuration "
            "and tokenizer. Give a folder with those of emilyalsentzer/Bio_ClinicalBERT by "
            "--medclip_bert."
        )
    part = {
        k.removeprefix("text_model.model."): v
        for k, v in weights.items()
        if k.startswith("text_model.model.")
    }
    head = {
        k.removeprefix("text_model.projection_head."): v
        for k, v in weights.items()
        if "projection_head" in k
    }
    if "weight" not in head or not part:
        needed = "text_model.model.* and text_model.projection_head.weight"
        raise UserError(f"{file} is no MedCLIP checkpoint: it needs {needed}.")
    with _readable(folder):
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        missing, _ = model.load_state_dict(part, strict=False)
        if missing := [k for k in missing if "pooler" not in k and "position_ids" not in k]:
            raise ValueError(f"{file} lacks {', '.join(missing[:3])}")
    projection = nn.Linear(head["weight"].shape[1], head["weight"].shape[0], bias="bias" in head)
    projection.load_state_dict({k: v.float() for k, v in head.items()})
    return LanguageModel(tokenizer, model.float(), projection.requires_grad_(False), MEDCLIP_LAYERS)


def _read_weights(file: Path) -> Mapping[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)  # never runs code
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--text_encoder medclip:{file} cannot be read as weights: {reason}"
        ) from None
    if not isinstance(weights, Mapping):
        raise UserError(
            f"--text_encoder medclip:{file} must hold a mapping of names to tensors (a state dict)."
        )
    return weights.get("state_dict", weights)
