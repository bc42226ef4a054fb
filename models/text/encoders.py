"""Text encoders around frozen language models, by phrases or as sentences."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.text import table_encoder  # noqa: F401  (registers the encoder)
from models.text.base_encoder import ENCODERS, Prompts, TextEmbedding, TextEncoder, Values
from models.text.phrase_encoder import PhraseEncoder
from options.base_options import TextOptions
from util import phrasing
from util.cli import UserError, format_list
from util.files import atomic_path
from util.notices import not_yet_warned, notice

if TYPE_CHECKING:
    from models.text.language_model import LanguageModel

__all__ = ["TextEmbedding", "TextEncoder", "build_text_encoder"]

log = logging.getLogger(__name__)

MAX_SENTENCES = 512  # kept in memory
# Share of the mean variance that is added to each direction's: directions in which training
# phrases hardly differ are not amplified further.
VARIANCE_FLOOR = 0.1
VARIANCE_TOLERANCE = 1e-9  # relative to the largest; smaller ones are rounding errors
MIN_SCALE = 1e-12


class Whitening:
    """Centring and scaling of embeddings.

    Language models map all phrases of a table to one narrow cone. So the mean of the training set
    is subtracted, and directions are scaled by `variance ** -whitening`. Then the training set has
    RMS 1 per channel.

    Args:
        width: Channels C.
        whitening: 0 keeps the variances of directions, 0.5 makes them equal.
    """

    def __init__(self, width: int, whitening: float) -> None:
        self.whitening = whitening
        self.mean = torch.zeros(width)
        self.matrix = torch.eye(width)

    def fit(self, vectors: Tensor) -> None:
        """Learn mean and matrix from the rows `(N, C)`."""
        x = vectors.double()
        self.mean = x.mean(0).float()
        x = x - x.mean(0)
        _, singular, directions = torch.linalg.svd(x, full_matrices=False)
        variance = singular.square()
        present = variance > VARIANCE_TOLERANCE * variance.max()
        relative = variance / variance[present].mean().clamp_min(MIN_SCALE)
        gain = (relative + VARIANCE_FLOOR) ** -self.whitening
        rest = VARIANCE_FLOOR**-self.whitening  # of directions without variance
        matrix = rest * torch.eye(x.shape[1], dtype=x.dtype) + directions.T @ (
            (gain - rest)[:, None] * directions
        )
        self.matrix = (matrix / (x @ matrix).square().mean().sqrt().clamp_min(MIN_SCALE)).float()

    def __call__(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) @ self.matrix

    def state(self, name: str) -> dict[str, Tensor]:
        """Return mean and matrix under names that begin with `name`."""
        return {f"{name}.mean": self.mean, f"{name}.matrix": self.matrix.contiguous()}

    def load(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of `state`."""
        self.mean = tensors[f"{name}.mean"].cpu().float()
        self.matrix = tensors[f"{name}.matrix"].cpu().float()


def _identity(model_identity: dict[str, str], options: TextOptions) -> dict[str, str]:
    """Return a model's identity with the options that change its embeddings."""
    settings = ("text_mode", "number_tokens", "whitening")
    return {**model_identity, **{name: str(getattr(options, name)) for name in settings}}


