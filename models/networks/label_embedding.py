"""Masks of many labels as a few channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from util.volume_inputs import MAX_ONE_HOT

EMBEDDED_CHANNELS = 16


def mask_channels(n_labels: int) -> int:
    """Return the channels by which a mask of K labels enters a network."""
    return n_labels if n_labels <= MAX_ONE_HOT else EMBEDDED_CHANNELS


def body_channel(n_labels: int, body: int | None) -> int | None:
    """Return the channel of the body among `mask_channels`; None without a body."""
    return None if body is None else mask_channels(n_labels) - 1


def make_label_embedding(n_labels: int, body: int | None) -> LabelEmbedding | None:
    """Build the embedding of K labels; None where few enough enter as one-hot."""
    return None if n_labels <= MAX_ONE_HOT else LabelEmbedding(n_labels, body)


class LabelEmbedding(nn.Module):
    """A learned vector for each label.

    One-hot, 132 labels take 132 channels of the first convolution and of memory. The background
    keeps a channel of its own, the first, and so does the body, the last, because where text acts
    is read from them; the vectors lie between.

    Args:
        n_labels: K.
        body: Number of the body among the labels, if there is one.
    """

    def __init__(self, n_labels: int, body: int | None) -> None:
        super().__init__()
        self.body = body
        width = EMBEDDED_CHANNELS - 1 - (body is not None)
        self.vectors = nn.Parameter(torch.randn(n_labels, width) / width**0.5)

    def forward(self, mask: Tensor) -> Tensor:
        """Return numbers of labels `(B, 1, X, Y, Z)` as channels `(B, 16, X, Y, Z)`."""
        numbers = mask[:, 0].long()
        organs = numbers > 0
        parts = [~organs]
        if self.body is not None:
            organs = organs & (numbers != self.body)
            parts.append(numbers == self.body)
        vectors = self.vectors[numbers].movedim(-1, 1) * organs[:, None]
        fixed = [part[:, None].to(vectors.dtype) for part in parts]
        return torch.cat([fixed[0], vectors, *fixed[1:]], 1)
