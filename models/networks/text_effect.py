"""The text's effect at the output: a mean that adds up, and texture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.networks.condition import input_channels, organ_region, repeat_batch
from models.networks.filters import box_mean
from models.networks.fusion import FUSIONS, FusionUnit
from models.networks.layers import PointwiseConv3d
from models.networks.texture_head import TextureHead
from models.text.base_encoder import TextEmbedding
from options.train_options import GeneratorOptions


@dataclass(frozen=True)
class Places:
    """What is known of each voxel's place, without text.

    Attributes:
        features: Labels, positions and their Fourier features, `(B, n, X, Y, Z)`.
        embedded: A perceptron of them, `(B, ngf, X, Y, Z)`.
    """

    features: Tensor
    embedded: Tensor


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
        self.linear: PlaceEffect | None = None
        if options.text_position:
            positions = input_channels(options, n_labels) - n_labels + len(self.MASK_KERNELS)
            features = n_labels + positions * (1 + 2 * self.FREQUENCIES)
            self.place = nn.Sequential(
                PointwiseConv3d(features, self.HIDDEN),
                nn.SiLU(),
                PointwiseConv3d(self.HIDDEN, options.ngf),
            )
            if options.text_linear:
                self.linear = PlaceEffect(features, text_width)

    def forward(
        self,
        volume: Tensor,
        x: Tensor,
        noise: Tensor,
        text: TextEmbedding,
        region: Tensor | None,
        places: Places | None,
    ) -> Tensor:
        """Return the volume with the text's effect and texture, `(P B, 1, X, Y, Z)`.

        Args:
            volume: The volume without, `(P B, 1, X, Y, Z)` in units of [-1, 1].
            x: Last features `(P B, ngf, X, Y, Z)`.
            noise: `(P B, noise_channels, X, Y, Z)` standard normal.
            text: Embedding of P B prompts; its `weight` scales the gradient, not the value.
            region: `(P B, 1, X, Y, Z)`, 1 where text has an effect; None for everywhere.
            places: Places of B conditions.
        """
        if places is not None:
            x = x + repeat_batch(places.embedded, len(x) // len(places.embedded))
        # Mean and texture share the unit: where events change the mean, its error teaches their
        # place, which the distribution of values alone teaches badly.
        weights = [self.head.weight]
        if self.texture is not None:
            weights.append(self.texture.maps.weight)
        change = self.fusion.projected_residual(x, text, torch.cat(weights))
        mean, maps = change[:, :1], change[:, 1:]
        if self.linear is not None and places is not None:
            mean = mean + self.linear(places.features, text)
        if text.weight is not None:
            weight = text.weight[:, None, None, None, None]
            mean, maps = (torch.lerp(t.detach(), t, weight) for t in (mean, maps))
        inside = torch.ones_like(volume) if region is None else region
        volume = volume + inside * mean
        return volume if self.texture is None else self.texture(volume, maps, noise, inside)

    def places(self, condition: Tensor) -> Places | None:
        """Return what is known of each voxel's place; None if the text's residual has no position.

        Args:
            condition: `(B, K, X, Y, Z)` one-hot mask, with coordinates if they are used.
        """
        if self.place is None:
            return None
        features = self.position_features(condition)
        embedded = self.place(self.COORD_SCALE * features)
        return Places(features, embedded)

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
        features = torch.cat([labels, position, *fourier_features], 1)
        return features.contiguous(memory_format=torch.channels_last_3d)
