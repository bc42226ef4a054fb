"""The generator of pix2pixHD in 3D: a global generator, local enhancers around it, and text fused
in.

Shapes in comments leave out the batch: `(channels, size)` with size 1 for full resolution, 1/2, 1/4
...
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.fusion import FUSIONS, FusionUnit
from models.networks.layers import (
    NoiseInjection,
    ResBlock,
    ScalarConv3d,
    Upsample,
    conv,
    halve_noise,
    maybe_checkpoint,
)
from models.text.base_encoder import TextEmbedding
from options.train_options import GeneratorOptions


def input_channels(options: GeneratorOptions, n_labels: int) -> int:
    """Channels of the condition: one-hot mask, coordinates."""
    return n_labels + 3 * options.coord_channels


def size_multiple(options: GeneratorOptions) -> int:
    """Every side of a patch or tile, and every start of a tile, is a multiple of this."""
    return 2 ** (options.n_downsample_global + options.n_local_enhancers)


def fuse(unit: FusionUnit, x: Tensor, text: TextEmbedding, region: Tensor | None) -> Tensor:
    """Fuses text into features where `region` `(B, 1, X, Y, Z)` is 1, and not where it is 0;
    everywhere if it is None.

    What the mask leaves open, such as the shape of the body, can be learnt by heart from a prompt
    that fits one patient alone; text kept to the labelled voxels cannot do that.
    """
    fused = unit(x, text)
    return fused if region is None else torch.lerp(x, fused, region.to(x.dtype))


def halve_region(region: Tensor | None) -> Tensor | None:
    """The region at half the resolution: a coarse voxel is in it if it lies there whole, else its
    text would leak out.
    """
    return None if region is None else -F.max_pool3d(-region, 2)


class FusedResBlocks(nn.Module):
    """Residual blocks, and text fused in after them, for they would carry it out of the region;
    shape stays.
    """

    def __init__(
        self, channels: int, blocks: int, text_width: int, options: GeneratorOptions, fuse: bool
    ) -> None:
        super().__init__()
        self.recompute = options.checkpoint_activations
        self.fusion: FusionUnit = FUSIONS[options.fusion if fuse else "none"](
            channels, text_width, options
        )
        self.blocks = nn.ModuleList(
            ResBlock(channels, options.norm, options.padding) for _ in range(blocks)
        )

    def forward(self, x: Tensor, text: TextEmbedding, region: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = maybe_checkpoint(block, self.recompute, x)
        return fuse(self.fusion, x, text, region)


class UpBlock(nn.Module):
    """One doubling of resolution: upsample, add skip connection and noise, convolve, fuse text."""

    def __init__(self, c_in: int, c_out: int, text_width: int, options: GeneratorOptions) -> None:
        super().__init__()
        self.up = Upsample(c_in, c_out)
        self.noise = (
            NoiseInjection(c_out, options.noise_channels) if options.noise_channels else None
        )
        self.merge = conv(c_out, c_out, options.norm, options.padding)
        fuse = options.fusion_at == "all"
        self.fusion: FusionUnit = FUSIONS[options.fusion if fuse else "none"](
            c_out, text_width, options
        )

    def forward(
        self,
        x: Tensor,
        skip: Tensor | None,
        noise: Tensor,
        text: TextEmbedding,
        region: Tensor | None,
    ) -> Tensor:
        x = self.up(x)
        if skip is not None:
            x = x + skip
        if self.noise is not None:
            x = self.noise(x, noise)
        return fuse(self.fusion, self.merge(x), text, region)


class GlobalGenerator(nn.Module):
    """Encoder, residual blocks and decoder; features `(ngf, 1)` at the resolution of its input.

    Args:
        c_in: Channels read, see `input_channels`.
        ngf: Channels at full resolution, doubled with every halving.
        text_width: Width of the text embedding.
        options: Depth, norm, padding, skips and fusion.
    """

    def __init__(self, c_in: int, ngf: int, text_width: int, options: GeneratorOptions) -> None:
        super().__init__()
        norm, padding, depth = options.norm, options.padding, options.n_downsample_global
        widths = [ngf * 2**i for i in range(depth + 1)]
        self.skip, self.recompute = options.skip, options.checkpoint_activations
        self.stem = conv(c_in, ngf, norm, padding)
        self.down = nn.ModuleList(
            conv(widths[i], widths[i + 1], norm, padding, stride=2) for i in range(depth)
        )
        fuse = options.fusion_at != "output"
        self.bottleneck = FusedResBlocks(
            widths[-1], options.n_blocks_global, text_width, options, fuse
        )
        self.decoders = nn.ModuleList(
            UpBlock(widths[i + 1], widths[i], text_width, options) for i in reversed(range(depth))
        )

    def forward(
        self, condition: Tensor, noise: Tensor, text: TextEmbedding, region: Tensor | None
    ) -> Tensor:
        x = maybe_checkpoint(self.stem, self.recompute, condition)  # (ngf, 1)
        skips, noises, regions = [], [noise], [region]
        for down in self.down:
            skips.append(x if self.skip else None)
            noises.append(halve_noise(noises[-1]))
            regions.append(halve_region(regions[-1]))
            x = maybe_checkpoint(down, self.recompute, x)  # (2^i ngf, 1/2^i)
        noises.pop()
        x = self.bottleneck(x, text, regions.pop())
        for decoder in self.decoders:
            x = maybe_checkpoint(
                decoder, self.recompute, x, skips.pop(), noises.pop(), text, regions.pop()
            )
        return x


class LocalEnhancer(nn.Module):
    """Doubles the resolution of coarser features (pix2pixHD, Wang et al. 2018, section 3.1).

    It encodes the condition at its own resolution, adds the coarser generator's features at half of
    it, and decodes.
    """

    def __init__(self, c_in: int, width: int, text_width: int, options: GeneratorOptions) -> None:
        super().__init__()
        self.skip, self.recompute = options.skip, options.checkpoint_activations
        self.stem = conv(c_in, width, options.norm, options.padding)
        self.down = conv(width, 2 * width, options.norm, options.padding, stride=2)
        fuse = options.fusion_at == "all"
        self.stage = FusedResBlocks(2 * width, options.n_blocks_local, text_width, options, fuse)
        self.decoder = UpBlock(2 * width, width, text_width, options)

    def forward(
        self,
        condition: Tensor,
        noise: Tensor,
        text: TextEmbedding,
        region: Tensor | None,
        coarse: Tensor,
    ) -> Tensor:
        fine = maybe_checkpoint(self.stem, self.recompute, condition)  # (width, 1)
        x = self.stage(
            maybe_checkpoint(self.down, self.recompute, fine) + coarse, text, halve_region(region)
        )  # (2 width, 1/2)
        return maybe_checkpoint(
            self.decoder, self.recompute, x, fine if self.skip else None, noise, text, region
        )


class TextResidualHead(nn.Module):
    """What text adds to a volume: the change that a fusion unit makes to the last features, as one
    channel.

    With the additive unit, phrases add up in HU: from few patients a network that may combine
    phrases freely learns combinations by heart, such as an effect of age that is larger in smokers
    though it is not.

    The last features serve the anatomy and tell little of where a voxel lies; with `--text_position`
    the unit is told that and its label too, else it takes thousands of steps to learn that an
    effect is one of the bases, of the rim, or of no airway. Waves of the place beside the place
    itself, for a perceptron learns smooth functions of its input first and edges late (Tancik et
    al. 2020, arXiv 2006.10739).
    """

    MASK_KERNELS = (
        5,
        9,
    )  # voxels: in the mean of the mask over such cubes, the depth below its border shows
    WAVES = 2  # of the length of the volume, of its half ...; a lung is about a wave high
    # from a lung's top to its bottom coordinates differ by about 1; an effect may end within a
    # third of that
    COORD_SCALE = 8.0
    WIDTH = 64  # of the perceptron

    def __init__(self, n_labels: int, text_width: int, options: GeneratorOptions) -> None:
        super().__init__()
        self.fusion: FusionUnit = FUSIONS[options.fusion](options.ngf, text_width, options)
        self.head = nn.Conv3d(options.ngf, 1, 1, bias=False)
        self.n_labels = n_labels
        place = input_channels(options, n_labels) - n_labels + len(self.MASK_KERNELS)
        self.place = (
            nn.Sequential(
                nn.Conv3d(n_labels + place * (1 + 2 * self.WAVES), self.WIDTH, 1),
                nn.SiLU(),
                nn.Conv3d(self.WIDTH, options.ngf, 1),
            )
            if options.text_position
            else None
        )

    def forward(
        self, x: Tensor, text: TextEmbedding, region: Tensor | None, condition: Tensor
    ) -> Tensor:
        if self.place is not None:
            x = x + self.place(self.position_features(condition))
        effect = self.head(self.fusion(x, text) - x)
        if text.weight is not None:  # the value stays; of its gradient so much
            effect = torch.lerp(effect.detach(), effect, text.weight[:, None, None, None, None])
        return effect if region is None else effect * region

    def position_features(self, condition: Tensor) -> Tensor:
        """Labels, how much of the mask lies around, coordinates where there are any, their
        waves: `(B, n, X, Y, Z)`.
        """
        inside = 1 - condition[:, :1]  # background is the first label
        largest = min(condition.shape[2:]) // 2 * 2 - 1  # a cube may not be wider than the tile
        cubes = [min(k, largest) for k in self.MASK_KERNELS]
        around = [F.avg_pool3d(inside, k, 1, k // 2, count_include_pad=False) for k in cubes]
        place = torch.cat([condition[:, self.n_labels :], *(2 * c - 1 for c in around)], 1)
        waves = [
            wave(torch.pi * 2**k * place)
            for k in range(self.WAVES)
            for wave in (torch.sin, torch.cos)
        ]
        return self.COORD_SCALE * torch.cat([condition[:, : self.n_labels], place, *waves], 1)


class Generator(nn.Module):
    """From mask, coordinates, noise and text to a volume.

    Args:
        options: Architecture.
        n_labels: K, channels of the one-hot mask.
        text_width: Width of the text embedding.
    """

    def __init__(self, options: GeneratorOptions, n_labels: int, text_width: int) -> None:
        super().__init__()
        self.options = options
        c_in, n = input_channels(options, n_labels), options.n_local_enhancers
        self.global_generator = GlobalGenerator(c_in, options.ngf * 2**n, text_width, options)
        self.enhancers = nn.ModuleList(
            LocalEnhancer(c_in, options.ngf * 2**i, text_width, options) for i in reversed(range(n))
        )
        self.head = ScalarConv3d(options.ngf, 3, 1, options.padding)
        late = options.fusion_at == "output" and options.fusion != "none"
        self.effect = TextResidualHead(n_labels, text_width, options) if late else None

    def forward(self, mask: Tensor, coords: Tensor, noise: Tensor, text: TextEmbedding) -> Tensor:
        """Generates.

        Args:
            mask: `(B, K, X, Y, Z)` one-hot.
            coords: `(B, 3, X, Y, Z)` place in the whole volume, -1 to 1; not read without
                `--coord_channels`.
            noise: `(B, noise_channels, X, Y, Z)` standard normal.
            text: Embedding of B prompts.

        Returns:
            `(B, 1, X, Y, Z)` in [-1, 1], float32.
        """
        condition = torch.cat([mask, coords], 1) if self.options.coord_channels else mask
        region = (
            1 - mask[:, :1] if self.options.text_region == "labels" else None
        )  # background is the first label
        pyramid = [(condition, noise, text, region)]
        for _ in self.enhancers:
            coarse, rough, _, part = pyramid[-1]
            pyramid.append((F.avg_pool3d(coarse, 2), halve_noise(rough), text, halve_region(part)))
        x = self.global_generator(*pyramid.pop())
        for enhancer in self.enhancers:
            x = enhancer(*pyramid.pop(), x)
        # bf16 resolves 2.7 HU near -860 HU, so the last step is always taken in full precision.
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            volume = torch.tanh(self.head(x))
            return (
                volume
                if self.effect is None
                else (volume + self.effect(x, text, region, condition)).clamp(-1, 1)
            )
