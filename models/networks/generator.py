"""Generator of pix2pixHD in 3D: a global generator, local enhancers around it, and text fusion.

Several volumes may be drawn of one condition: mask and coordinates have the batch B, noise and text
P times that, one draw of all conditions after the other. What depends neither on noise nor on text
is then computed once. Shapes in comments leave out the batch: `(channels, size)`, with size 1 for
full resolution, then 1/2, 1/4 ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.condition import fuse, halve_region, input_channels, organ_region, repeat_batch
from models.networks.filters import TUBE_SIGMAS, noise_reach, tube_noise
from models.networks.fusion import FUSIONS, FusionUnit
from models.networks.label_embedding import body_channel, make_label_embedding, mask_channels
from models.networks.layers import (
    NoiseInjection,
    ResBlock,
    ScalarConv3d,
    Upsample,
    acts_per_voxel,
    conv,
    halve_noise,
    maybe_checkpoint,
)
from models.networks.places import PlaceFeatures
from models.networks.text_effect import Places, TextResidualHead
from models.networks.texture_head import FIELD_SIGMAS
from models.text.base_encoder import TextEmbedding
from options.train_options import GeneratorOptions


def size_multiple(options: GeneratorOptions) -> int:
    """Return the number of which sides of patches and tiles, and starts of tiles, are multiples."""
    return 2 ** (options.n_downsample_global + options.n_local_enhancers)


def receptive_halo(options: GeneratorOptions) -> int | None:
    """Return how many voxels beyond its output `Generator.decode` looks; None for all of them.

    Coarse features are counted as an input, where they are multiples of the stride. `encode` looks
    one such multiple beyond its output.
    """
    if not acts_per_voxel(options.norm):
        return None
    enhancers = options.n_local_enhancers
    depth = options.n_downsample_global + enhancers
    reach = 1  # of the head
    largest = max(PlaceFeatures.MASK_KERNELS) // 2 if options.text_position else 0
    if options.text_texture and options.noise_channels:
        largest = max(largest, noise_reach(max(FIELD_SIGMAS)))
    tubes = noise_reach(max(TUBE_SIGMAS)) if has_tubes(options) else 0
    for level in range(depth):
        reach += 1  # of the convolution after the skip connection
        if level <= enhancers and tubes:
            largest = max(largest, (reach + tubes) * 2**level)
        seen = reach  # of the condition, through the encoder of this level
        first = min(level, enhancers)  # where that encoder begins
        for _ in range(level - first):
            seen = 2 * seen + 1
        largest = max(largest, (seen + 1) * 2**first)
        reach = -(-reach // 2)
        if level < enhancers:
            reach += 2 * options.n_blocks_local
            largest = max(largest, (2 * reach + 2) * 2**level)
    return max(largest, reach * 2**depth)


def make_noise(
    channels: int, text_width: int, options: GeneratorOptions, tubes: bool = False
) -> NoiseInjection | None:
    """Build the noise of features with this number of channels; None without noise."""
    if not options.noise_channels:
        return None
    return NoiseInjection(
        channels,
        options.noise_channels,
        text_width if has_gains(options) else 0,
        tubes=len(TUBE_SIGMAS) if tubes and has_tubes(options) else 0,
        around=options.noise_around,
    )


def has_gains(options: GeneratorOptions) -> bool:
    """Return whether the text makes noise stronger or weaker."""
    return options.noise_channels > 0 and options.text_noise and options.fusion != "none"


def has_tubes(options: GeneratorOptions) -> bool:
    """Return whether the global generator's finest noise, and that of enhancers, has tubes."""
    return options.noise_tubes and options.noise_channels > 1 and has_gains(options)


