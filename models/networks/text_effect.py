"""The text's effect at the output: a mean that adds up, and texture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.condition import input_channels, organ_region, repeat_batch
from models.networks.filters import box_mean
from models.networks.fusion import FUSIONS, FusionUnit
from models.networks.layers import PointwiseConv3d
from models.networks.texture_head import TextureHead
from models.text.base_encoder import TextEmbedding
from options.train_options import GeneratorOptions


class TextResidualHead(nn.Module):
    """Effect of the text on a volume: a fusion unit's change of the last features, as one channel.

    With the additive unit, effects of phrases add up in HU. It learns the mean of an effect, beside
    the units within the network, which change texture. With few patients, a network that may
    combine phrases freely memorises combinations, such as an effect of age that is larger in
    smokers although it is not.

    The last features serve the anatomy and hold little about a voxel's position. With
    `text_position`, the unit also receives the position and the labels. Without them it takes
    thousands of steps to learn that an effect belongs to the lung bases, to the subpleural lung, or
    not to the airways. The position also enters as Fourier features, because perceptrons learn high
    frequencies slowly (Tancik et al. 2020, arXiv 2006.10739).

    Args:
        n_labels: K, channels of the one-hot mask.
        text_width: Width of the text embedding.
        options: Width, fusion, coordinates and position.
        body: Channel of the body in the mask, if there is one.
    """

    # Voxels: the mean of the mask over such cubes shows the depth below its surface.
    MASK_KERNELS = (5, 9)
    # Frequencies 2^k pi: waves of the length of the volume, of its half ... A lung has about the
    # height of one wave.
    FREQUENCIES = 2
    # Coordinates differ by about 1 from the top to the bottom of a lung, and an effect may end
    # within a third of that.
    COORD_SCALE = 8.0
    HIDDEN = 64  # channels of the perceptron

    def __init__(
        self, n_labels: int, text_width: int, options: GeneratorOptions, body: int | None = None
    ) -> None:
        super().__init__()
        self.body = body
        fusion = options.fusion if options.fusion_at == "output" else "additive"
        self.fusion: FusionUnit = FUSIONS[fusion](options.ngf, text_width, options)
        self.head = PointwiseConv3d(options.ngf, 1, bias=False)
        textured = options.text_texture and options.noise_channels > 0
        self.texture = TextureHead(options.ngf) if textured else None
        self.n_labels = n_labels
        self.place: nn.Sequential | None = None
        if options.text_position:
            positions = input_channels(options, n_labels) - n_labels + len(self.MASK_KERNELS)
            features = n_labels + positions * (1 + 2 * self.FREQUENCIES)
            self.place = nn.Sequential(
                PointwiseConv3d(features, self.HIDDEN),
                nn.SiLU(),
                PointwiseConv3d(self.HIDDEN, options.ngf),
            )

    def forward(
        self,
        volume: Tensor,
        x: Tensor,
        noise: Tensor,
        text: TextEmbedding,
        region: Tensor | None,
        place: Tensor | None,
    ) -> Tensor:
        """Return the volume with the text's effect and texture, `(P B, 1, X, Y, Z)`.

        Args:
            volume: The volume without, `(P B, 1, X, Y, Z)` in units of [-1, 1].
            x: Last features `(P B, ngf, X, Y, Z)`.
            noise: `(P B, noise_channels, X, Y, Z)` standard normal.
            text: Embedding of P B prompts; its `weight` scales the gradient, not the value.
            region: `(P B, 1, X, Y, Z)`, 1 where text has an effect; None for everywhere.
            place: Features of `places`, of B conditions.
        """
        if place is not None:
            x = x + repeat_batch(place, len(x) // len(place))
        weights = [self.head.weight]
        if self.texture is not None:
            weights.append(self.texture.maps.weight)
        change = self.fusion.projected_residual(x, text, torch.cat(weights))
        if text.weight is not None:
            change = torch.lerp(change.detach(), change, text.weight[:, None, None, None, None])
        inside = torch.ones_like(volume) if region is None else region
        volume = volume + inside * change[:, :1]
        return (
            volume if self.texture is None else self.texture(volume, change[:, 1:], noise, inside)
        )

    def places(self, condition: Tensor) -> Tensor | None:
        """Return features `(B, ngf, X, Y, Z)` of each voxel's position, without text.

        Args:
            condition: `(B, K, X, Y, Z)` one-hot mask, with coordinates if they are used.
        """
        return None if self.place is None else self.place(self.position_features(condition))

    def position_features(self, condition: Tensor) -> Tensor:
        """Return labels, positions and their Fourier features, `(B, n, X, Y, Z)`.

        Positions are the coordinates, if they are used, and the share of the mask in cubes around
        the voxel.
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
        features = self.COORD_SCALE * torch.cat([labels, position, *fourier_features], 1)
        return features.contiguous(memory_format=torch.channels_last_3d)
