"""The text's effect at the output: a mean that adds up, and texture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.networks.condition import repeat_batch
from models.networks.fusion import FUSIONS, FusionUnit
from models.networks.layers import PointwiseConv3d, in_slabs
from models.networks.places import PlaceEffect, PlaceFeatures
from models.networks.texture_head import TextureHead
from models.text.base_encoder import TextEmbedding
from options.train_options import GeneratorOptions

SLAB = 8  # voxels along x that the perceptron, which is wide, takes at once


@dataclass(frozen=True)
class Places:
    """What is known of each voxel's place, without text.

    Attributes:
        features: Labels, positions and their Fourier features, `(B, n, X, Y, Z)`.
        embedded: A perceptron of them, `(B, ngf, X, Y, Z)`.
    """

    features: Tensor
    embedded: Tensor


class TextResidualHead(nn.Module):
    """Effect of the text on a volume: a fusion unit's change of the last features, as one channel.

    With the additive unit, effects of phrases add up in HU. It learns the mean of an effect, beside
    the units within the network, which change texture. With few patients, a network that may
    combine phrases freely memorises combinations, such as an effect of age that is larger in
    smokers although it is not.

    The last features serve the anatomy and hold little about a voxel's position. With
    `text_position`, the unit also receives the position and the labels. Without them it takes
    thousands of steps to learn that an effect belongs to the lung bases, to the subpleural lung, or
    not to the airways (see `PlaceFeatures`).

    Args:
        n_labels: K, channels of the one-hot mask.
        text_width: Width of the text embedding.
        options: Width, fusion, coordinates and position.
        body: Channel of the body in the mask, if there is one.
    """

    # Coordinates differ by about 1 from the top to the bottom of a lung, and an effect may end
    # within a third of that.
    COORD_SCALE = 8.0
    HIDDEN = 64  # channels of the perceptron

    def __init__(
        self, n_labels: int, text_width: int, options: GeneratorOptions, body: int | None = None
    ) -> None:
        super().__init__()
        fusion = options.fusion if options.fusion_at == "output" else "additive"
        self.fusion: FusionUnit = FUSIONS[fusion](options.ngf, text_width, options)
        self.head = PointwiseConv3d(options.ngf, 1, bias=False)
        textured = options.text_texture and options.noise_channels > 0
        self.texture = TextureHead(options.ngf) if textured else None
        self.place_features = PlaceFeatures(options, n_labels, body)
        self.place: nn.Sequential | None = None
        self.linear: PlaceEffect | None = None
        if options.text_position:
            self.place = nn.Sequential(
                PointwiseConv3d(self.place_features.count, self.HIDDEN),
                nn.SiLU(),
                PointwiseConv3d(self.HIDDEN, options.ngf),
            )
            if options.text_linear:
                self.linear = PlaceEffect(self.place_features.count, text_width)

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
        features = self.place_features(condition)
        place = self.place
        embedded = in_slabs(lambda slab: place(self.COORD_SCALE * slab), features, 2, SLAB)
        return Places(features, embedded)
