"""Random numbers that are a pure function of a seed and a name, on every machine the same."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Constants of Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF
VALUES_PER_BLOCK = 8  # normal values of one counter: 4 words of 2 x 16 bits
UNIFORM_STREAM = WORD  # last word of the counters of uniform numbers; noise takes 0, 1, ...
COUNTERS_AT_ONCE = {"cpu": 2**16}  # more do not fit into a core's cache
MAX_COUNTERS = 2**23


def seeded_generator(seed: int, key: str) -> torch.Generator:
    """Return a CPU generator seeded from sha256 of the seed and the key."""
    return torch.Generator().manual_seed(int.from_bytes(_digest(seed, key), "big") % 2**63)


def _digest(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8]


def noise_key(seed: int, key: str) -> Tensor:
    """Return the key of noise and uniform numbers, int64 `(2,)`, from the seed and a name."""
    digest = _digest(seed, key)
    return torch.tensor([int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")])


def philox(counter: Sequence[Tensor | int], key: Sequence[Tensor]) -> list[Tensor]:
    """Return four random words of 32 bits per counter: Philox4x32-10, in integers alone.

    Args:
        counter: Four words, int64 tensors that broadcast, or numbers.
        key: Two words, int64 tensors that broadcast.
    """
    key0, key1 = key
    words = [c if isinstance(c, Tensor) else torch.full_like(key0, c) for c in counter]
    c0, c1, c2, c3 = torch.broadcast_tensors(*words, key0)[:4]
    for _ in range(ROUNDS):
        low = c0 * MULTIPLIERS[0]
        high = c2 * MULTIPLIERS[1]
        # The shift is arithmetic, so that the upper half is cut to 32 bits.
        c0, c2 = (
            (high >> 32).bitwise_and_(WORD).bitwise_xor_(c1).bitwise_xor_(key0),
            (low >> 32).bitwise_and_(WORD).bitwise_xor_(c3).bitwise_xor_(key1),
        )
        c1, c3 = high.bitwise_and_(WORD), low.bitwise_and_(WORD)
        key0, key1 = (key0 + WEYL[0]) & WORD, (key1 + WEYL[1]) & WORD
    return [c0, c1, c2, c3]


@functools.lru_cache(maxsize=8)
def _normal_table(device: torch.device) -> Tensor:
    """Return the standard normal quantiles of 2^16 levels, from one table on every device."""
    levels = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    return torch.special.ndtri(levels).float().to(device)


def noise_box(keys: Tensor, channels: int, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return a box of standard normal noise fields, each a pure function of key and place.

    A box of a field equals that part of a larger box. The numbers are the same on CPU and GPU.

    Args:
        keys: `(B, 2)` keys of `noise_key`, on the device of the noise.
        channels: N, values per voxel.
        start: First voxel of the box, 0 or more.
        size: `(x, y, z)` of the box.

    Returns:
        float32 `(B, N, x, y, z)`.
    """
    device = keys.device
    noise = torch.empty(len(keys), channels, *size, device=device)
    table = _normal_table(device)
    _, y, z = (torch.arange(s, s + n, device=device) for s, n in zip(start, size, strict=True))
    place_y, place_z = y[:, None], z
    per_plane = len(keys) * size[1] * size[2]
    planes = max(1, COUNTERS_AT_ONCE.get(device.type, MAX_COUNTERS) // max(1, per_plane))
    key = [keys[:, word, None, None, None] for word in range(2)]
    for first in range(0, size[0], planes):
        last = min(first + planes, size[0])
        x = torch.arange(start[0] + first, start[0] + last, device=device)[:, None, None]
        for stream in range(math.ceil(channels / VALUES_PER_BLOCK)):
            words = philox((x, place_y, place_z, stream), key)
            halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
            for offset, half in enumerate(halves):
                channel = stream * VALUES_PER_BLOCK + offset
                if channel < channels:
                    noise[:, channel, first:last] = table[half]
    return noise


def uniform_draws(keys: Tensor, count: int) -> Tensor:
    """Return uniform numbers in [0, 1) `(B, count)`, at most 4, for keys `(B, 2)`.

    They are independent of the noise of the same keys.
    """
    words = philox((0, 0, 0, UNIFORM_STREAM), [keys[:, 0], keys[:, 1]])
    return (torch.stack(words[:count], 1) >> 8).float() / 2**24
