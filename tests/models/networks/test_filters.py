"""Filters by matrix products equal the poolings and convolutions they stand for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.layers import gaussian_1d, separable_filtering

from models.networks.filters import TRUNCATE, box_mean, gaussian_smooth, smooth_noise


def volume() -> torch.Tensor:
    return torch.randn(2, 1, 9, 12, 7, generator=torch.Generator().manual_seed(0))


def test_a_box_is_a_mean_of_the_voxels_that_are_there() -> None:
    x = volume()
    pooled = F.avg_pool3d(x, 5, 1, 2, count_include_pad=False)
    torch.testing.assert_close(box_mean(x, 5), pooled)


def test_smoothing_is_a_convolution_whose_border_is_repeated() -> None:
    x = volume()
    kernel = gaussian_1d(torch.tensor(1.6), TRUNCATE, approx="sampled", normalize=True)
    expected = separable_filtering(x, [kernel] * 3, mode="replicate")
    torch.testing.assert_close(gaussian_smooth(x, 1.6), expected)


def test_a_filter_that_generation_used_first_serves_training() -> None:
    x = torch.rand(1, 1, 5, 6, 13)
    with torch.inference_mode():
        smooth_noise(x, 2.3)
    x.requires_grad_()
    smooth_noise(x, 2.3).square().sum().backward()
    assert x.grad is not None and x.grad.abs().min() > 0
