"""Prompts to embeddings by frozen language models, by phrases or as sentences;
`build_text_encoder`.
"""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import models.text.table_encoder  # noqa: F401  (registers the encoder)
from models.text import language_model as text_language
from models.text.base_encoder import ENCODERS, Prompts, TextEmbedding, TextEncoder, Values
from models.text.language_model import LanguageModel
from models.text.phrase_encoder import PhraseEncoder
from options.base_options import TextOptions
from util import phrasing as wording
from util.cli import format_list

__all__ = ["TextEmbedding", "TextEncoder", "build_text_encoder"]

log = logging.getLogger(__name__)

SENTENCES = 512  # kept in memory
# of the mean variance: directions in which training phrases hardly differ are not blown up further
FLOOR = 0.1


class Whitening:
    """Centres and scales embeddings: language models put all phrases of a table into one narrow
    cone.

    The mean of the training set is subtracted, directions of spread are evened out by `variance **
    -whitening` (0: not at all, 0.5: completely), and the whole is scaled such that the training set
    has RMS 1 a channel.
    """

    def __init__(self, width: int, whitening: float) -> None:
        self.whitening = whitening
        self.mean, self.matrix = torch.zeros(width), torch.eye(width)

    def fit(self, vectors: Tensor) -> None:
        """Learns from the rows `(N,C)`."""
        x = vectors.double()
        self.mean = x.mean(0).float()
        x = x - x.mean(0)
        _, size, directions = torch.linalg.svd(x, full_matrices=False)
        variance = size.square()
        spread = variance / variance[variance > 1e-9 * variance.max()].mean().clamp_min(1e-12)
        gain, rest = (spread + FLOOR) ** -self.whitening, FLOOR**-self.whitening
        matrix = rest * torch.eye(x.shape[1], dtype=x.dtype) + directions.T @ (
            (gain - rest)[:, None] * directions
        )
        self.matrix = (matrix / (x @ matrix).square().mean().sqrt().clamp_min(1e-12)).float()

    def __call__(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) @ self.matrix

    def state(self, name: str) -> dict[str, Tensor]:
        return {f"{name}.mean": self.mean, f"{name}.matrix": self.matrix.contiguous()}

    def load(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.mean, self.matrix = (
            tensors[f"{name}.mean"].cpu().float(),
            tensors[f"{name}.matrix"].cpu().float(),
        )


def _settings(options: TextOptions) -> dict[str, str]:
    """The options that belong to an encoder's identity."""
    return {k: str(getattr(options, k)) for k in ("text_mode", "number_tokens", "whitening")}


class LanguagePhrases(PhraseEncoder):
    """A language model phrase by phrase; every distinct phrase is embedded once, and kept on disk
    after `keep`.
    """

    def __init__(
        self, model: LanguageModel, identity: dict[str, str], options: TextOptions
    ) -> None:
        self.model, self.identity = model, {**identity, **_settings(options)}
        self.standard = Whitening(model.width, options.whitening)
        self.embedded: dict[str, Tensor] = {}
        self._file: Path | None = None
        super().__init__(options.number_tokens)

    @property
    def base(self) -> int:
        return self.model.width

    def learn(self, phrases: Sequence[str]) -> None:
        if len(phrases) > 1:
            self.standard.fit(self._embed_raw(phrases))

    def embed(self, phrases: Sequence[str]) -> Tensor:
        if self.phrases and (new := sorted(set(phrases) - set(self.phrases))):
            log.warning(
                "Training has not seen these wordings, so the text encoder alone says what they "
                "mean, which may be nothing: %s.",
                format_list(new),
            )
        return self.standard(self._embed_raw(phrases))

    def state(self) -> tuple[dict[str, Tensor], Values]:
        tensors, values = super().state()
        return {**tensors, **self.standard.state("phrases")}, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.standard.load("phrases", tensors)
        super().load_state(tensors, values)

    def attach_cache(self, folder: Path) -> None:
        self._file = folder / "phrases.safetensors"
        try:
            with safe_open(self._file, "pt") as file:
                stored = file.metadata() or {}
                if stored.get("sha256") == self.identity["sha256"]:
                    self.embedded.update(
                        zip(json.loads(stored["phrases"]), file.get_tensor("raw"), strict=True)
                    )
        except (OSError, SafetensorError, KeyError, ValueError):
            pass  # a missing or damaged store costs only the time to embed again
        self._store()

    def _embed_raw(self, phrases: Sequence[str]) -> Tensor:
        new = [p for p in phrases if p not in self.embedded]
        self.embedded.update({p: self.model(p)[1] for p in new})
        if new:
            self._store()
        return torch.stack([self.embedded[p] for p in phrases])

    def _store(self) -> None:
        """Keeps all phrases known; a folder that cannot be written costs only the time to embed
        again.
        """
        if self._file is None or not self.embedded:
            return
        try:
            self._write(self._file)
        except (OSError, SafetensorError):
            self._file = None

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        metadata = {"sha256": self.identity["sha256"], "phrases": json.dumps(list(self.embedded))}
        save_file({"raw": torch.stack(list(self.embedded.values()))}, temporary, metadata)
        temporary.replace(path)


class LanguageSentences(TextEncoder):
    """A language model's own tokens and pooled output of the whole prompt as one sentence."""

    def __init__(
        self, model: LanguageModel, identity: dict[str, str], options: TextOptions
    ) -> None:
        self.model, self.identity = model, {**identity, **_settings(options)}
        self.tokens, self.pooled = (
            Whitening(model.width, options.whitening),
            Whitening(model.width, options.whitening),
        )
        self._kept: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    @property
    def width(self) -> int:
        return self.model.width

    def fit(self, prompts: Prompts) -> None:
        made = [self.model(text) for text in sorted({wording.join(p) for p in prompts} - {""})]
        if len(made) > 1:
            self.tokens.fit(torch.cat([tokens for tokens, _ in made]))
            self.pooled.fit(torch.stack([pooled for _, pooled in made]))
        self._kept.clear()

    def state(self) -> tuple[dict[str, Tensor], Values]:
        return {**self.tokens.state("tokens"), **self.pooled.state("pooled")}, {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.tokens.load("tokens", tensors)
        self.pooled.load("pooled", tensors)
        self._kept.clear()

    def encode(self, prompts: Prompts) -> TextEmbedding:
        made = [self._encode(wording.join(prompt)) for prompt in prompts]
        longest = max([1, *(len(tokens) for tokens, _ in made)])
        tokens, valid = (
            torch.zeros(len(made), longest, self.width),
            torch.zeros(len(made), longest, dtype=torch.bool),
        )
        for i, (own, _) in enumerate(made):
            tokens[i, : len(own)], valid[i, : len(own)] = own, True
        return TextEmbedding(tokens, valid, torch.stack([pooled for _, pooled in made]))

    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        if not text:
            return torch.zeros(0, self.width), torch.zeros(self.width)
        if text not in self._kept:
            tokens, pooled = self.model(text)
            self._kept[text] = self.tokens(tokens), self.pooled(pooled)
            if len(self._kept) > SENTENCES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(text)
        return self._kept[text]


@ENCODERS.register("medclip")
@ENCODERS.register("transformers")
def make(options: TextOptions) -> TextEncoder:
    """An encoder around a language model: a folder, a hub id, or `medclip:FILE`."""
    kind = LanguagePhrases if options.text_mode == "phrases" else LanguageSentences
    return kind(*text_language.load(options), options)


def build_text_encoder(options: TextOptions) -> TextEncoder:
    """The encoder that `--text_encoder` names; call it before any data is read.

    Raises:
        UserError: The model is neither local nor reachable, damaged, or no text model.
    """
    name = options.text_encoder.partition(":")[0]
    return ENCODERS[name if name in ENCODERS else "transformers"](options)
