"""Noise that is a pure function of a seed and a name, on every machine the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, key: str) -> torch.Generator:
    """A CPU generator seeded from sha256 of the seed and the key."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=False) % 2**63)


def field(seed: int, key: str, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of `shape`, float32, on the CPU."""
    return torch.randn(tuple(shape), generator=generator(seed, key))
