"""The residual head of the text: position, and speed of learning."""

from __future__ import annotations

import pytest
import torch

from models.networks.places import PlaceEffect
from models.networks.text_effect import TextResidualHead
from tests.networks import LABELS, WIDTH, batch, text, train_options, wake


@pytest.mark.parametrize("position", [True, False])
def test_the_effect_can_depend_on_the_position_alone(position: bool) -> None:
    """With constant features, only the position distinguishes bases, surface and labels."""
    options = train_options(text_position=position, text_texture=False).generator
    effect = TextResidualHead(LABELS, WIDTH, options)
    wake(effect)
    coords = batch(train_options(), 2, (16, 16, 16))["coords"]
    mask = torch.zeros(2, LABELS, 16, 16, 16)
    mask[:, 0] = 1
    mask[:, 1, 4:12, 4:12] = 1
    mask[:, 0, 4:12, 4:12] = 0
    features = torch.ones(2, options.ngf, 16, 16, 16)
    region = 1 - mask[:, :1]
    volume = torch.zeros_like(region)
    with torch.no_grad():
        places = effect.places(torch.cat([mask, coords], 1))
        added = effect(volume, features, volume, text(), region, places)[0, 0]
        swapped = effect.places(torch.cat([mask[:, [0, 2, 1, 3]], coords], 1))
        relabelled = effect(volume, features, volume, text(), region, swapped)[0, 0]
    assert not added[:4].any()  # outside the mask
    for line in (added[8, 8], added[4:8, 8, 8]):
        assert (float(line.max() - line.min()) > 1e-4) is position
    assert torch.allclose(relabelled[8, 8], added[8, 8], atol=1e-4) is not position


def test_an_effect_that_ends_within_the_lungs_is_learnt_in_few_steps() -> None:
    """A perceptron without Fourier features keeps a ramp from top to bottom for 100s of steps."""
    options = train_options(fusion="additive", text_hidden=0, ngf=16, text_texture=False).generator
    torch.manual_seed(0)
    effect = TextResidualHead(2, WIDTH, options)
    height = torch.linspace(-0.5, 0.5, 24).expand(1, 1, 8, 8, 24)
    lungs = torch.ones_like(height)
    volume = torch.zeros_like(height)
    condition = torch.cat([1 - lungs, lungs, torch.zeros(1, 2, 8, 8, 24), height], 1)
    embedding = text(1)
    features = torch.zeros(1, options.ngf, 8, 8, 24)
    planted = 0.1 * torch.sigmoid((height - 0.1) / 0.05)  # some 60 HU above, nothing below
    adam = torch.optim.Adam(effect.parameters(), betas=(0.5, 0.999))
    for step in range(100):
        adam.param_groups[0]["lr"] = 3e-3 * (1 - step / 100)
        adam.zero_grad()
        changed = effect(volume, features, volume, embedding, lungs, effect.places(condition))
        error = (changed - planted).square().mean()
        error.backward()
        adam.step()
    assert float(error.detach()) ** 0.5 < 0.005


def test_place_effects_are_linear_in_text_and_place_and_start_at_zero() -> None:
    torch.manual_seed(0)
    effect = PlaceEffect(5, WIDTH)
    features = torch.randn(2, 5, 4, 4, 4)
    prompts = text(4)  # two draws of two conditions
    assert not effect(features, prompts).any()
    wake(effect)
    change = effect(features, prompts).detach()
    assert change.shape == (4, 1, 4, 4, 4)
    torch.testing.assert_close(effect(2 * features, prompts).detach(), 2 * change)
    # The second draw of the second condition has the places of the second condition.
    alone = effect(features[1:], prompts.select(3)).detach()
    torch.testing.assert_close(alone, change[3:])
