"""PatchGANs at several scales of the input, conditioned on the mask (seen) and the text (projection)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import make_norm
from options.train_options import DiscriminatorOptions


@dataclass
class Judgement:
    """What one scale says: `scores` `(B, 1, ...)` a patch, and the `features` `(B, C, ...)` of its layers."""

    scores: Tensor
    features: list[Tensor]


class PatchDiscriminator(nn.Module):
    """One PatchGAN (Isola et al. 2017) with a text projection (Miyato & Koyama 2018, eq. 3).

    Args:
        c_in: Channels of volume and condition together.
        options: Width, depth and whether text is shown.
        text_width: Width of the text embedding.
        norm: Normalisation between its layers.
    """

    def __init__(self, c_in: int, options: DiscriminatorOptions, text_width: int, norm: str) -> None:
        super().__init__()
        widths = [min(options.ndf * 2**i, options.ndf * 8) for i in range(options.n_layers_D + 1)]
        # Padding 2, as in pix2pixHD: with less, small patches run out of voxels at the coarser scales.
        layers = [nn.Sequential(nn.Conv3d(c_in, widths[0], 4, stride=2, padding=2), nn.LeakyReLU(0.2))]
        for i in range(1, options.n_layers_D + 1):
            stride = 2 if i < options.n_layers_D else 1
            layers.append(nn.Sequential(
                nn.Conv3d(widths[i - 1], widths[i], 4, stride=stride, padding=2, bias=norm in ("none", "rms")),
                make_norm(norm, widths[i]), nn.LeakyReLU(0.2)))
        self.layers = nn.ModuleList(layers)
        self.score = nn.Conv3d(widths[-1], 1, 4, padding=2)
        self.text = nn.Linear(text_width, widths[-1], bias=False) if options.text_D else None

    def features(self, x: Tensor) -> list[Tensor]:
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found

    def scores(self, last: Tensor, pooled: Tensor) -> Tensor:
        """Scores of the last features under a text; fp32."""
        out = self.score(last).float()
        if self.text is not None:
            direction = self.text(pooled)[:, :, None, None, None] / last.shape[1] ** 0.5
            agreement = (last * direction.to(last.dtype)).sum(1, keepdim=True).float()
            out = out + F.interpolate(agreement, out.shape[2:], mode="nearest")
        return out


class MultiScaleDiscriminator(nn.Module):
    """`num_D` PatchGANs, each on the input pooled to half the resolution of the one before (Wang et al. 2018, 3.2)."""

    def __init__(self, options: DiscriminatorOptions, c_condition: int, text_width: int, norm: str) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            PatchDiscriminator(1 + c_condition, options, text_width, norm) for _ in range(options.num_D))

    def forward(
        self, volume: Tensor, condition: Tensor, pooled: Tensor, mismatched: Tensor | None = None
    ) -> tuple[list[Judgement], list[Tensor]]:
        """Judges volumes.

        Args:
            volume: `(B, 1, X, Y, Z)`.
            condition: `(B, C, X, Y, Z)`, mask and coordinates.
            pooled: `(B, text_width)`.
            mismatched: `(M, text_width)` texts that do not belong to the first M volumes; their features are shared.

        Returns:
            A judgement a scale, and the scores of the mismatched pairs a scale.
        """
        x = torch.cat([volume, condition.to(volume.dtype)], 1)
        judged, mismatches = [], []
        for i, scale in enumerate(self.scales):
            assert isinstance(scale, PatchDiscriminator)
            if i:
                x = F.avg_pool3d(x, 3, stride=2, padding=1, count_include_pad=False)
            features = scale.features(x)
            judged.append(Judgement(scale.scores(features[-1], pooled), features))
            if mismatched is not None:
                mismatches.append(scale.scores(features[-1][: len(mismatched)], mismatched))
        return judged, mismatches
