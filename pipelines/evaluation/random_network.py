"""Fixed random convolutional network: features without learned weights, equal on all machines."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SEED = 20241018
CHANNELS = (16, 24, 32)


class RandomNetwork(nn.Module):
    """Three random convolutions, each followed by pooling; features are mean and SD of channels.

    Random filters separate textures and densities (Saxe et al. 2011), but not anatomy. Biases are
    spread over the range of values, so that every part of the HU scale moves some feature.

    Args:
        dimensions: 2 for slices `(N, 1, H, W)`, 3 for volumes `(N, 1, X, Y, Z)`, in [-1, 1].
        seed: Seed of the weights; metrics of different seeds cannot be compared.
    """

    def __init__(self, dimensions: int, seed: int = SEED) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        kind = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.dimensions = dimensions
        self.layers = nn.ModuleList()
        width = 1
        for channels in CHANNELS:
            layer = kind(width, channels, 3, padding=1, padding_mode="replicate")
            with torch.no_grad():
                fan = width * 3**dimensions
                layer.weight.copy_(
                    torch.randn(layer.weight.shape, generator=generator) * (2 / fan) ** 0.5
                )
                layer.bias = nn.Parameter(torch.rand(channels, generator=generator) * 2 - 1)
            self.layers.append(layer)
            width = channels

    def forward(self, images: Tensor) -> Tensor:
        """Return features `(N, 144)`."""
        features = []
        axes = tuple(range(2, 2 + self.dimensions))
        pool = F.avg_pool2d if self.dimensions == 2 else F.avg_pool3d
        for layer in self.layers:
            images = F.relu(layer(images))
            features += [images.mean(axes), images.std(axes, correction=0)]
            if min(images.shape[2:]) > 1:
                images = pool(images, 2)
        return torch.cat(features, 1)
