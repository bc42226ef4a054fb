"""Normalisation, convolutions and residual blocks in 3D."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.text.base_encoder import TextEmbedding

Padding = Literal["zeros", "reflect", "replicate"]

# float32 values per channel and voxel at full resolution that a network without gradients holds at
# once, measured: features, their norms, attention, and the perceptron of the position.
VALUES_PER_CHANNEL = 20


class ChannelNorm(nn.Module):
    """Normalisation over the channels of each voxel, which gives tile and volume the same result.

    Args:
        channels: C of the input `(B, C, X, Y, Z)`.
        kind: `layer` (mean and variance; Ba et al. 2016) or `rms` (root mean square; Zhang &
            Sennrich 2019).
    """

    def __init__(self, channels: int, kind: str = "layer") -> None:
        super().__init__()
        self.kind = kind
        # Scales stay 1-D: 4-D parameters cannot have the memory format channels-last.
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if kind == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, X, Y, Z)` to the same shape."""
        # In fp32, which is as fast. With bf16, a CPU sums the gradients of scale and shift in bf16
        # too. A sum that is 256 times larger than the next term then no longer changes (half of the
        # gradient of a 64x64x48 volume is lost).
        voxels = x.float().movedim(1, -1)
        if self.kind == "layer":
            voxels = F.layer_norm(voxels, self.weight.shape, self.weight, self.bias)
        else:
            voxels = F.rms_norm(voxels, self.weight.shape, self.weight, eps=1e-5)
        return voxels.movedim(-1, 1).to(x.dtype)


def in_slabs(function: Callable[[Tensor], Tensor], x: Tensor, axis: int, size: int) -> Tensor:
    """Return a function of each voxel, in slabs of `size` where no gradient needs all of it.

    Args:
        function: Maps features to features, whose axis `axis` stays.
        x: Features.
        axis: An axis of voxels.
        size: Voxels along it that the function takes at once.
    """
    if torch.is_grad_enabled() or x.shape[axis] <= size:
        return function(x)
    return torch.cat([function(slab) for slab in x.split(size, axis)], axis)


def acts_per_voxel(norm: str) -> bool:
    """Return whether a normalisation gives tiles the values of the whole volume."""
    return norm not in ("group", "instance")


def silu(x: Tensor) -> Tensor:
    """Return SiLU of a tensor that nothing else uses: in place where no gradient is asked for.

    New memory costs a CPU more than the function itself.
    """
    return F.silu(x, inplace=not torch.is_grad_enabled())


class SiLU(nn.Module):
    """The function `silu` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return silu(x)


def modulate(x: Tensor, scale: Tensor, shift: Tensor, in_place: bool = False) -> Tensor:
    """Return `(1 + scale) x + shift` for scale and shift `(B, C)` of the channels of `x`.

    Args:
        x: `(B, C, X, Y, Z)`.
        scale: `(B, C)`.
        shift: `(B, C)`.
        in_place: Whether nothing else uses `x`, which is then written to where no gradient is asked
            for.
    """
    factor, term = broadcast_channels(1 + scale, x), broadcast_channels(shift, x)
    if torch.is_grad_enabled():
        return x * factor + term
    return (x.mul_(factor) if in_place else x * factor).add_(term)


def broadcast_channels(values: Tensor, x: Tensor) -> Tensor:
    """Return `(B, C)` as `(B, C, 1, 1, Z)` in the type of `x` `(B, C, X, Y, Z)`.

    The last axis is written out: with channels innermost, a CPU is five times slower on 16 values
    at a time than on whole lines.
    """
    lines = values.to(x.dtype)[:, :, None, None, None].expand(-1, -1, 1, 1, x.shape[-1])
    return lines.contiguous(memory_format=torch.channels_last_3d)


def maybe_checkpoint(part: nn.Module, recompute: bool, *inputs: Any) -> Tensor:
    """Return `part(*inputs)`; with `recompute`, the backward pass computes activations again."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(part, *inputs, use_reentrant=False)
    return part(*inputs)


def make_norm(kind: str, channels: int) -> nn.Module:
    """Build the normalisation that `--norm` names, for `(B, C, X, Y, Z)`."""
    if kind in ("layer", "rms"):
        return ChannelNorm(channels, kind)
    if kind == "group":
        return nn.GroupNorm(max(g for g in (8, 4, 2, 1) if channels % g == 0), channels)
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"unknown normalisation {kind!r}")


