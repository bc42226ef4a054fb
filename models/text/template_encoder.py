"""A complete small text encoder to copy.

To add an encoder:

1. Copy this file to `models/text/<name>_encoder.py` and rename the class and the registered name.
2. Replace the parts that are marked "Fill in".
3. Import the file in `models/text/encoders.py`, next to `table_encoder`.

Then `--text_encoder <name>` selects it. This file is not imported there, so that its encoder is not
offered to users. It embeds words by a hash of their letters: the same word always has the same
random vector, and no model is needed.

An encoder that embeds phrase by phrase is shorter as a subclass of
`models.text.phrase_encoder.PhraseEncoder`. It only needs `base`, `learn` and `embed`, and gets
number tokens, phrase weights and a table of embedded phrases (see `models/text/table_encoder.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.text.base_encoder import ENCODERS, Prompts, TextEmbedding, TextEncoder, Values
from options.base_options import TextOptions
from util.cli import UserError
from util.phrasing import strip_phrase

WIDTH = 32
MAX_WORDS = 64
MIN_SCALE = 1e-6


class TemplateEncoder(TextEncoder):
    """Embeds each phrase as the mean of its words' vectors, standardised over the training prompts.

    Args:
        options: Flags of text; Fill in: read those that your encoder needs.
    """

    def __init__(self, options: TextOptions) -> None:
        # Fill in: load your model, freeze it, and keep it on the CPU in float32. For another model,
        # `identity` must differ: a run refuses an encoder that it was not trained with. `source`
        # may change, all other entries are compared. Hash the weights (`LanguageModel.sha256`).
        self.identity = {"source": "template", "kind": "template", "width": str(WIDTH)}
        self.mean = torch.zeros(WIDTH)
        self.scale = torch.ones(())

    @property
    def width(self) -> int:
        """Channels C of a token. Fill in: of your model."""
        return WIDTH

    def fit(self, prompts: Prompts) -> None:
        """Learn mean and scale, so that the tokens of the training prompts have RMS 1.

        Fill in: whatever your encoder learns. It must use these prompts only; they are those of the
        training split.
        """
        phrases = {strip_phrase(phrase) for prompt in prompts for phrase in prompt} - {""}
        if not phrases:
            return
        vectors = torch.stack([self._embed(phrase) for phrase in sorted(phrases)])
        self.mean = vectors.mean(0)
        self.scale = (vectors - self.mean).square().mean().sqrt().clamp_min(MIN_SCALE)

    def state(self) -> tuple[dict[str, Tensor], Values]:
        """Return what `fit` learned. Fill in: tensors first, then values that JSON can hold."""
        return {"mean": self.mean, "scale": self.scale}, {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore the result of `state` from a run's checkpoint."""
        self.mean = tensors["mean"]
        self.scale = tensors["scale"]

    def encode(self, prompts: Prompts) -> TextEmbedding:
        """Embed a batch of prompts, one token per phrase.

        Fill in: one token per phrase, word or letter. Keep the shapes: invalid tokens and the
        pooled vector of an empty prompt are zero, and L is at least 1.
        """
        self.validate(prompts)
        phrases = [[strip_phrase(p) for p in prompt if strip_phrase(p)] for prompt in prompts]
        longest = max([1, *map(len, phrases)])
        tokens = torch.zeros(len(phrases), longest, self.width)  # (B, L, C)
        valid = torch.zeros(len(phrases), longest, dtype=torch.bool)  # (B, L)
        for i, prompt in enumerate(phrases):
            for j, phrase in enumerate(prompt):
                tokens[i, j] = (self._embed(phrase) - self.mean) / self.scale
                valid[i, j] = True
        return TextEmbedding(tokens, valid, tokens.sum(1))

    def validate(self, prompts: Prompts) -> None:
        """Raise `UserError` for a phrase that `encode` would refuse. Fill in: your limits."""
        for prompt in prompts:
            for phrase in prompt:
                count = len(phrase.split())
                if count > MAX_WORDS:
                    raise UserError(
                        f"A phrase has {count} words, and the text encoder takes at most "
                        f"{MAX_WORDS}: {phrase[:120]!r}... Use a shorter text."
                    )

    def _embed(self, phrase: str) -> Tensor:
        """Return the vector `(C,)` of one phrase. Fill in: call your model here."""
        vectors = []
        for word in phrase.lower().split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") % 2**63
            generator = torch.Generator().manual_seed(seed)
            vectors.append(torch.randn(WIDTH, generator=generator))
        return torch.stack(vectors).mean(0)


@ENCODERS.register("template")
def build_template_encoder(options: TextOptions) -> TextEncoder:
    """Build the encoder. Fill in: refuse options that it does not support."""
    if options.text_mode != "phrases":
        raise UserError("--text_encoder template cannot read sentences; use --text_mode phrases.")
    return TemplateEncoder(options)
