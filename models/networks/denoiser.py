"""Network of the diffusion models: a U-Net conditioned on mask, position, noise level and text.

It uses the generator's parts. MONAI's U-Net has group norms, which depend on the tile, and a
cross-attention that attends to padding; see docs/explanation/diffusion.md. Shapes in comments leave
out the batch: `(channels, size)`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.condition import fuse, halve_region, input_channels, organ_region
from models.networks.fusion import FUSIONS, FusionUnit
from models.networks.label_embedding import (
    body_channel,
    make_label_embedding,
    mask_channels,
)
from models.networks.layers import (
    Conv3d,
    Padding,
    ScalarConv3d,
    Upsample,
    make_norm,
    maybe_checkpoint,
    modulate,
    silu,
)
from models.networks.places import PlaceEffect, PlaceFeatures
from models.text.base_encoder import TextEmbedding
from options.train_options import GeneratorOptions

# The logarithm of the noise level lies in -7 to 5; its sinusoidal embedding takes it as a timestep
# 0 to 480.
LOG_NOISE_SHIFT = 7
LOG_NOISE_SCALE = 40.0


MEAN_LEVEL = 7.0  # this noise level, above all others, asks the network for the mean


class TimeConv(nn.Module):
    """A 3x3x3 convolution, normalisation, scale and shift by the noise level, SiLU.

    Args:
        c_in: Channels before.
        c_out: Channels after.
        time: Width of the embedding of the noise level.
        norm: Kind of normalisation.
        padding: Padding mode.
        stride: Stride of the convolution.
    """

    def __init__(
        self, c_in: int, c_out: int, time: int, norm: str, padding: Padding, stride: int = 1
    ) -> None:
        super().__init__()
        bias = norm in ("none", "rms")  # other norms subtract it again
        self.conv = Conv3d(
            c_in, c_out, 3, stride=stride, padding=1, padding_mode=padding, bias=bias
        )
        self.norm = make_norm(norm, c_out)
        self.time = nn.Linear(time, 2 * c_out)
        nn.init.zeros_(self.time.weight)
        nn.init.zeros_(self.time.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`(B, c_in, X, Y, Z)` and `(B, time)` to `(B, c_out, X/stride, ...)`."""
        x = self.norm(self.conv(x))
        scale, shift = self.time(time).chunk(2, 1)
        return silu(modulate(x, scale, shift, in_place=True))


