"""A GAN edits a scan by the difference of two generated volumes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.base_model import MODELS, Condition
from models.inference import RUN_ENTRIES  # noqa: F401  (registers the models)
from models.text.base_encoder import TextEmbedding
from tests.networks import LABELS, WIDTH, train_options

SIZE = (8, 8, 8)


def tiler(function: Any, *volumes: Tensor) -> Tensor:
    result: Tensor = function(*volumes)
    return result


def condition(seed: int) -> Condition:
    mask = torch.zeros(1, LABELS, *SIZE)
    mask[:, 0, :4] = 1
    mask[:, 1, 4:] = 1
    tokens = torch.randn(1, 1, WIDTH, generator=torch.Generator().manual_seed(seed))
    text = TextEmbedding(tokens, torch.ones(1, 1, dtype=torch.bool), tokens.sum(1))
    return Condition(mask, torch.zeros(1, 3, *SIZE), text)


@torch.no_grad()
def test_a_scan_is_kept_and_the_difference_of_two_texts_is_added() -> None:
    torch.manual_seed(0)
    gan = MODELS["pix2pixhd"](train_options(), LABELS, WIDTH, training=False)
    for parameter in gan.raw["G"].parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    gan.check_editing()
    scan = 0.2 * torch.randn(1, 1, *SIZE)
    factual, other = condition(1), condition(2)
    state = gan.invert(scan, factual, 1.0, tiler)
    assert gan.regenerate(state, factual, 1.0, tiler).sub(scan).abs().max() < 1e-5
    edited = gan.regenerate(state, other, 1.0, tiler)
    assert edited[:, :, 4:].sub(scan[:, :, 4:]).abs().max() > 1e-3
    assert torch.equal(edited, gan.regenerate(state, other, 1.0, tiler))  # one noise for all
    half_state = gan.invert(scan, factual, 0.5, tiler)
    half = gan.regenerate(half_state, other, 0.5, tiler)
    assert (half - scan).norm().item() == pytest.approx((edited - scan).norm().item() / 2, rel=0.02)