class Conv3d(nn.Conv3d):
    """A convolution that is safe in bf16 on a CPU, and fast on one small volume.

    If an input is smaller than the kernel, oneDNN's gradient of bf16 weights is uninitialised
    memory (torch 2.12, AVX-512). Such small inputs are computed in fp32. Without gradients, oneDNN
    is called directly: for a single volume of few voxels, torch takes an algorithm that needs four
    times as long (torch 2.14) and loses the memory format.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(B, c_in, X, Y, Z)` to `(B, c_out, ...)`."""
        small = any(n < k for n, k in zip(input.shape[2:], self.kernel_size, strict=True))
        if small and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self.compute(input.float())
        return self.compute(input)

    def compute(self, input: Tensor) -> Tensor:
        """Convolve; subclasses may choose another algorithm."""
        is_direct = (
            input.device.type == "cpu"
            and input.dtype == torch.float32
            and self.padding_mode == "zeros"
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()  # such as an export, whose tensors hold no values
            and torch.backends.mkldnn.is_available()
        )
        if not is_direct:
            return super().forward(input)
        padding = cast(tuple[int, ...], self.padding)
        return torch.mkldnn_convolution(
            input, self.weight, self.bias, padding, self.stride, self.dilation, self.groups
        )


class PointwiseConv3d(nn.Conv3d):
    """A convolution of single voxels, 1x1x1.

    With channels innermost it is one matrix product, which on a CPU is several times as fast as the
    convolution.
    """

    def __init__(self, c_in: int, c_out: int, bias: bool = True) -> None:
        super().__init__(c_in, c_out, 1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """`(B, c_in, X, Y, Z)` to `(B, c_out, X, Y, Z)`."""
        if not input.is_contiguous(memory_format=torch.channels_last_3d):
            return super().forward(input)
        return F.linear(input.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


def conv(c_in: int, c_out: int, norm: str, padding: Padding, stride: int = 1) -> nn.Sequential:
    """Build a 3x3x3 convolution, normalisation and SiLU.

    The block maps `(B, c_in, X, Y, Z)` to `(B, c_out, X/stride, Y/stride, Z/stride)`.
    """
    bias = norm in ("none", "rms")  # other norms subtract it again
    return nn.Sequential(
        Conv3d(c_in, c_out, 3, stride=stride, padding=1, padding_mode=padding, bias=bias),
        make_norm(norm, c_out),
        SiLU(),
    )


class ScalarConv3d(Conv3d):
    """A convolution to one channel.

    On a CPU it runs as a transposed convolution with the flipped kernel. The sum is the same, and
    the backward pass is five times faster, because that of a convolution uses blocks of at least 16
    output channels.
    """

    def __init__(self, channels: int, size: int, padding: int, mode: Padding = "zeros") -> None:
        super().__init__(channels, 1, size, padding=padding, padding_mode=mode)
        self.margin = size - 1 - padding

    def compute(self, input: Tensor) -> Tensor:
        """Convolve with the algorithm of the device."""
        if input.device.type != "cpu" or self.padding_mode != "zeros":
            return super().compute(input)
        return F.conv_transpose3d(
            input, self.weight.transpose(0, 1).flip(2, 3, 4), self.bias, padding=self.margin
        )


class ResBlock(nn.Module):
    """Residual block of two convolutions (He et al. 2016); the shape stays the same."""

    def __init__(self, channels: int, norm: str, padding: Padding) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, channels, norm, padding),
            Conv3d(channels, channels, 3, padding=1, padding_mode=padding),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, X, Y, Z)` to the same shape."""
        return x + self.body(x)


class Upsample(nn.Module):
    """Doubling of resolution by repetition, after a 1x1x1 convolution at the lower resolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.project = PointwiseConv3d(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, c_in, X, Y, Z)` to `(B, c_out, 2X, 2Y, 2Z)`."""
        return F.interpolate(self.project(x), scale_factor=2.0, mode="nearest")


class NoiseInjection(nn.Module):
    """Noise added to features, with a learned strength per channel (StyleGAN, Karras et al. 2019).

    With text, a channel's noise is multiplied by exp(w^T e), for e the pooled text: a phrase makes
    a texture stronger or weaker by a factor, and starts at 1. Otherwise the text has to learn a
    texture from a difference that is not yet there. Beside the noise itself there is sparse noise,
    the part of it above `THRESHOLD`: holes and nodules are rare, and a few layers hardly make rare
    events of normal ones. In the same way they hardly make long thin vessels of points, so that
    noise may come with `tube_noise`.

    Args:
        channels: C of the features.
        noise_channels: N.
        text_width: Width of the text embedding; 0 for noise without text.
        tubes: Fields of `tube_noise` that follow the noise.
        around: Whether noise outside the region has strengths of its own, 0 at first: organs are
            rough, and what is around them need not be.
    """

    THRESHOLD = 1.28  # a tenth of the voxels
    SPARSE_SCALE = 5.2  # makes the SD of the sparse noise 1
    START = 0.3  # SD of the strengths: draws that are alike teach a score of their spread nothing
    MAX_LOG_GAIN = 3.0

    def __init__(
        self,
        channels: int,
        noise_channels: int,
        text_width: int = 0,
        *,
        tubes: int = 0,
        around: bool = False,
    ) -> None:
        super().__init__()
        self.strength = nn.Linear(noise_channels, channels, bias=False)
        self.sparse: nn.Linear | None = None
        self.gain: nn.Linear | None = None
        self.tubes: nn.Linear | None = None
        self.around: nn.Linear | None = None
        if not text_width:
            nn.init.zeros_(self.strength.weight)
            return
        self.sparse = nn.Linear(noise_channels, channels, bias=False)
        nn.init.normal_(self.strength.weight, std=self.START)
        nn.init.normal_(self.sparse.weight, std=self.START)
        if tubes:
            self.tubes = nn.Linear(tubes, channels, bias=False)
            nn.init.normal_(self.tubes.weight, std=self.START)
        if around:
            self.around = nn.Linear(2 * noise_channels, channels, bias=False)
            nn.init.zeros_(self.around.weight)
        self.gain = nn.Linear(text_width, (3 if tubes else 2) * channels, bias=False)
        nn.init.zeros_(self.gain.weight)

    def forward(
        self, x: Tensor, noise: Tensor, text: TextEmbedding, region: Tensor | None
    ) -> Tensor:
        """Return features of the shape of `x`.

        Args:
            x: Features `(B, C, X, Y, Z)`.
            noise: `(B, N, X, Y, Z)` standard normal, then the tubes, if the unit has any.
            text: Embedding of B prompts.
            region: `(B, 1, X, Y, Z)`, 1 where text has an effect; None for everywhere.
        """
        voxels = noise.movedim(1, -1)  # (B, X, Y, Z, N)
        if self.gain is None or self.sparse is None:
            return x + self.strength(voxels.to(x.dtype)).movedim(-1, 1)
        voxels, tubes = voxels.tensor_split([self.strength.in_features], -1)
        fields = torch.cat([voxels, self.SPARSE_SCALE * F.relu(voxels - self.THRESHOLD)], -1)
        plain = [self.strength.weight, self.sparse.weight]
        if self.tubes is not None:
            plain.append(self.tubes.weight)
        with torch.autocast(x.device.type, enabled=False):
            scaled = text.pooled.float() * text.pooled.shape[1] ** -0.5  # as in the fusion units
            log_gain = self.gain(scaled).clamp(-self.MAX_LOG_GAIN, self.MAX_LOG_GAIN)
            # Gains are folded into the few strengths: one product per voxel.
            gains = log_gain.exp().unflatten(1, (len(plain), -1, 1)).unbind(1)  # (B, C, 1) each
            gained = torch.cat([g * w for g, w in zip(gains, plain, strict=True)], 2)
        if region is None:
            inputs, strengths = [fields, tubes], [gained]
        else:
            inside = region.movedim(1, -1)
            outside = torch.cat(plain[:2], 1) if self.around is None else self.around.weight
            inputs = [fields, inside * fields, inside * tubes]
            within = gained - F.pad(outside, (0, tubes.shape[-1]))
            strengths = [outside.expand(len(x), -1, -1), within]
        added = torch.bmm(
            torch.cat(inputs, -1).flatten(1, 3).to(x.dtype),
            torch.cat(strengths, 2).transpose(1, 2).to(x.dtype),
        )
        return x + added.unflatten(1, x.shape[2:]).movedim(-1, 1)


def halve_noise(noise: Tensor) -> Tensor:
    """Return noise at half the resolution, standard normal again.

    The mean of eight values has SD 1/sqrt(8).
    """
    # Pooling refuses a tensor without channels, as with `noise_channels` 0.
    return F.avg_pool3d(noise, 2) * 8**0.5 if noise.shape[1] else noise[..., ::2, ::2, ::2]
