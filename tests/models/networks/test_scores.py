"""Scores of two draws are best for the true distribution, where a distance is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.networks.filters import gaussian_smooth
from models.networks.scores import QUANTILES, _quantiles, mean_score, patch_score, quantile_score

SHAPE = (4, 1, 24, 24, 24)
Draw = Callable[[torch.Generator], Tensor]


def noise(sd: float, mean: float = 0.0) -> Draw:
    return lambda generator: mean + sd * torch.randn(SHAPE, generator=generator)


def holes(share: float, depth: float = -1.0) -> Draw:
    """Fine noise with holes in a share of the voxels."""

    def draw(generator: torch.Generator) -> Tensor:
        dark = torch.rand(SHAPE, generator=generator) < share
        return 0.1 * torch.randn(SHAPE, generator=generator) + depth * dark

    return draw


def expected(score: Callable[[Tensor, Tensor, Tensor], Tensor], model: Draw, truth: Draw) -> float:
    """Return the score of a model where scans are drawn from the truth, averaged over draws."""
    generator = torch.Generator().manual_seed(0)
    values = [score(model(generator), model(generator), truth(generator)).item() for _ in range(6)]
    return sum(values) / len(values)


def weights() -> Tensor:
    return torch.ones(SHAPE)


def test_mean_score_asks_for_the_mean_and_leaves_the_spread_alone() -> None:
    def score(first: Tensor, second: Tensor, real: Tensor) -> Tensor:
        return mean_score(first, second, real, weights())

    truth = noise(0.2)
    for sd in (0.0, 0.2, 0.4):
        assert expected(score, noise(sd), truth) == pytest.approx(0.04, abs=0.002)
    assert expected(score, noise(0.2, mean=0.1), truth) == pytest.approx(0.05, abs=0.003)


def test_mean_score_is_least_at_the_mean_of_a_sparse_effect() -> None:
    # 20 % of the voxels are 1 denser: the mean is 0.2, and the median 0.
    real = (torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.2).float()
    level = torch.zeros((), requires_grad=True)
    volume = level.expand(SHAPE)
    mean_score(volume, volume, real, weights()).backward()
    assert level.grad is not None
    assert level.grad.item() / -2 == pytest.approx(real.mean().item(), rel=1e-4)


@pytest.mark.parametrize("score", [patch_score, quantile_score])
def test_the_true_spread_has_the_best_score(
    score: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> None:
    def of_draws(first: Tensor, second: Tensor, real: Tensor) -> Tensor:
        return score(first, second, real, weights())

    by_sd = {sd: expected(of_draws, noise(sd), noise(0.2)) for sd in (0.0, 0.1, 0.2, 0.3)}
    assert min(by_sd, key=lambda sd: by_sd[sd]) == 0.2


def test_quantiles_see_a_few_holes_that_patches_hardly_see() -> None:
    def gain(score: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> float:
        def of_draws(first: Tensor, second: Tensor, real: Tensor) -> Tensor:
            return score(first, second, real, weights())

        truth = holes(0.02)
        with_holes, without = (expected(of_draws, holes(p), truth) for p in (0.02, 0.0))
        assert with_holes < without
        return 1 - with_holes / without

    assert gain(quantile_score) > 0.5 > 3 * gain(patch_score)


def test_only_the_region_counts() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second, real = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    region = torch.zeros(SHAPE)
    region[:, :, :12] = 1
    before = quantile_score(first, second, real, region)
    first[:, :, 13 + 8 :] += 5  # beyond the reach of the smoothing
    assert quantile_score(first, second, real, region).item() == pytest.approx(before.item())
    assert quantile_score(first, second, real, torch.zeros(SHAPE)).item() == 0


@pytest.mark.parametrize("score", [patch_score, quantile_score])
def test_the_score_of_a_batch_is_the_mean_of_its_samples(
    score: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> None:
    """However much of each lies in the region."""
    generator = torch.Generator().manual_seed(3)
    first, second, real = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    region = torch.zeros(SHAPE)
    region[0], region[1, :, 4:] = 1, 1
    region[2, :, :, 10:20, :12] = 1  # and none of the last
    parts = zip(*(x.split(1) for x in (first, second, real, region)), strict=True)
    apart = [score(*part) for part in parts]
    torch.testing.assert_close(score(first, second, real, region), torch.stack(apart).mean())
    assert apart[0] != apart[2]


def test_smoothing_keeps_a_constant_and_the_mean_of_a_ramp() -> None:
    ramp = torch.arange(24.0).expand(1, 1, 24, 24, 24)
    smooth = gaussian_smooth(ramp, 1.6)
    assert torch.allclose(smooth[..., 6:-6], ramp[..., 6:-6], atol=1e-4)


def test_quantiles_are_those_of_the_sorted_values_inside() -> None:
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(2, 3, 200, generator=generator, requires_grad=True)
    inside = torch.rand(1, 3, 200, generator=generator) < 0.5
    quantiles = _quantiles(values, inside)
    assert quantiles.shape == (2, 3, QUANTILES)
    for draw in range(2):
        for block in range(3):
            ordered = values[draw, block][inside[0, block]].sort().values
            ranks = torch.searchsorted(ordered, quantiles[draw, block].contiguous())
            torch.testing.assert_close(ordered[ranks], quantiles[draw, block])
            assert ranks[0] == 0 and ranks[-1] == len(ordered) - 1
            assert (ranks.diff() >= 0).all()
    quantiles.sum().backward()  # every quantile's gradient reaches the voxel it came from
    assert values.grad is not None
    assert values.grad.sum() == quantiles.numel()
    assert not values.grad[:, ~inside[0]].any()
