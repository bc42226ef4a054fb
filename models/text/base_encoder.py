"""Interface and registry of text encoders.

To add an encoder, copy `models/text/template_encoder.py`, register a function of `TextOptions`
under `@ENCODERS.register("name")`, and import the file in `models/text/encoders.py`. Users choose
it with `--text_encoder name` or `name:ARGUMENT`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.registry import Registry
from options.base_options import TextOptions
from util.cli import UserError

Prompts = Sequence[Sequence[str]]  # the phrases of each prompt
Values = dict[str, Any]  # plain values that JSON can hold


@dataclass(frozen=True)
class TextEmbedding:
    """A batch of embedded prompts.

    Attributes:
        tokens: `(B, L, C)` float32, L at least 1; zero where not valid.
        valid: `(B, L)` bool; a prompt without phrases has no valid token.
        pooled: `(B, C)` float32; zero for a prompt without phrases.
        weight: `(B,)` float32, factor of the text unit's gradient per case (see
            `models.text.relevance`); None for 1.
    """

    tokens: Tensor
    valid: Tensor
    pooled: Tensor
    weight: Tensor | None = None

    def to(self, device: torch.device | str) -> TextEmbedding:
        """Return the embedding on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def expand(self, batch: int) -> TextEmbedding:
        """Return one prompt's embedding for each of `batch` tiles, without a copy."""
        return self._map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))

    def select(self, number: int) -> TextEmbedding:
        """Return one prompt as a batch of one."""
        return self._map(lambda tensor: tensor[number : number + 1])

    def repeat(self, times: int) -> TextEmbedding:
        """Return the batch `times` times, one after the other."""
        return (
            self
            if times == 1
            else self._map(lambda tensor: tensor.repeat(times, *(tensor.dim() - 1) * (1,)))
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> TextEmbedding:
        return TextEmbedding(
            tokens=function(self.tokens),
            valid=function(self.valid),
            pooled=function(self.pooled),
            weight=None if self.weight is None else function(self.weight),
        )


class TextEncoder(ABC):
    """Prompts to embeddings; frozen, on the CPU, in float32.

    `fit` learns standardisation from the training prompts. `state` and `load_state` carry the
    result into a run's checkpoint and back.

    Attributes:
        identity: Kind, settings and hash of the weights, for `check_identity`. The entry `source`
            is the path or name, which may change.
    """

    identity: dict[str, str]

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels C of a token; fixed after `fit` or `load_state`."""

    @abstractmethod
    def fit(self, prompts: Prompts) -> None:
        """Learn statistics from the training prompts."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], Values]:
        """Return the learned statistics: tensors, and plain values for JSON."""

    @abstractmethod
    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore the result of `state`."""

    @abstractmethod
    def encode(self, prompts: Prompts) -> TextEmbedding:
        """Embed a batch of prompts; raise `UserError` for a text that is too long."""

    @abstractmethod
    def validate(self, prompts: Prompts) -> None:
        """Raise `UserError` for a prompt that `encode` would refuse."""

    def attach_cache(self, folder: Path) -> None:  # noqa: B027  (optional)
        """Reuse the embedded phrases stored in this folder, and store new ones there."""

    def adopt(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Tensor | None:
        """Continue what an encoder of the same identity learned in another run, after `fit`.

        Args:
            tensors: Its learned tensors, see `state`.
            values: Its plain values.

        Returns:
            `(C_old, C_new)`, which maps embeddings of this encoder to those of the other; None
            where none exists.
        """
        self.load_state(tensors, values)
        return torch.eye(self.width)

    def is_same(self, saved: Mapping[str, str]) -> bool:
        """Return whether an identity is this encoder's, wherever its files lie."""
        keys = {*saved, *self.identity} - {"source", "revision"}
        return all(saved.get(key) == self.identity.get(key) for key in keys)

    def check_identity(self, saved: Mapping[str, str]) -> None:
        """Compare with the identity of the encoder that a run was trained with.

        Raises:
            UserError: Another kind, other settings or other weights.
        """
        differences = [
            f"{key} was {saved.get(key)}, is {self.identity.get(key)}"
            for key in {**saved, **self.identity}
            if key != "source" and saved.get(key) != self.identity.get(key)
        ]
        if differences:
            raise UserError(
                f"--text_encoder {self.identity.get('source')} is not the encoder that the run was "
                f"trained with ({saved.get('source')}): {'; '.join(differences)}. Give the one it "
                "was trained with, or train a new run."
            )


ENCODERS: Registry[Callable[[TextOptions], TextEncoder]] = Registry("--text_encoder")
