"""What is known of each voxel's place, and effects of the text that are linear in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.condition import organ_region
from models.networks.filters import box_mean
from models.text.base_encoder import TextEmbedding
from options.train_options import GeneratorOptions


class PlaceFeatures:
    """Labels, positions and their Fourier features of each voxel.

    Positions are the coordinates, if they are used, and the share of the mask in cubes around the
    voxel. They also enter as Fourier features, because perceptrons learn high frequencies slowly
    (Tancik et al. 2020, arXiv 2006.10739).

    Args:
        options: Whether coordinates are used.
        n_labels: K, channels of the mask.
        body: Channel of the body in the mask, if there is one.

    Attributes:
        count: n, the number of features.
    """

    # Voxels: the mean of the mask over such cubes shows the depth below its surface.
    MASK_KERNELS = (5, 9)
    # Frequencies 2^k pi: waves of the length of the volume, of its half ... A lung has about the
    # height of one wave.
    FREQUENCIES = 2

    def __init__(self, options: GeneratorOptions, n_labels: int, body: int | None) -> None:
        self.n_labels, self.body = n_labels, body
        positions = 3 * options.coord_channels + len(self.MASK_KERNELS)
        self.count = n_labels + positions * (1 + 2 * self.FREQUENCIES)

    def __call__(self, condition: Tensor) -> Tensor:
        """Return the features `(B, n, X, Y, Z)`.

        Args:
            condition: `(B, K, X, Y, Z)` mask, with coordinates behind it if they are used.
        """
        inside = organ_region(condition, self.body)
        largest = min(condition.shape[2:]) // 2 * 2 - 1  # a cube must not be wider than the tile
        positions = [condition[:, self.n_labels :]]
        for kernel in self.MASK_KERNELS:
            size = min(kernel, largest)
            positions.append(2 * box_mean(inside, size) - 1)
        position = torch.cat(positions, 1)
        fourier_features = []
        for k in range(self.FREQUENCIES):
            angle = torch.pi * 2**k * position
            fourier_features += [angle.sin(), angle.cos()]
        labels = condition[:, : self.n_labels]
        features = torch.cat([labels, position, *fourier_features], 1)
        return features.contiguous(memory_format=torch.channels_last_3d)


class PlaceEffect(nn.Module):
    """Change of a volume that is linear in the text and in features of the place.

    At voxel v with features f_k(v), a prompt with embedding t changes the volume by
    sum_k w_k(t) f_k(v), w linear. A perceptron first learns an effect that is alike everywhere, and
    where it is much later: by then, the units within the network have taken the effect over,
    everywhere alike too. This term learns all f_k equally fast.

    Args:
        features: n, features of a place.
        text_width: Width of the text embedding.
    """

    SCALE = 0.25  # Adam's step is the same for each weight; with 1, 24 patients decided too much

    def __init__(self, features: int, text_width: int) -> None:
        super().__init__()
        self.scale = self.SCALE * text_width**-0.5
        self.weights = nn.Linear(text_width, features, bias=False)
        nn.init.zeros_(self.weights.weight)

    def forward(self, features: Tensor, text: TextEmbedding) -> Tensor:
        """Return the change `(P B, 1, X, Y, Z)` for features `(B, n, X, Y, Z)`."""
        weights = self.weights(self.scale * text.pooled)  # (P B, n)
        draws = weights.unflatten(0, (-1, len(features)))
        return torch.einsum("pbn,bnxyz->pbxyz", draws, features).flatten(0, 1)[:, None]
