"""Random numbers that are a pure function of a seed and a name, on every machine the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seeded_generator(seed: int, key: str) -> torch.Generator:
    """Return a CPU generator seeded from sha256 of the seed and the key."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=False) % 2**63)


def noise_field(seed: int, key: str, shape: Sequence[int]) -> Tensor:
    """Return standard normal noise of `shape`, float32, on the CPU."""
    return torch.randn(tuple(shape), generator=seeded_generator(seed, key))


def uniform_draws(noise: Tensor, count: int) -> Tensor:
    """Return uniform numbers in [0, 1] that follow from a sample's noise.

    They are the later digits of its first values, which are independent of the leading digits. So
    a sample's draws depend on its number alone, whichever process computes them.

    Args:
        noise: Standard normal noise of one sample, any shape.
        count: Number of draws.

    Returns:
        float32 (count,); zeros where the noise has fewer values.
    """
    draws = torch.zeros(count)
    values = noise.flatten()[:count]
    draws[: len(values)] = (values.abs().double() * 4096).frac().float()
    return draws
