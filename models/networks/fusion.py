"""Fusion units: text embeddings change the features of the generator.

Every unit takes `(x, text)` and returns features of the shape of `x`. It is the identity at
initialisation, so that training starts from the unconditional network. To add a unit, write it and
register it; `--fusion` selects it by its name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.layers import PointwiseConv3d, in_slabs, modulate, silu
from models.registry import Registry
from models.text.base_encoder import TextEmbedding
from options.train_options import GeneratorOptions

SLAB = 2**14  # voxels whose attention is computed at once

FUSIONS: Registry[type[FusionUnit]] = Registry("--fusion")


class FusionUnit(nn.Module):
    """Base of all units.

    Args:
        channels: C of the features `(B, C, X, Y, Z)`.
        text_width: Width of the text embedding.
        options: Hidden width and number of attention heads.
    """

    def __init__(self, channels: int, text_width: int, options: GeneratorOptions) -> None:
        super().__init__()

    def forward(self, x: Tensor, text: TextEmbedding) -> Tensor:
        """Return features `(B, C, X, Y, Z)` that depend on the text."""
        return x + self.residual(x, text)

    def residual(self, x: Tensor, text: TextEmbedding) -> Tensor:
        """Return what the text adds to the features, of the shape of `x` `(B, C, X, Y, Z)`."""
        raise NotImplementedError

    def projected_residual(self, x: Tensor, text: TextEmbedding, weight: Tensor) -> Tensor:
        """Return the residual after a convolution by `weight` `(n, C, 1, 1, 1)`, `(B, n, ...)`."""
        return F.conv3d(self.residual(x, text), weight)


@FUSIONS.register("none")
class NoFusion(FusionUnit):
    """The identity: no text."""

    def forward(self, x: Tensor, text: TextEmbedding) -> Tensor:
        """Return `x`."""
        return x

    def residual(self, x: Tensor, text: TextEmbedding) -> Tensor:
        """Return zeros of the shape of `x`."""
        return torch.zeros_like(x)


def zero_module(layer: nn.Module) -> nn.Module:
    """Set the parameters of a layer to zero, so that a residual branch starts at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@FUSIONS.register("concat")
class ConcatFusion(FusionUnit):
    """Concatenation of the pooled text at every voxel, and a projection of both."""

    def __init__(self, channels: int, text_width: int, options: GeneratorOptions) -> None:
        super().__init__(channels, text_width, options)
        hidden = options.text_hidden or channels
        self.text = nn.Sequential(nn.Linear(text_width, hidden), nn.SiLU())
        self.project = zero_module(PointwiseConv3d(channels + hidden, channels))

    def residual(self, x: Tensor, text: TextEmbedding) -> Tensor:
        """Return features of the shape of `x` `(B, C, X, Y, Z)`."""
        repeated = self.text(text.pooled)[:, :, None, None, None].expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat([x, repeated.to(x.dtype)], 1))


class Affine(nn.Module):
    """Scale and shift of channels by the pooled text (DF-GAN, Tao et al. 2022, eq. 2).

    AFF(x_i | e) = gamma_i x_i + theta_i, where here gamma is 1 + `scale` and theta is `shift`.

    Args:
        channels: C of the features.
        text_width: Width of the text embedding.
        hidden: Hidden width of a two-layer perceptron; 0 makes scale and shift linear in the text.
    """

    def __init__(self, channels: int, text_width: int, hidden: int) -> None:
        super().__init__()
        # Adam's step is equally large for each of `text_width` weights. Without scaling, their sum
        # would change faster than the rest of the network.
        self.scale = text_width**-0.5
        last = nn.Linear(hidden or text_width, 2 * channels)
        # The text has a small effect from the first step: both halves start near zero.
        nn.init.normal_(last.weight, std=0.02)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(text_width, hidden), nn.SiLU(), last) if hidden else last

    def values(self, text: TextEmbedding) -> tuple[Tensor, Tensor]:
        """Return scale and shift of each prompt, `(B, C)`."""
        scale, shift = self.mlp(text.pooled * self.scale).chunk(2, 1)
        return scale, shift

    def forward(self, x: Tensor, text: TextEmbedding) -> Tensor:
        """Return features of the shape of `x` `(B, C, X, Y, Z)`."""
        return modulate(x, *self.values(text))