class FusedResBlocks(nn.Module):
    """Residual blocks, then noise and text fusion; the shape stays the same.

    Text, which also scales the noise, enters after the blocks, whose convolutions would carry it
    out of the region.

    Args:
        channels: C of the features.
        blocks: Number of residual blocks.
        text_width: Width of the text embedding.
        options: Norm, padding and fusion.
        fuse: Whether text enters here.
        noisy: Whether noise enters here.
    """

    def __init__(
        self,
        channels: int,
        blocks: int,
        text_width: int,
        options: GeneratorOptions,
        *,
        fuse: bool,
        noisy: bool = False,
    ) -> None:
        super().__init__()
        self.noise = make_noise(channels, text_width, options) if noisy else None
        self.recompute = options.checkpoint_activations
        unit = FUSIONS[options.fusion if fuse else "none"]
        self.fusion: FusionUnit = unit(channels, text_width, options)
        self.blocks = nn.ModuleList(
            ResBlock(channels, options.norm, options.padding) for _ in range(blocks)
        )

    def refine(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x` after the blocks, which see no noise and no text."""
        for block in self.blocks:
            x = maybe_checkpoint(block, self.recompute, x)
        return x

    def forward(
        self, x: Tensor, noise: Tensor, text: TextEmbedding, region: Tensor | None
    ) -> Tensor:
        """`(B, C, X, Y, Z)` to the same shape, or to `(P B, ...)` for noise of P draws."""
        return self.draw(self.refine(x), noise, text, region)

    def draw(self, x: Tensor, noise: Tensor, text: TextEmbedding, region: Tensor | None) -> Tensor:
        """Return refined features with noise and text, `(P B, ...)` for noise of P draws."""
        x = repeat_batch(x, len(noise) // len(x))
        if self.noise is not None:
            x = self.noise(x, noise, text, region)
        return fuse(self.fusion, x, text, region)


class UpBlock(nn.Module):
    """Doubling of resolution: upsampling, skip connection, noise, convolution, text fusion.

    Args:
        c_in: Channels before.
        c_out: Channels after.
        text_width: Width of the text embedding.
        options: Noise, norm, padding and fusion.
        tubes: Whether the noise of the new resolution may come with tubes.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        text_width: int,
        options: GeneratorOptions,
        tubes: bool = False,
    ) -> None:
        super().__init__()
        self.up = Upsample(c_in, c_out)
        self.noise = make_noise(c_out, text_width, options, tubes)
        self.merge = conv(c_out, c_out, options.norm, options.padding)
        unit = FUSIONS[options.fusion if options.fusion_at == "all" else "none"]
        self.fusion: FusionUnit = unit(c_out, text_width, options)

    def forward(
        self,
        x: Tensor,
        skip: Tensor | None,
        noise: Tensor,
        text: TextEmbedding,
        region: Tensor | None,
    ) -> Tensor:
        """`(B, c_in, X, Y, Z)` to `(B, c_out, 2X, 2Y, 2Z)`; all else has the new resolution."""
        x = self.up(x)
        if skip is not None:
            x = x + skip
        if self.noise is not None:
            x = self.noise(x, noise, text, region)
        return fuse(self.fusion, self.merge(x), text, region)


class GlobalGenerator(nn.Module):
    """Encoder, residual blocks and decoder; features `(ngf, 1)` at the resolution of its input.

    Args:
        c_in: Channels of the condition, see `input_channels`.
        ngf: Channels at full resolution; each downsampling doubles them.
        text_width: Width of the text embedding.
        options: Depth, norm, padding, skip connections and fusion.
    """

    def __init__(self, c_in: int, ngf: int, text_width: int, options: GeneratorOptions) -> None:
        super().__init__()
        norm = options.norm
        padding = options.padding
        depth = options.n_downsample_global
        widths = [ngf * 2**i for i in range(depth + 1)]
        self.skip = options.skip
        self.recompute = options.checkpoint_activations
        self.stem = conv(c_in, ngf, norm, padding)
        self.down = nn.ModuleList(
            conv(widths[i], widths[i + 1], norm, padding, stride=2) for i in range(depth)
        )
        self.bottleneck = FusedResBlocks(
            widths[-1],
            options.n_blocks_global,
            text_width,
            options,
            fuse=options.fusion_at != "output",
            noisy=options.noise_at == "all",
        )
        self.decoders = nn.ModuleList(
            UpBlock(widths[i + 1], widths[i], text_width, options, tubes=i == 0)
            for i in reversed(range(depth))
        )

    def encode(self, condition: Tensor) -> list[Tensor]:
        """Return features before each halving, `(2^i ngf, 1/2^i)`; the last are to be halved."""
        features = [maybe_checkpoint(self.stem, self.recompute, condition)]  # (ngf, 1)
        for down in self.down[:-1]:
            features.append(maybe_checkpoint(down, self.recompute, features[-1]))
        return features

    def coarsest(self, features: Tensor) -> Tensor:
        """Return the coarsest features of the last ones of `encode`, before the blocks."""
        return maybe_checkpoint(self.down[-1], self.recompute, features)

    def decode(
        self,
        coarse: Tensor,
        features: list[Tensor],
        noises: Sequence[Tensor],
        text: TextEmbedding,
        regions: Sequence[Tensor | None],
    ) -> Tensor:
        """Return features `(P B, ngf, X, Y, Z)`.

        Args:
            coarse: The coarsest features after the blocks.
            features: Those of `encode`, for the skip connections.
            noises: `(P B, noise_channels, X / 2^i, ...)`, for every scale from the finest on.
            text: Embedding of P B prompts.
            regions: `(P B, 1, X / 2^i, ...)`, 1 where text has an effect; None for everywhere.
        """
        noises, regions = list(noises), list(regions)
        x = self.bottleneck.draw(coarse, noises.pop(), text, regions.pop())
        skips = [repeat_batch(f, len(x) // len(f)) if self.skip else None for f in features]
        for decoder in self.decoders:
            x = maybe_checkpoint(
                decoder, self.recompute, x, skips.pop(), noises.pop(), text, regions.pop()
            )
        return x


class LocalEnhancer(nn.Module):
    """Doubling of the resolution of coarser features (pix2pixHD, Wang et al. 2018, section 3.1).

    The enhancer encodes the condition at its resolution, adds the coarser generator's features at
    half of it, and decodes the sum.

    Args:
        c_in: Channels of the condition, see `input_channels`.
        width: Channels of its features; the coarser features have twice as many.
        text_width: Width of the text embedding.
        options: Norm, padding, skip connections and fusion.
    """

    def __init__(self, c_in: int, width: int, text_width: int, options: GeneratorOptions) -> None:
        super().__init__()
        self.skip = options.skip
        self.recompute = options.checkpoint_activations
        self.stem = conv(c_in, width, options.norm, options.padding)
        self.down = conv(width, 2 * width, options.norm, options.padding, stride=2)
        fuse = options.fusion_at == "all"
        self.stage = FusedResBlocks(
            2 * width, options.n_blocks_local, text_width, options, fuse=fuse
        )
        self.decoder = UpBlock(2 * width, width, text_width, options, tubes=True)

    def forward(
        self,
        condition: Tensor,
        noise: Tensor,
        text: TextEmbedding,
        region: Tensor | None,
        coarse: Tensor,
    ) -> Tensor:
        """Return features `(P B, width, X, Y, Z)`; `coarse` is `(P B, 2 width, X/2, Y/2, Z/2)`."""
        draws = len(noise) // len(condition)
        fine = maybe_checkpoint(self.stem, self.recompute, condition)  # (width, 1)
        x = maybe_checkpoint(self.down, self.recompute, fine)  # (2 width, 1/2)
        x = repeat_batch(x, draws) + coarse
        x = self.stage(x, noise, text, halve_region(region))
        skip = repeat_batch(fine, draws) if self.skip else None
        return maybe_checkpoint(self.decoder, self.recompute, x, skip, noise, text, region)


@dataclass(frozen=True)
class SharedFeatures:
    """What prompts of the same mask and noise share; one entry per scale, from the finest on.

    Attributes:
        conditions: The condition of each enhancer.
        noises: `(P B, noise_channels, ...)`; with tubes behind the noise down to the global
            generator's finest scale.
        regions: `(P B, 1, ...)`, 1 where text has an effect; None for everywhere.
        features: Those of the global generator's encoder.
        coarse: Its coarsest features after the blocks.
        places: What the text's residual knows of each voxel's place.
    """

    conditions: Sequence[Tensor]
    noises: Sequence[Tensor]
    regions: Sequence[Tensor | None]
    features: list[Tensor]
    coarse: Tensor
    places: Places | None


class Generator(nn.Module):
    """Network from mask, coordinates, noise and text to a volume.

    Args:
        options: Architecture.
        n_labels: K, channels of the one-hot mask.
        text_width: Width of the text embedding.
        body: Channel of the body in the mask, if there is one.
    """

    def __init__(
        self, options: GeneratorOptions, n_labels: int, text_width: int, body: int | None = None
    ) -> None:
        super().__init__()
        self.options = options
        self.body = body_channel(n_labels, body)
        c_in = input_channels(options, n_labels)
        n = options.n_local_enhancers
        self.global_generator = GlobalGenerator(c_in, options.ngf * 2**n, text_width, options)
        self.enhancers = nn.ModuleList(
            LocalEnhancer(c_in, options.ngf * 2**i, text_width, options) for i in reversed(range(n))
        )
        self.head = ScalarConv3d(options.ngf, 3, 1, options.padding)
        residual = options.fusion_at == "output" or options.text_effect
        residual = residual and options.fusion != "none"
        channels = mask_channels(n_labels)
        self.effect = (
            TextResidualHead(channels, text_width, options, self.body) if residual else None
        )
        self.labels = make_label_embedding(n_labels, body)

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks at the coarsest scale, each of which looks two of its voxels far."""
        return self.global_generator.bottleneck.blocks

    def encode(self, mask: Tensor, coords: Tensor) -> Tensor:
        """Return the coarsest features `(B, C, X/2^n, ...)` before the blocks, see `forward`."""
        condition = self._conditions(self._embedded(mask), coords)[-1]
        return self.global_generator.coarsest(self.global_generator.encode(condition)[-1])

    def decode(
        self, coarse: Tensor, mask: Tensor, coords: Tensor, noise: Tensor, text: TextEmbedding
    ) -> Tensor:
        """Generate a volume for each prompt, from the coarsest features after the blocks.

        Args:
            coarse: `(1, C, X / 2^n, ...)`.
            mask: `(1, K, X, Y, Z)`, see `forward`.
            coords: `(1, 3, X, Y, Z)`.
            noise: `(1, noise_channels, X, Y, Z)`.
            text: Embedding of A prompts.

        Returns:
            `(A, 1, X, Y, Z)` in [-1, 1], float32.
        """
        shared = self._share(coarse, mask, coords, noise)
        prompts = [text.select(number) for number in range(len(text.pooled))]
        return torch.cat([self._finish(shared, prompt) for prompt in prompts])

    def forward(self, mask: Tensor, coords: Tensor, noise: Tensor, text: TextEmbedding) -> Tensor:
        """Generate a volume.

        Args:
            mask: `(B, K, X, Y, Z)` one-hot, background first.
            coords: `(B, 3, X, Y, Z)` position in the whole volume, -1 to 1; not used without
                `coord_channels`.
            noise: `(P B, noise_channels, X, Y, Z)` standard normal, for P draws.
            text: Embedding of B prompts, the same in all draws, or of P B.

        Returns:
            `(P B, 1, X, Y, Z)` in [-1, 1], float32.
        """
        if len(text.pooled) < len(noise):
            text = text.repeat(len(noise) // len(mask))
        return self._finish(self._share(None, mask, coords, noise), text)

    def _embedded(self, mask: Tensor) -> Tensor:
        return mask if self.labels is None else self.labels(mask)

    def _conditions(self, mask: Tensor, coords: Tensor) -> list[Tensor]:
        """Return the condition at the resolution of each enhancer and of the global generator.

        The mask is embedded already.
        """
        conditions = [torch.cat([mask, coords], 1) if self.options.coord_channels else mask]
        for _ in self.enhancers:
            conditions.append(F.avg_pool3d(conditions[-1], 2))
        return conditions

    def _share(
        self, coarse: Tensor | None, mask: Tensor, coords: Tensor, noise: Tensor
    ) -> SharedFeatures:
        """Compute what no text changes; the coarsest features only where they are not known."""
        mask = self._embedded(mask)
        everywhere = self.options.text_region == "everywhere"
        region = None if everywhere else organ_region(mask, self.body)
        noises = [noise]
        regions = [repeat_batch(region, len(noise) // len(mask))]
        network = self.global_generator
        for _ in range(len(self.enhancers) + len(network.down)):
            noises.append(halve_noise(noises[-1]))
            regions.append(halve_region(regions[-1]))
        if has_tubes(self.options):
            with torch.autocast(noise.device.type, enabled=False):
                for scale in range(len(self.enhancers) + 1):
                    plain = noises[scale]
                    noises[scale] = torch.cat([plain, tube_noise(plain)], 1)
        conditions = self._conditions(mask, coords)
        features = network.encode(conditions[-1])
        if coarse is None:
            coarse = network.bottleneck.refine(network.coarsest(features[-1]))
        places = None
        if self.effect is not None:
            # As the last step: bf16 resolves 2.7 HU near -860 HU.
            with torch.autocast(mask.device.type, enabled=False):
                places = self.effect.places(conditions[0])
        return SharedFeatures(conditions[:-1], noises, regions, features, coarse, places)

    def _finish(self, shared: SharedFeatures, text: TextEmbedding) -> Tensor:
        """Generate volumes `(P B, 1, X, Y, Z)` of P B prompts."""
        first = len(self.enhancers)  # scale of the global generator
        noises, regions = shared.noises, shared.regions
        x = self.global_generator.decode(
            shared.coarse, shared.features, noises[first:], text, regions[first:]
        )
        for scale in reversed(range(first)):
            enhancer = self.enhancers[first - 1 - scale]
            x = enhancer(shared.conditions[scale], noises[scale], text, regions[scale], x)
        # The last step is always in full precision, because bf16 resolves 2.7 HU near -860 HU.
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            volume = torch.tanh(self.head(x))
            if self.effect is None:
                return volume
            noise = noises[0][:, : self.options.noise_channels]
            changed = self.effect(volume, x, noise, text, regions[0], shared.places)
            return changed.clamp(-1, 1)
