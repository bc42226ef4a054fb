"""Voxels that text may change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.networks.text_region import lung_region


@pytest.mark.parametrize(
    ("body_channel", "expected"), [(None, [0, 1, 1, 1, 1]), (4, [0, 1, 1, 1, 0])]
)
def test_text_stays_out_of_the_background_and_the_body(
    body_channel: int | None, expected: list[int]
) -> None:
    labels = torch.arange(5).view(1, 5, 1, 1)
    mask = F.one_hot(labels, 5).permute(0, 4, 1, 2, 3).float()
    region = lung_region(mask, body_channel)
    assert region.shape == (1, 1, 5, 1, 1) and region.flatten().tolist() == expected
