"""PatchGANs at several scales of the input, conditioned on mask (input) and text (projection)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.label_embedding import LabelEmbedding
from models.networks.layers import Conv3d, ScalarConv3d, make_norm
from options.train_options import DiscriminatorOptions

# The noise of a scan is about 1/50 of the HU window, and the mask holds zeros and ones. Without an
# amplified channel of the detail alone, the discriminator stays at chance for hundreds of steps.
DETAIL_GAIN = 10.0
KERNEL = 4
# As in pix2pixHD: with a smaller padding, small patches run out of voxels at the coarser scales.
PADDING = 2


@dataclass
class DiscriminatorOutput:
    """Output of one scale.

    Attributes:
        scores: `(B, 1, ...)`, one score per patch.
        features: `(B, C, ...)` of each layer.
    """

    scores: Tensor
    features: list[Tensor]


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017) with a text projection (Miyato & Koyama 2018, eq. 3).

    Args:
        c_in: Channels of volume, its detail and the condition together.
        options: Width, depth, norm and whether the text is used.
        text_width: Width of the text embedding.
    """

    def __init__(self, c_in: int, options: DiscriminatorOptions, text_width: int) -> None:
        super().__init__()
        norm = options.norm_D
        depth = options.n_layers_D
        bias = norm in ("none", "rms")  # other norms subtract it again
        widths = [min(options.ndf * 2**i, options.ndf * 8) for i in range(depth + 1)]
        first = Conv3d(c_in, widths[0], KERNEL, stride=2, padding=PADDING)
        layers = [nn.Sequential(first, nn.LeakyReLU(0.2))]
        for i in range(1, depth + 1):
            stride = 2 if i < depth else 1
            conv = Conv3d(
                widths[i - 1], widths[i], KERNEL, stride=stride, padding=PADDING, bias=bias
            )
            layers.append(nn.Sequential(conv, make_norm(norm, widths[i]), nn.LeakyReLU(0.2)))
        self.layers = nn.ModuleList(layers)
        self.score = ScalarConv3d(widths[-1], KERNEL, PADDING)
        self.text = nn.Linear(text_width, widths[-1], bias=False) if options.text_D else None

    def forward(self, x: Tensor, texts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Score volumes under several texts, which share the features.

        Args:
            x: `(B, c_in, X, Y, Z)`.
            texts: Pooled embeddings `(M, text_width)` of the first M volumes, M at most B.

        Returns:
            Scores `(M, 1, ...)` in float32 for each of the texts, and the features of each layer.
        """
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        scores = self.score(x).float()
        size = scores.shape[2:]
        scores_by_text = []
        for pooled in texts:
            count = len(pooled)
            scores_by_text.append(scores[:count] + self._project(x[:count], pooled, size))
        return scores_by_text, features

    def _project(self, x: Tensor, pooled: Tensor, size: Sequence[int]) -> Tensor:
        """Return the inner product of features and embedded text, on the grid of the scores."""
        if self.text is None:
            return x.new_zeros(())
        direction = self.text(pooled) / x.shape[1] ** 0.5
        product = torch.einsum("bcxyz,bc->bxyz", x, direction.to(x.dtype))[:, None].float()
        return F.interpolate(product, tuple(size), mode="nearest")


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool3d(x, 3, stride=2, padding=1, count_include_pad=False)


class MultiScaleDiscriminator(nn.Module):
    """`num_D` PatchGANs, each on the input pooled to half the resolution of the one before.

    This is section 3.2 of Wang et al. 2018 (pix2pixHD).

    Args:
        options: Scales, width, depth, norm and whether the text is used.
        c_condition: Channels of mask and coordinates.
        text_width: Width of the text embedding.
        labels: Embeds the mask, the first channel of the condition; None where it is one-hot.
    """

    def __init__(
        self,
        options: DiscriminatorOptions,
        c_condition: int,
        text_width: int,
        labels: LabelEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            PatchDiscriminator(2 + c_condition, options, text_width) for _ in range(options.num_D)
        )
        self.labels = labels

    def forward(
        self, volume: Tensor, condition: Tensor, pooled: Tensor, mismatched: Tensor | None = None
    ) -> tuple[list[DiscriminatorOutput], list[Tensor]]:
        """Score volumes at every scale.

        Args:
            volume: `(B, 1, X, Y, Z)`.
            condition: `(N, C, X, Y, Z)`, mask and coordinates; repeated if B is a multiple of N.
            pooled: `(B, text_width)`.
            mismatched: `(M, text_width)`, texts of other cases for the first M volumes.

        Returns:
            The output of each scale, and the scores of the mismatched pairs at each scale.
        """
        texts = [pooled] if mismatched is None else [pooled, mismatched]
        outputs: list[DiscriminatorOutput] = []
        mismatched_scores: list[Tensor] = []
        if self.labels is not None:
            condition = torch.cat([self.labels(condition[:, :1]), condition[:, 1:]], 1)
        for i, scale in enumerate(self.scales):
            if i:
                volume = _halve(volume)
                condition = _halve(condition)
            repeated = condition.repeat(len(volume) // len(condition), 1, 1, 1, 1)
            smooth = F.avg_pool3d(volume, 3, stride=1, padding=1, count_include_pad=False)
            detail = DETAIL_GAIN * (volume - smooth)
            scores, features = scale(torch.cat([volume, detail, repeated], 1), texts)
            outputs.append(DiscriminatorOutput(scores[0], features))
            mismatched_scores += scores[1:]
        return outputs, mismatched_scores
