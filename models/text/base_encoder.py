"""What every text encoder gives, and the registry of encoders.

A new encoder is one file with a `TextEncoder`, `@ENCODERS.register("name")` on a function of
`TextOptions` that makes it, and one import line in `models/text/encoders.py`. Users choose it by
`--text_encoder name` or `name:ARGUMENT`.
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

Prompts = Sequence[Sequence[str]]  # of each prompt the texts of its phrases
Values = dict[str, Any]  # what JSON can hold


@dataclass(frozen=True)
class TextEmbedding:
    """A batch of embedded prompts.

    Attributes:
        tokens: `(B,L,C)` float32, L at least 1; zero where not valid.
        valid: `(B,L)` bool; a prompt without phrases has no valid token.
        pooled: `(B,C)` float32; zero for a prompt without phrases.
        weight: `(B,)` float32, how much text may learn from each scan (see
            `models.text.relevance`); None for wholly.
    """

    tokens: Tensor
    valid: Tensor
    pooled: Tensor
    weight: Tensor | None = None

    def to(self, device: torch.device | str) -> TextEmbedding:
        moved = (
            t if t is None else t.to(device, non_blocking=True)
            for t in (self.tokens, self.valid, self.pooled, self.weight)
        )
        return TextEmbedding(*moved)  # type: ignore[arg-type]


class TextEncoder(ABC):
    """Turns prompts into embeddings; frozen, on the CPU, in float32.

    `fit` learns from the training prompts what is needed to standardise; `state` and `load_state`
    carry that into a run's checkpoint and back. `identity` tells which encoder it is, for
    `check_identity`.
    """

    identity: dict[str, str]

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels C of a token; fixed from `fit` or `load_state` on."""

    @abstractmethod
    def fit(self, prompts: Prompts) -> None:
        """Learns statistics from the training prompts."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], Values]:
        """What `fit` learned: tensors, and plain values for JSON."""

    @abstractmethod
    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Takes back what `state` gave."""

    @abstractmethod
    def encode(self, prompts: Prompts) -> TextEmbedding:
        """Embeds a batch of prompts; raises `UserError` for a text longer than the encoder
        takes.
        """

    def attach_cache(self, folder: Path) -> None:  # noqa: B027  (not every encoder has something to keep)
        """Re-uses and keeps embedded phrases in this folder, where the encoder has something worth
        keeping.
        """

    def check_identity(self, saved: Mapping[str, str]) -> None:
        """Raises `UserError` unless this is the encoder that a run was trained with, wherever it
        lies now.
        """
        differ = [
            k
            for k in {**saved, **self.identity}
            if k != "source" and saved.get(k) != self.identity.get(k)
        ]
        if differ:
            details = "; ".join(
                f"{k} was {saved.get(k)}, is {self.identity.get(k)}" for k in differ
            )
            raise UserError(
                f"--text_encoder {self.identity.get('source')} is not the encoder that the run was "
                f"trained with ({saved.get('source')}): {details}. Give the one it was trained "
                "with, or train a new run."
            )


ENCODERS: Registry[Callable[[TextOptions], TextEncoder]] = Registry("--text_encoder")
