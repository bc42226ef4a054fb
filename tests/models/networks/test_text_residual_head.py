"""What text adds to a volume: where, and how soon it is learnt."""

from __future__ import annotations

import pytest
import torch

from models.networks.generator import TextResidualHead
from tests.networks import LABELS, WIDTH, batch, text, train_options, wake


@pytest.mark.parametrize("place", [True, False])
def test_what_text_adds_may_depend_on_the_place_alone(place: bool) -> None:
    """Where the last features say nothing, only the place can tell bases from top, rim from core,
    and labels apart.
    """
    options = train_options(text_position=place).generator
    effect = TextResidualHead(LABELS, WIDTH, options)
    wake(effect)
    made = batch(train_options(), 2, (16, 16, 16))
    inside = torch.zeros(2, LABELS, 16, 16, 16)
    inside[:, 0], inside[:, 1, 4:12, 4:12] = 1, 1
    inside[:, 0, 4:12, 4:12] = 0
    features = torch.ones(2, options.ngf, 16, 16, 16)
    added = effect(features, text(), 1 - inside[:, :1], torch.cat([inside, made["coords"]], 1))[
        0, 0
    ].detach()
    assert not added[:4].any()  # outside the mask
    along, across = added[8, 8], added[4:8, 8, 8]
    for line in (along, across):
        assert (float(line.max() - line.min()) > 1e-4) is place
    other = inside[:, [0, 2, 1, 3]]
    relabelled = effect(features, text(), 1 - inside[:, :1], torch.cat([other, made["coords"]], 1))[
        0, 0
    ].detach()
    assert torch.allclose(relabelled[8, 8], along, atol=1e-4) is not place


def test_an_effect_that_ends_within_the_lungs_is_learnt_in_few_steps() -> None:
    """A perceptron on plain coordinates is left with a ramp from top to bottom for hundreds of
    steps.
    """
    options = train_options(fusion="additive", text_hidden=0, ngf=16).generator
    torch.manual_seed(0)
    effect = TextResidualHead(2, WIDTH, options)
    height = torch.linspace(-0.5, 0.5, 24).expand(1, 1, 8, 8, 24)
    lungs = torch.ones_like(height)
    condition = torch.cat([1 - lungs, lungs, torch.zeros(1, 2, 8, 8, 24), height], 1)
    said, features = text(1), torch.zeros(1, options.ngf, 8, 8, 24)
    planted = 0.1 * torch.sigmoid((height - 0.1) / 0.05)  # some 60 HU above, nothing below
    adam = torch.optim.Adam(effect.parameters(), betas=(0.5, 0.999))
    for step in range(100):
        adam.param_groups[0]["lr"] = 3e-3 * (1 - step / 100)
        adam.zero_grad()
        error = (effect(features, said, lungs, condition) - planted).square().mean()
        error.backward()
        adam.step()
    assert float(error.detach()) ** 0.5 < 0.005
