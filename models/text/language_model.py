"""Frozen language models: CLIP's text side, BERT-type models, MedCLIP."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)
from transformers.utils import logging as hf_logging

from models.weights import read_weights
from options.base_options import TextOptions
from util.cli import UserError
from util.files import read_json

HUB = "hub:"  # before the name of a model that may be downloaded
HUB_ID = re.compile(r"\w[\w-]*(/\w[\w.-]*)?(?<!\.clip)")
TEXT_FILES = ["*.json", "*.txt", "*.model"]
WEIGHTS = ("*.safetensors", "pytorch_model.bin")  # files of a model, the preferred one first
# Files in which a model can name Python code of its own, and the entry that does.
CODE_FILES = ("config.json", "tokenizer_config.json")
CODE_ENTRY = "auto_map"
# Without the second argument transformers asks, also a pipe, and runs the code after "y".
NO_CODE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
# MedCLIP averages these hidden states (Wang et al. 2022, arXiv 2210.10163).
MEDCLIP_LAYERS = (1, 2, -1)
MEDCLIP_BERT = "text_model.model."
MEDCLIP_PROJECTION = "text_model.projection_head."


class LanguageModel:
    """A frozen text model with its tokenizer, on the CPU in float32.

    Args:
        tokenizer: A tokenizer of transformers.
        model: A text model of transformers.
        projection: Projection of every token, and so of the pooled vector; None if the model has
            none.
        layers: Hidden states to average; None for the last one.

    Attributes:
        width: Channels C of tokens and of the pooled vector.
        limit: Largest number of tokens of a text, including those at start and end.
    """

    def __init__(
        self,
        tokenizer: Any,
        model: nn.Module,
        projection: nn.Linear | None,
        layers: tuple[int, ...] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        self.projection = projection
        self.layers = layers
        config: Any = model.config
        self.is_clip = "clip" in config.model_type
        self.width = projection.out_features if projection else config.hidden_size
        self.limit = min(tokenizer.model_max_length, config.max_position_embeddings)

    def check_length(self, text: str) -> None:
        """Raise `UserError` for a text of more tokens than the model takes."""
        count = len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])
        if count > self.limit:
            raise UserError(
                f"A text has {count} tokens, and the text encoder takes at most {self.limit}: "
                f"{text[:120]!r}... Use --text_mode phrases, a shorter text, or an encoder that "
                "takes longer ones."
            )

    @torch.no_grad()
    def __call__(self, text: str) -> tuple[Tensor, Tensor]:
        """Embed one text.

        In a batch, the last bits of a result depend on the other texts, so that a resumed run would
        differ.

        Returns:
            Tokens `(L, C)` and pooled vector `(C,)`.

        Raises:
            UserError: More tokens than the model takes.
        """
        self.check_length(text)
        encoded = self.tokenizer(text)
        names = [name for name in ("input_ids", "attention_mask") if name in encoded]
        inputs = {name: torch.tensor([encoded[name]]) for name in names}
        output = self.model(**inputs, output_hidden_states=self.layers is not None)
        tokens = output.last_hidden_state[0]
        if self.layers is not None:
            tokens = torch.stack([output.hidden_states[i][0] for i in self.layers]).mean(0)
        pooled = output.pooler_output[0] if self.is_clip else tokens.mean(0)
        if self.projection is not None:
            tokens = self.projection(tokens)
            pooled = self.projection(pooled)
        return tokens.float(), pooled.float()

    def sha256(self) -> str:
        """Return a hash of weights and vocabulary that does not depend on the file format."""
        digest = hashlib.sha256(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        tensors = dict(self.model.state_dict())
        if self.projection is not None:
            tensors.update(self.projection.state_dict())
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_language_model(options: TextOptions) -> tuple[LanguageModel, dict[str, str]]:
    """Load the language model that the options name.

    Returns:
        The model, and its identity: `source`, `revision`, `kind` and `sha256`.

    Raises:
        UserError: The model is neither local nor reachable, is damaged, or is not a text model.
    """
    name = options.text_encoder
    revision = ""
    if name.startswith("medclip:"):
        model = load_medclip(Path(name.partition(":")[2]), options.medclip_bert)
    elif Path(name).is_dir():
        model = load_folder(Path(name))
    else:
        folder = find_hub_model(name, options.text_revision)
        revision = folder.name  # the hub's commit
        model = load_folder(folder)
    identity = {
        "source": name,
        "revision": revision,
        "kind": type(model.model).__name__,
        "sha256": model.sha256(),
    }
    return model, identity


def find_hub_model(name: str, revision: str) -> Path:
    """Return the folder of a model of the hub, in the hub's cache.

    Only a name that begins with `hub:` is downloaded. Any other may be a mistyped folder, and
    should not wait for a network.

    Raises:
        UserError: The model is not in the cache, and cannot or must not be downloaded.
    """
    model = name.removeprefix(HUB)
    read = partial(snapshot_download, model, revision=revision or None)
    try:
        folder = Path(read(local_files_only=True))
        if any(list(folder.glob(pattern)) for pattern in WEIGHTS):
            return folder
    except (OSError, ValueError):  # not in the cache, or not the form of a hub's name
        pass
    if not name.startswith(HUB):
        raise UserError(_missing_message(name, f"is not a folder in {Path.cwd()}"))
    try:
        for pattern in WEIGHTS:
            folder = Path(read(allow_patterns=[*TEXT_FILES, pattern]))
            if list(folder.glob(pattern)):
                break
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            _missing_message(name, f"cannot be taken from the model hub ({reason})")
        ) from None
    return folder


def _missing_message(name: str, problem: str) -> str:
    model = name.removeprefix(HUB)
    model = model if HUB_ID.fullmatch(model) else "ORG/MODEL"
    target = f"models_text/{Path(model).name}"
    return (
        f"--text_encoder {name} {problem}. Choose one of:\n"
        "  1. the folder where the encoder lies now, with config.json, weights and tokenizer: "
        "--text_encoder FOLDER (text_encoder=FOLDER of mask2ct.load)\n"
        f"  2. a model of the hub, which is downloaded: --text_encoder {HUB}{model}\n"
        f"     or on a machine with network: hf download {model} --local-dir {target}\n"
        f"     then copy that folder here: --text_encoder {target}\n"
        "  3. the cohort's own CLIP: python scripts/pretrain_clip.py --dataroot DATAROOT --out "
        "checkpoints/clip\n"
        f"     then --text_encoder checkpoints/clip (or --text_encoder table, without language)"
    )


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn errors of transformers on reading a folder into a `UserError`.

    Damaged files make transformers raise errors of almost every type.
    """
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"{folder} is not a complete text model of transformers ({reason}). It needs "
            "config.json, model.safetensors and the tokenizer's files of a CLIP text model or a "
            "BERT-type model."
        ) from None
    finally:
        hf_logging.set_verbosity(verbosity)
        hf_logging.enable_progress_bar()


