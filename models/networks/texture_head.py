"""Random fields at the output, whose strength and rare events text and place decide."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from models.networks.filters import smooth_noise
from models.networks.layers import PointwiseConv3d

# SD in voxels of the Gaussians that the noise is smoothed with, one random field for each.
FIELD_SIGMAS = (0.0, 0.8, 1.6, 3.2)


class TextureHead(nn.Module):
    """Texture of several widths, and events where a random field exceeds a threshold.

    A convolutional network turns noise into an even texture easily, and into rare and sharp events
    hardly: a tenth of holes in one zone of the lungs came out as a haze there. Geostatistics draws
    such events as excursion sets of Gaussian fields (truncated Gaussian simulation, Matheron et al.
    1987, SPE 16753): where field Z_k exceeds t_k, the material is another one, of density m_k. Then

        v' = v + sum_k H(+-Z_k - t_k) (m_k - v),   v'' = v' + sum_k s_k Z_k.

    Thresholds t_k (the probit of how many voxels are replaced), arctanh m_k and log s_k are linear
    in the features of text and place. The upper tail of a field makes dark events and the lower
    tail dense ones, so both exclude one another. Without features there are next to none: events
    that lungs of all patients have are left to the network.

    Args:
        channels: C of the features.
    """

    START_STRENGTH = 0.02  # of [-1, 1]; a strength of 0 has no gradient
    MAX_LOG_STRENGTH = 3.0  # beside that
    # Features that make effects of a tenth of the range, some 70 HU, must move thresholds by SDs.
    SCALE = 20.0
    THRESHOLD = 3.0  # SD: 0.1 % of the voxels
    START_LEVELS = (-2.1, 0.0)  # arctanh of the densities of dark and dense events
    WIDTH = 0.12  # of the smooth step H, in SD
    # In the backward pass: only voxels near the threshold have a gradient, and there are few.
    BACKWARD_WIDTH = 0.5
    # Of the volume. Beyond 1, the generator's own clamp would end the gradient that leads back.
    LIMIT = 1 - 1e-6
    start_level: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        n = len(FIELD_SIGMAS)
        self.maps = PointwiseConv3d(channels, 5 * n, bias=False)
        start = torch.tensor(self.START_LEVELS).repeat_interleave(n)
        self.register_buffer("start_level", start, persistent=False)

    def forward(self, volume: Tensor, maps: Tensor, noise: Tensor, region: Tensor) -> Tensor:
        """Return the volume in [-1, 1] with texture and events.

        Args:
            volume: `(B, 1, X, Y, Z)` in [-1, 1].
            maps: Log strengths, rates and levels `(B, 5 F, X, Y, Z)`: `maps` of the features.
            noise: `(B, N, X, Y, Z)` standard normal.
            region: `(B, 1, X, Y, Z)`, 1 where there may be texture.
        """
        fields = random_fields(noise)  # (B, F, X, Y, Z)
        n = fields.shape[1]
        log_strength, rate, level = (self.SCALE * maps).split([n, 2 * n, 2 * n], 1)
        excess = torch.cat([fields, -fields], 1) - self.THRESHOLD + rate
        step = (excess / self.BACKWARD_WIDTH).sigmoid()
        step = step + ((excess / self.WIDTH).sigmoid() - step).detach()
        levels = (level + self.start_level[:, None, None, None]).tanh()
        for share, level in zip((region * step).split(1, 1), levels.split(1, 1), strict=True):
            volume = volume + share * (level - volume)
        log_strength = clamp_inward(log_strength, -math.inf, self.MAX_LOG_STRENGTH)
        strength = self.START_STRENGTH * log_strength.exp()
        volume = volume + region * (strength * fields).sum(1, keepdim=True)
        return clamp_inward(volume, -self.LIMIT, self.LIMIT)


def random_fields(noise: Tensor) -> Tensor:
    """Return Gaussian fields of SD 1 and of growing width, `(B, F, X, Y, Z)`.

    Each comes from a noise channel of its own, as far as there are enough.
    """
    fields = []
    for k, sigma in enumerate(FIELD_SIGMAS):
        field = noise[:, k % noise.shape[1], None]
        if sigma:
            field = smooth_noise(field, sigma)
        fields.append(field)
    return torch.cat(fields, 1)


def clamp_inward(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp values, with the gradient that leads back between the bounds.

    Without one, what is beyond a bound in every voxel stays there for good; with one that leads
    further out, to no effect, it runs away.
    """
    return _ClampInward.apply(x, low, high) if torch.is_grad_enabled() else x.clamp(low, high)


class _ClampInward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        # A descent subtracts the gradient.
        outward = ((x > high) & (gradient < 0)) | ((x < low) & (gradient > 0))
        return gradient.masked_fill(outward, 0), None, None