class TimeResBlock(nn.Module):
    """Residual block of two convolutions; the shape stays the same."""

    def __init__(self, channels: int, time: int, norm: str, padding: Padding) -> None:
        super().__init__()
        self.first = TimeConv(channels, channels, time, norm, padding)
        self.second = Conv3d(channels, channels, 3, padding=1, padding_mode=padding)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`(B, C, X, Y, Z)` and `(B, time)` to `(B, C, X, Y, Z)`."""
        return x + self.second(self.first(x, time))


class TimeUpBlock(nn.Module):
    """Doubling of resolution: upsampling, skip connection, convolution, text fusion."""

    def __init__(
        self, c_in: int, c_out: int, time: int, text_width: int, options: GeneratorOptions
    ) -> None:
        super().__init__()
        self.up = Upsample(c_in, c_out)
        self.merge = TimeConv(c_out, c_out, time, options.norm, options.padding)
        # A denoiser has no residual head, so `output` is treated as `all`.
        unit = FUSIONS["none" if options.fusion_at == "bottleneck" else options.fusion]
        self.fusion: FusionUnit = unit(c_out, text_width, options)

    def forward(
        self,
        x: Tensor,
        skip: Tensor | None,
        time: Tensor,
        text: TextEmbedding,
        region: Tensor | None,
    ) -> Tensor:
        """`(B, c_in, X, Y, Z)` to `(B, c_out, 2X, 2Y, 2Z)`; skip and region are of that size."""
        x = self.up(x)
        x = self.merge(x if skip is None else x + skip, time)
        return fuse(self.fusion, x, text, region)


class Denoiser(nn.Module):
    """Network from a noisy image, mask, coordinates, noise level and text to an image.

    Args:
        options: Architecture; noise enters with the noisy image only.
        channels: C of the image: 1 for voxels, more for latents.
        n_labels: K, channels of the mask.
        text_width: Width of the text embedding.
        time_width: Width of the embedding of the noise level.
        body: Channel of the body in the mask, if there is one.
    """

    def __init__(
        self,
        options: GeneratorOptions,
        channels: int,
        n_labels: int,
        text_width: int,
        time_width: int,
        body: int | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        self.body = body_channel(n_labels, body)
        self.labels = make_label_embedding(n_labels, body)
        self.time_width = time_width
        norm = options.norm
        padding = options.padding
        depth = options.n_downsample_global
        widths = [options.ngf * 2**i for i in range(depth + 1)]
        self.time = nn.Sequential(
            nn.Linear(time_width, time_width),
            nn.SiLU(),
            nn.Linear(time_width, time_width),
            nn.SiLU(),
        )
        self.stem = TimeConv(
            channels + input_channels(options, n_labels), widths[0], time_width, norm, padding
        )
        self.down = nn.ModuleList(
            TimeConv(widths[i], widths[i + 1], time_width, norm, padding, stride=2)
            for i in range(depth)
        )
        self.blocks = nn.ModuleList(
            TimeResBlock(widths[-1], time_width, norm, padding)
            for _ in range(options.n_blocks_global)
        )
        self.fusion: FusionUnit = FUSIONS[options.fusion](widths[-1], text_width, options)
        self.rises = nn.ModuleList(
            TimeUpBlock(widths[i + 1], widths[i], time_width, text_width, options)
            for i in reversed(range(depth))
        )
        self.head = (
            ScalarConv3d(widths[0], 3, 1, padding)
            if channels == 1
            else Conv3d(widths[0], channels, 3, padding=1, padding_mode=padding)
        )
        self.place_features = PlaceFeatures(options, mask_channels(n_labels), self.body)
        placed = options.text_linear and options.text_position and options.fusion != "none"
        self.effect = (
            PlaceEffect(self.place_features.count, text_width) if placed and channels == 1 else None
        )

    def forward(
        self, x: Tensor, log_noise: Tensor, mask: Tensor, coords: Tensor, text: TextEmbedding
    ) -> Tensor:
        """Predict the image's mean F (see `models.diffusion.noise_schedule`).

        Where the mean is asked for (`MEAN_LEVEL`), the text also changes it linearly in the place.

        Args:
            x: `(B, C, X, Y, Z)` noisy image x_t.
            log_noise: `(B,)` log(sigma_t / alpha_t).
            mask: `(B, K, X, Y, Z)` one-hot or embedded, or shares of labels; zero for no mask.
            coords: `(B, 3, X, Y, Z)` position in the whole volume; not used without
                `coord_channels`.
            text: Embedding of B prompts.

        Returns:
            `(B, C, X, Y, Z)` float32.
        """
        from monai.networks.nets.diffusion_model_unet import get_timestep_embedding  # slow

        recompute = self.options.checkpoint_activations
        timesteps = LOG_NOISE_SCALE * (log_noise + LOG_NOISE_SHIFT)
        time = self.time(get_timestep_embedding(timesteps, self.time_width))
        everywhere = self.options.text_region == "everywhere"
        region = None if everywhere else organ_region(mask, self.body)
        inputs = [x, mask, coords] if self.options.coord_channels else [x, mask]
        h = maybe_checkpoint(self.stem, recompute, torch.cat(inputs, 1), time)  # (ngf, 1)
        skips: list[Tensor | None] = []
        regions = [region]
        for down in self.down:
            skips.append(h if self.options.skip else None)
            regions.append(halve_region(regions[-1]))
            h = maybe_checkpoint(down, recompute, h, time)  # (2^i ngf, 1/2^i)
        for block in self.blocks:
            h = maybe_checkpoint(block, recompute, h, time)
        h = fuse(self.fusion, h, text, regions.pop())
        for rise in self.rises:
            h = maybe_checkpoint(rise, recompute, h, skips.pop(), time, text, regions.pop())
        # The last step is always in full precision, because bf16 resolves 2.7 HU near -860 HU.
        with torch.autocast(h.device.type, enabled=False):
            image: Tensor = self.head(h.float())
            asks_mean = log_noise >= MEAN_LEVEL
            if self.effect is None or not (self.training or asks_mean.any()):
                return image
            condition = torch.cat(inputs[1:], 1).float()
            change = self.effect(self.place_features(condition), text)
            if region is not None:
                change = region * change
            return image + asks_mean[:, None, None, None, None] * change