def check_no_code(folder: Path) -> None:
    """Raise `UserError` where a model names Python code of its own, which is never run.

    The architecture that transformers has under the same name can be another one, so that the model
    is not loaded without its code either.
    """
    for name in CODE_FILES:
        path = folder / name
        values = read_json(path) if path.is_file() else {}
        if isinstance(values, dict) and values.get(CODE_ENTRY):
            raise UserError(
                f"{path} names Python code of the model's own ({CODE_ENTRY}). Such code is never "
                "run. Choose a model whose architecture is part of transformers. If this one is, "
                f"remove the entry {CODE_ENTRY} from the file."
            )


def _missing_weights(names: list[str]) -> list[str]:
    """Return the names that an encoder of text needs."""
    return [k for k in names if "pooler" not in k and "position_ids" not in k]


def load_folder(folder: Path) -> LanguageModel:
    """Load a CLIP text model (alone, with projection, or as part of a CLIP) or a BERT-type model.

    Raises:
        UserError: The folder is not complete, is damaged, or holds another kind of model.
    """
    check_no_code(folder)
    with _reading(folder):
        config = AutoConfig.from_pretrained(folder, **NO_CODE)
        architecture = (config.architectures or [""])[0]
        model_class: Any = {
            "CLIPTextModel": CLIPTextModel,
            "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
            "CLIPModel": CLIPTextModelWithProjection,  # AutoModel would drop the projection
        }.get(architecture, AutoModel)
        model, info = model_class.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **NO_CODE
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **NO_CODE)
        if missing := _missing_weights(info["missing_keys"]):
            raise ValueError(f"weights are missing: {', '.join(missing[:3])}")
        if not hasattr(model.config, "max_position_embeddings"):
            kind = architecture or config.model_type
            raise ValueError(f"{kind} is not a text model with a bounded length")
        if model_class is CLIPTextModelWithProjection:
            return LanguageModel(tokenizer, model.text_model, model.text_projection)
        return LanguageModel(tokenizer, model, None)


def load_medclip(file: Path, bert: str) -> LanguageModel:
    """Load MedCLIP's text side: its BERT and its projection.

    Args:
        file: MedCLIP's checkpoint.
        bert: Folder with the configuration and tokenizer of the BERT; empty for that of `file`.

    Raises:
        UserError: Missing or damaged files, or another checkpoint.
    """
    weights = read_weights(file, f"--text_encoder medclip:{file}")
    folder = Path(bert) if bert else file.parent
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no config.json: MedCLIP's checkpoint lacks its BERT's configuration "
            "and tokenizer. Give a folder with those of emilyalsentzer/Bio_ClinicalBERT by "
            "--medclip_bert."
        )
    bert_weights = _below(weights, MEDCLIP_BERT)
    head = _below(weights, MEDCLIP_PROJECTION)
    if "weight" not in head or not bert_weights:
        raise UserError(
            f"{file} is not a MedCLIP checkpoint: it needs {MEDCLIP_BERT}* and "
            f"{MEDCLIP_PROJECTION}weight."
        )
    check_no_code(folder)
    with _reading(folder):
        config = AutoConfig.from_pretrained(folder, **NO_CODE)
        model = AutoModel.from_config(config, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, **NO_CODE)
        missing, _ = model.load_state_dict(bert_weights, strict=False)
        if missing := _missing_weights(missing):
            raise ValueError(f"{file} lacks {', '.join(missing[:3])}")
        width, hidden = head["weight"].shape
        projection = nn.Linear(hidden, width, bias="bias" in head).requires_grad_(False)
        projection.load_state_dict({name: tensor.float() for name, tensor in head.items()})
        return LanguageModel(tokenizer, model.float(), projection, MEDCLIP_LAYERS)


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