class LanguagePhrases(PhraseEncoder):
    """A language model applied phrase by phrase; every distinct phrase is embedded once.

    Args:
        options: Mode, number tokens and whitening.
    """

    def __init__(
        self, model: LanguageModel, identity: dict[str, str], options: TextOptions
    ) -> None:
        self.model = model
        self.identity = _identity(identity, options)
        self.whitening = Whitening(model.width, options.whitening)
        self.embedded: dict[str, Tensor] = {}  # before whitening
        self._cache: Path | None = None
        super().__init__(options.number_tokens)

    @property
    def base(self) -> int:
        """Channels of the model's pooled vector."""
        return self.model.width

    def learn(self, phrases: Sequence[str]) -> None:
        """Fit the whitening."""
        if len(phrases) > 1:
            self.whitening.fit(self._embed_raw(phrases))

    def embed(self, phrases: Sequence[str]) -> Tensor:
        """Return whitened embeddings `(N, base)`; warn of unseen phrases."""
        unseen = sorted(set(phrases) - set(self.phrases)) if self.phrases else []
        if unseen := not_yet_warned(unseen):
            log.warning(
                "The training prompts do not contain these phrases, so their effect depends on the "
                "text encoder alone and may be meaningless: %s. Where one means the same as a "
                "phrase of training, list it in a file for --paraphrases.",
                format_list(self._with_nearest(unseen)),
                extra=notice("phrase not seen in training", phrases=unseen),
            )
        return self.whitening(self._embed_raw(phrases))

    def _with_nearest(self, unseen: Sequence[str]) -> list[str]:
        """Return phrases with the training phrases that the language model puts next to them.

        For people alone: language models put negations beside what they negate, so that nothing is
        read for another phrase by itself.
        """
        words = {**{text: text for text in self.phrases}, **self.synonyms}
        known = F.normalize(self._embed_raw(list(words)), dim=-1)
        similarity, nearest = (F.normalize(self._embed_raw(unseen), dim=-1) @ known.T).max(1)
        read = list(words.values())
        return [
            f"{phrase} (nearest: {read[int(n)]}, {s:.2f})"
            for phrase, n, s in zip(unseen, nearest, similarity, strict=True)
        ]

    def state(self) -> tuple[dict[str, Tensor], Values]:
        """Return the whitening, and the values of the base class."""
        tensors, values = super().state()
        return {**tensors, **self.whitening.state("phrases")}, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore the result of `state`."""
        self.whitening.load("phrases", tensors)
        super().load_state(tensors, values)

    def attach_cache(self, folder: Path) -> None:
        """Reuse the embeddings in `phrases.safetensors` of a folder, and store new ones there."""
        self._cache = folder / "phrases.safetensors"
        try:
            with safe_open(self._cache, "pt") as file:
                stored = file.metadata() or {}
                if stored.get("sha256") == self.identity["sha256"]:
                    phrases = json.loads(stored["phrases"])
                    self.embedded.update(zip(phrases, file.get_tensor("raw"), strict=True))
        except (OSError, SafetensorError, KeyError, ValueError):
            pass  # a missing or damaged cache costs only the time to embed again
        self._write_cache()

    def _embed_raw(self, phrases: Sequence[str]) -> Tensor:
        new = [p for p in phrases if p not in self.embedded]
        for phrase in new:
            self.embedded[phrase] = self.model(phrase)[1]
        if new:
            self._write_cache()
        return torch.stack([self.embedded[p] for p in phrases])

    def _write_cache(self) -> None:
        if self._cache is None or not self.embedded:
            return
        metadata = {"sha256": self.identity["sha256"], "phrases": json.dumps(list(self.embedded))}
        try:
            with atomic_path(self._cache) as temporary:
                save_file({"raw": torch.stack(list(self.embedded.values()))}, temporary, metadata)
        except (OSError, UserError, SafetensorError):
            self._cache = None  # a folder that is read-only costs only the time to embed again


class LanguageSentences(TextEncoder):
    """A language model applied to the whole prompt as one sentence: its own tokens and pooling."""

    def __init__(
        self, model: LanguageModel, identity: dict[str, str], options: TextOptions
    ) -> None:
        self.model = model
        self.identity = _identity(identity, options)
        self.tokens = Whitening(model.width, options.whitening)
        self.pooled = Whitening(model.width, options.whitening)
        self._encoded: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    @property
    def width(self) -> int:
        """Channels C of a token."""
        return self.model.width

    def fit(self, prompts: Prompts) -> None:
        """Fit one whitening of tokens and one of pooled vectors."""
        sentences = {phrasing.join_phrases(prompt) for prompt in prompts} - {""}
        raw = [self.model(sentence) for sentence in sorted(sentences)]
        if len(raw) > 1:
            self.tokens.fit(torch.cat([tokens for tokens, _ in raw]))
            self.pooled.fit(torch.stack([pooled for _, pooled in raw]))
        self._encoded.clear()

    def state(self) -> tuple[dict[str, Tensor], Values]:
        """Return both whitenings."""
        return {**self.tokens.state("tokens"), **self.pooled.state("pooled")}, {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore the result of `state`."""
        self.tokens.load("tokens", tensors)
        self.pooled.load("pooled", tensors)
        self._encoded.clear()

    def encode(self, prompts: Prompts) -> TextEmbedding:
        """Embed a batch of prompts by the model's tokens and pooled vectors."""
        encoded = [self._encode_sentence(phrasing.join_phrases(prompt)) for prompt in prompts]
        longest = max([1, *(len(tokens) for tokens, _ in encoded)])
        padded = torch.zeros(len(encoded), longest, self.width)
        valid = torch.zeros(len(encoded), longest, dtype=torch.bool)
        for i, (tokens, _) in enumerate(encoded):
            padded[i, : len(tokens)] = tokens
            valid[i, : len(tokens)] = True
        return TextEmbedding(padded, valid, torch.stack([pooled for _, pooled in encoded]))

    def validate(self, prompts: Prompts) -> None:
        """Raise `UserError` for a sentence that is too long."""
        for prompt in prompts:
            if sentence := phrasing.join_phrases(prompt):
                self.model.check_length(sentence)

    def _encode_sentence(self, text: str) -> tuple[Tensor, Tensor]:
        if not text:
            return torch.zeros(0, self.width), torch.zeros(self.width)
        if text not in self._encoded:
            tokens, pooled = self.model(text)
            self._encoded[text] = self.tokens(tokens), self.pooled(pooled)
            if len(self._encoded) > MAX_SENTENCES:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(text)
        return self._encoded[text]


@ENCODERS.register("medclip")
@ENCODERS.register("transformers")
def build_language_encoder(options: TextOptions) -> TextEncoder:
    """Build an encoder around a language model: a folder, `hub:ORG/MODEL`, or `medclip:FILE`."""
    from models.text.language_model import load_language_model  # slow to import

    model, identity = load_language_model(options)
    if options.text_mode == "phrases":
        return LanguagePhrases(model, identity, options)
    return LanguageSentences(model, identity, options)


def build_text_encoder(options: TextOptions) -> TextEncoder:
    """Build the encoder that `--text_encoder` names, before any data are read.

    Raises:
        UserError: The model is neither local nor reachable, is damaged, or is not a text model.
    """
    name = options.text_encoder.partition(":")[0]
    return ENCODERS[name if name in ENCODERS else "transformers"](options)
