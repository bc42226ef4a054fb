"""Texture and rare events at the output follow features and place."""

from __future__ import annotations

import pytest
import torch

from models.networks.scores import quantile_score
from models.networks.texture_head import FIELD_SIGMAS, TextureHead, clamp_inward, random_fields

SHAPE = (16, 16, 16)
TISSUE = -0.8  # of [-1, 1]
HOLE = -0.97


def noise(n: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 4, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_fields_have_unit_sd_and_growing_width() -> None:
    fields = random_fields(noise(64))
    assert fields.shape == (64, len(FIELD_SIGMAS), *SHAPE)
    inside = fields[..., 4:-4, 4:-4, 4:-4]
    assert inside.std((0, 2, 3, 4)).tolist() == pytest.approx([1, 1, 1, 1], abs=0.1)
    neighbours = (inside[..., 1:] * inside[..., :-1]).mean((0, 2, 3, 4))
    assert neighbours[0].abs() < 0.03 and neighbours[0] + 0.3 < neighbours[1]
    assert neighbours[1] + 0.2 < neighbours[2]


def test_fewer_noise_channels_than_fields() -> None:
    assert random_fields(noise()[:, :1]).shape == (1, len(FIELD_SIGMAS), *SHAPE)


def test_voxels_outside_the_region_stay() -> None:
    region = torch.zeros(1, 1, *SHAPE)
    region[..., :8] = 1
    volume = torch.full((1, 1, *SHAPE), TISSUE)
    head = TextureHead(2)
    changed = head(volume, head.maps(torch.zeros(1, 2, *SHAPE)), noise(), region)
    assert torch.equal(changed[..., 8:], volume[..., 8:])
    assert (changed[..., :8] - TISSUE).std() > 0.01


def test_the_text_sets_how_many_voxels_are_replaced_and_where() -> None:
    """Holes in the lower half of volumes whose feature is 1: their share is learned, not a haze."""
    torch.manual_seed(0)
    head = TextureHead(2)
    optimiser = torch.optim.Adam(head.parameters(), 0.05)
    place = torch.zeros(1, 1, *SHAPE)
    place[:, :, :8] = 1
    region = torch.ones(1, 1, *SHAPE)
    volume = torch.full((1, 1, *SHAPE), TISSUE)
    draws = torch.Generator().manual_seed(1)

    def maps(ill: float) -> torch.Tensor:
        return head.maps(0.05 * torch.cat([ill * place, ill * (1 - place)], 1))

    for step in range(100):
        ill = float(step % 2)
        holes = torch.rand(1, 1, *SHAPE, generator=draws) < 0.12 * ill * place
        texture = 0.02 * torch.randn(volume.shape, generator=draws)
        real = torch.where(holes, HOLE, volume + texture)
        first, second = (head(volume, maps(ill), noise(1, 2 * step + k), region) for k in (0, 1))
        loss = torch.zeros(())
        for half in (slice(0, 8), slice(8, 16)):
            parts = (x[:, :, half] for x in (first, second, real, region))
            loss = loss + 100 * quantile_score(*parts)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def share(ill: float) -> tuple[float, float]:
        dark = (head(volume, maps(ill), noise(1, 999), region) < -0.9).float()
        return float(dark[:, :, :8].mean()), float(dark[:, :, 8:].mean())

    lower, upper = share(1.0)
    assert 0.08 < lower < 0.16, lower
    assert upper < 0.02 and max(share(0.0)) < 0.02


def test_strengths_above_their_cap_find_back() -> None:
    torch.manual_seed(0)
    head = TextureHead(1)
    with torch.no_grad():
        head.maps.weight.zero_()
        head.maps.weight[:4] = 0.2  # log strengths of 4
    volume = torch.full((1, 1, 12, 12, 12), -0.7)
    ones = torch.ones_like(volume)
    changed = head(volume, head.maps(ones), torch.randn(1, 4, 12, 12, 12), ones)
    assert changed.abs().max() <= 1
    (changed.clamp(-1, 1) - volume).square().mean().backward()
    assert head.maps.weight.grad is not None
    assert (head.maps.weight.grad[:4] > 0.1).all()


def test_a_clamp_has_the_gradient_that_leads_back() -> None:
    x = torch.tensor([-3.0, -3.0, 0.2, 3.0, 3.0], requires_grad=True)
    y = clamp_inward(x, -1, 1)
    assert torch.equal(y, x.clamp(-1, 1))
    y.backward(torch.tensor([-1.0, 1.0, 1.0, 1.0, -1.0]))  # a descent goes the other way
    assert x.grad is not None and x.grad.tolist() == [-1, 0, 1, 1, 0]
    with torch.no_grad():
        assert torch.equal(clamp_inward(x, -1, 1), y)