@FUSIONS.register("affine")
class AffineFusion(FusionUnit):
    """Two affine layers, each with a non-linearity, on a residual branch (block of DF-GAN)."""

    def __init__(self, channels: int, text_width: int, options: GeneratorOptions) -> None:
        super().__init__(channels, text_width, options)
        self.first = Affine(channels, text_width, options.text_hidden)
        self.second = Affine(channels, text_width, options.text_hidden)
        self.project = zero_module(PointwiseConv3d(channels, channels))

    def residual(self, x: Tensor, text: TextEmbedding) -> Tensor:
        """Return features of the shape of `x` `(B, C, X, Y, Z)`."""
        h = silu(self.first(x, text))
        h = silu(modulate(h, *self.second.values(text), in_place=True))
        return self.project(h)


@FUSIONS.register("additive")
class AdditiveFusion(FusionUnit):
    """One affine layer on features without text, and no non-linearity after it.

    So the effects of phrases add up. This needs `--text_hidden 0`, the default, where scale and
    shift are linear in the text.
    """

    FIELDS = 2  # per channel

    def __init__(self, channels: int, text_width: int, options: GeneratorOptions) -> None:
        super().__init__(channels, text_width, options)
        self.fields = PointwiseConv3d(channels, self.FIELDS * channels)
        self.affine = Affine(self.FIELDS * channels, text_width, options.text_hidden)
        self.project: nn.Conv3d = PointwiseConv3d(self.FIELDS * channels, channels)
        zero_module(self.project)

    def residual(self, x: Tensor, text: TextEmbedding) -> Tensor:
        """Return features of the shape of `x` `(B, C, X, Y, Z)`."""
        return self._weighted_fields(x, text, self.project.weight.flatten(1), self.project.bias)

    def projected_residual(self, x: Tensor, text: TextEmbedding, weight: Tensor) -> Tensor:
        """Return the residual after a convolution by `weight` `(n, C, 1, 1, 1)`, `(B, n, ...)`."""
        weight = weight.flatten(1)
        project, bias = self.project.weight.flatten(1), self.project.bias
        assert bias is not None
        return self._weighted_fields(x, text, weight @ project, weight @ bias)

    def _weighted_fields(
        self, x: Tensor, text: TextEmbedding, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Return `weight` `(n, fields)` times the affine layer of the fields, `(B, n, X, Y, Z)`.

        Both are linear: one product per voxel with a matrix of the prompt.
        """
        voxels = silu(self.fields(x)).movedim(1, -1)
        scale, shift = self.affine.values(text)  # (B, fields)
        matrix = (weight * (1 + scale)[:, None]).transpose(1, 2)  # (B, fields, n)
        offset = F.linear(shift, weight, bias)[:, None]  # (B, 1, n)
        dtype = voxels.dtype
        product = torch.baddbmm(offset.to(dtype), voxels.flatten(1, 3), matrix.to(dtype))
        return product.unflatten(1, x.shape[2:]).movedim(-1, 1)


@FUSIONS.register("attention")
class AttentionFusion(FusionUnit):
    """Cross-attention: queries from voxels, keys and values from text tokens, padding masked.

    Attributes:
        on_weights: Called with the attention `(B, L, X, Y, Z)` of each voxel to the null token and
            the text's tokens, the mean over heads, where it is recorded.
    """

    on_weights: Callable[[Tensor], None] | None = None

    def __init__(self, channels: int, text_width: int, options: GeneratorOptions) -> None:
        super().__init__(channels, text_width, options)
        self.heads = options.attention_heads
        width = -(-channels // self.heads) * self.heads
        self.norm = nn.LayerNorm(channels)
        self.query: nn.Linear = nn.Linear(channels, width)
        self.key = nn.Linear(text_width, width, bias=False)  # softmax ignores a common bias
        self.value = nn.Linear(text_width, width)
        self.project = nn.Linear(width, channels)
        zero_module(self.project)

    def residual(self, x: Tensor, text: TextEmbedding) -> Tensor:
        """Return features of the shape of `x` `(B, C, X, Y, Z)`."""
        b, c, *size = x.shape
        voxels = self.norm(x.movedim(1, -1).reshape(b, -1, c)).to(x.dtype)  # (B, V, C)
        # A null token (zeros) before the text's tokens: the softmax of an empty prompt is finite,
        # and a voxel can attend to no phrase.
        tokens = F.pad(text.tokens, (0, 0, 1, 0)).to(voxels.dtype)
        valid = F.pad(text.valid, (1, 0), value=True)
        k = self._split_heads(self.key(tokens))
        v = self._split_heads(self.value(tokens))
        if self.on_weights is not None and text.valid.any():  # guidance leaves the text out, too
            self.on_weights(self._weights(voxels, k, valid).unflatten(-1, tuple(size)))
        attend = self._attend_folded if x.device.type == "cpu" else self._attend
        out = attend(voxels, k, v, valid)  # (B, V, C)
        return out.reshape(b, *size, c).movedim(-1, 1).to(x.dtype)

    def _weights(self, voxels: Tensor, k: Tensor, valid: Tensor) -> Tensor:
        """Return the attention of voxels `(B, V, C)` to tokens, the heads' mean, `(B, L, V)`."""
        q = self._split_heads(self.query(voxels))
        logits = (q @ k.to(q.dtype).transpose(-1, -2)) * k.shape[-1] ** -0.5
        logits = logits.masked_fill(~valid[:, None, None, :], -torch.inf)
        return logits.softmax(-1).mean(1).transpose(1, 2)

    def _attend(self, voxels: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
        q = self._split_heads(self.query(voxels))
        attended = F.scaled_dot_product_attention(
            q, k.to(q.dtype), v.to(q.dtype), attn_mask=valid[:, None, None, :]
        )
        return self.project(attended.transpose(1, 2).flatten(2))

    def _attend_folded(self, voxels: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
        """Return the same with the projections of voxels folded into the few keys and values.

        A CPU is three times as fast on two matrix products per voxel as on many small heads.
        """
        heads, length, width = k.shape[1:]
        with torch.autocast(voxels.device.type, enabled=False):
            k, v = k.float() * width**-0.5, v.float()
            query = self.query.weight.unflatten(0, (heads, width))
            keys = torch.einsum("hdc,bhld->bchl", query, k)  # (B, C, H, L)
            offset = torch.einsum("hd,bhld->bhl", self.query.bias.unflatten(0, (heads, width)), k)
            offset = offset.masked_fill(~valid[:, None], -torch.inf)
            project = self.project.weight.unflatten(1, (heads, width))
            values = torch.einsum("chd,bhld->bhlc", project, v)  # (B, H, L, C)
            dtype = voxels.dtype

            def attend(voxels: Tensor) -> Tensor:
                # Voxels last: a softmax over another axis than the last runs over whole lines.
                logits = torch.baddbmm(
                    offset.flatten(1)[..., None].to(dtype),
                    keys.flatten(2).transpose(1, 2).to(dtype),
                    voxels.transpose(1, 2),
                )
                # Sums are in float32 within the softmax, also for bf16.
                weights = logits.unflatten(1, (heads, length)).softmax(2).flatten(1, 2)
                return torch.baddbmm(
                    self.project.bias.to(dtype)[None, None],
                    weights.transpose(1, 2),  # (B, V, H L)
                    values.flatten(1, 2).to(dtype),
                )

            return in_slabs(attend, voxels, 1, SLAB)

    def _split_heads(self, t: Tensor) -> Tensor:
        """Return `(B, N, W)` as heads `(B, H, N, W/H)`."""
        return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)


@FUSIONS.register("both")
class BothFusion(FusionUnit):
    """Cross-attention, then affine."""

    def __init__(self, channels: int, text_width: int, options: GeneratorOptions) -> None:
        super().__init__(channels, text_width, options)
        self.attention = AttentionFusion(channels, text_width, options)
        self.affine = AffineFusion(channels, text_width, options)

    def residual(self, x: Tensor, text: TextEmbedding) -> Tensor:
        """Return features of the shape of `x` `(B, C, X, Y, Z)`."""
        attended = self.attention.residual(x, text)
        return attended + self.affine.residual(x + attended, text)
