"""Proper scores of two independent draws against one scan.

A score of a distribution is proper if the true distribution has the best expected score (Gneiting &
Raftery 2007, JASA 102:359). A distance between one generated volume and the scan is not: its
minimum is a volume without texture. With two draws of the same condition, the spread between them
can be rewarded, as in rcGAN (Bendel et al. 2023, arXiv 2210.13389) and engression (Shen &
Meinshausen 2023, arXiv 2307.00835). All volumes are `(B, 1, X, Y, Z)` in [-1, 1], in float32.

Notation:
    `first`, `second` -> x, x' (independent draws given mask and text)
    `real` -> y (the scan)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.networks.filters import box_mean, gaussian_smooth

EPSILON = 1e-6  # in squares, so that roots have a gradient where draws are equal
PATCH = 3  # voxels along the side of a patch
SCALES = 3
# SD of the Gaussians, in voxels, whose differences are the bands of detail.
BAND_SIGMAS = (0.8, 1.6, 3.2)
BLOCK = 12  # voxels; smallest side of the blocks in which distributions are compared
QUANTILES = 64
MIN_FILLED = 0.15  # share of a block inside the region


def mean_score(first: Tensor, second: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of (x - y)(x' - y).

    Its expectation is the squared error of the mean of the draws, plus the variance of the scans:
    (E[x] - y)^2 without a reward for draws that are alike. It equals the squared error of the mean
    of two draws less their squared distance, both divided by 4 (rcGAN, eq. 9, for squares).
    """
    return ((first - real) * (second - real) * weight).mean()


def energy_score(first: Tensor, second: Tensor, real: Tensor) -> Tensor:
    """Return E|x - y| - E|x - x'| / 2 of vectors `(N, V)` (Gneiting & Raftery, eq. 22), `(N,)`.

    Norms are Euclidean, divided by the square root of V.
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square().mean(-1) + EPSILON).sqrt()

    to_real = (distance(first, real) + distance(second, real)) / 2
    return to_real - distance(first, second) / 2


def patch_score(first: Tensor, second: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """Return the energy score of patches of 3x3x3 voxels, averaged over places and three scales.

    It sees texture and structure next to each voxel, given what mask and text say of that place.
    """
    total = first.new_zeros(())
    volumes = torch.cat([first, second, real, weight])
    for scale in range(SCALES):
        if scale:
            if min(volumes.shape[2:]) < 2 * PATCH:
                break
            volumes = F.avg_pool3d(volumes, 2)
        first, second, real, weight = volumes.chunk(4)
        squares = torch.cat([first - real, second - real, first - second]).square()
        distances = (box_mean(squares, PATCH) + EPSILON).sqrt()
        first_real, second_real, first_second = distances.chunk(3)
        scores = (first_real + second_real - first_second) / 2
        total = total + _sample_means(scores, weight).mean()
    return total / SCALES


def _sample_means(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of each sample `(B,)`, 0 where all weights are 0.

    A mean over the whole batch would not be the mean of those of its parts, so that accumulation
    and several processes would train another network.
    """
    sums = (values * weight).flatten(1).sum(1)
    return sums / weight.flatten(1).sum(1).clamp_min(EPSILON)


def quantile_score(first: Tensor, second: Tensor, real: Tensor, region: Tensor) -> Tensor:
    """Return the energy score of the distributions of HU and of bands of detail in blocks.

    The distance of two volumes is the Euclidean distance of the quantiles of their voxel values
    within a block, a 2-Wasserstein distance in which the tails count more. It sees how many voxels
    are how dark, dense or rough, wherever they lie: a few holes or nodules among thousands of
    voxels, which hardly change any patch.

    Args:
        first: A draw.
        second: Another draw.
        real: The scan.
        region: `(B, 1, X, Y, Z)`, 1 for voxels that count.
    """
    whole = (1, 1, 1)
    parts = tuple(max(1, side // BLOCK) for side in first.shape[2:])
    divisions = [whole] if parts == whole else [whole, parts]
    scores = []
    drawn = torch.cat([first, second])
    for drawn_band, real_band in zip(_bands(drawn), _bands(real), strict=True):
        for division in divisions:
            inside = _split_blocks(region, division) > 0.5  # (B, N, V)
            filled = inside.float().mean(-1) >= MIN_FILLED  # (B, N)
            a, b = _quantiles(_split_blocks(drawn_band, division), inside).chunk(2)
            y = _quantiles(_split_blocks(real_band, division), inside)
            # Blocks that do not count are all compared as zeros: shapes then depend on no values,
            # and a GPU need not wait for them.
            a, b, y = (q.where(filled[..., None], 0) for q in (a, b, y))
            scores.append(_sample_means(energy_score(a, b, y), filled.float()))
    return torch.stack(scores).mean()


def _bands(x: Tensor) -> Iterator[Tensor]:
    """Yield the volume, and differences of Gaussians from fine to coarse."""
    yield x
    finer = x
    for sigma in BAND_SIGMAS:
        coarser = gaussian_smooth(x, sigma)
        yield finer - coarser
        finer = coarser
    yield finer


def _split_blocks(x: Tensor, parts: Sequence[int]) -> Tensor:
    """Return `(B, 1, X, Y, Z)` as blocks `(B, N, V)`, cut in equal parts along each axis.

    Voxels beyond the last whole block are left out.
    """
    for axis, count in enumerate(parts, start=2):
        side = x.shape[axis] // count
        x = x.unfold(axis, side, side)
    return x.flatten(5).flatten(1, 4)


def _quantiles(values: Tensor, inside: Tensor) -> Tensor:
    """Return quantiles `(P B, N, Q)` of the values `(P B, N, V)` that lie inside `(B, N, V)`.

    Their levels are Chebyshev nodes, close together near 0 and 1: disease often changes a hundredth
    of the voxels, or less.
    """
    angles = torch.pi * (torch.arange(QUANTILES, device=values.device) + 0.5) / QUANTILES
    levels = (1 - angles.cos()) / 2
    ranks = (levels * inside.sum(-1, keepdim=True)).long()
    draws = len(values) // len(inside)
    inside, ranks = inside.repeat(draws, 1, 1), ranks.repeat(draws, 1, 1)
    order = _sorted_places(values.detach().masked_fill(~inside, torch.inf), ranks)
    return values.gather(-1, order)


def _sorted_places(values: Tensor, ranks: Tensor) -> Tensor:
    """Return the places `(..., Q)` along the last axis of the values of these ranks."""
    if values.device.type != "cpu":
        return values.argsort(-1).gather(-1, ranks)
    # NumPy sorts four times as fast on a CPU, but no pairs: keys hold the place below the value.
    bits = values.numpy().view(np.int32)
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # of negative floats, the bits fall
    keys = (ascending.astype(np.int64) << 32) | np.arange(values.shape[-1])
    keys.sort(-1)
    return torch.from_numpy(np.take_along_axis(keys, ranks.numpy(), -1) & 0xFFFFFFFF)
