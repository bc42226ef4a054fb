"""PatchGANs at several scales of the input, conditioned on the mask (seen) and the text
(projection).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.layers import Conv3d, ScalarConv3d, make_norm
from options.train_options import DiscriminatorOptions

# A scan's noise is about a fiftieth of the HU window, beside a mask of zeros and ones: without a
# channel that holds the
# detail alone, amplified, the discriminator stays at chance for hundreds of steps.
DETAIL_GAIN = 10.0


@dataclass
class DiscriminatorOutput:
    """What one scale says: `scores` `(B, 1, ...)` a patch, and the `features` `(B, C, ...)` of its
    layers.
    """

    scores: Tensor
    features: list[Tensor]


class PatchDiscriminator(nn.Module):
    """One PatchGAN (Isola et al. 2017) with a text projection (Miyato & Koyama 2018, eq. 3).

    Args:
        c_in: Channels of volume, its detail and the condition together.
        options: Width, depth, norm and whether text is shown.
        text_width: Width of the text embedding.
    """

    def __init__(self, c_in: int, options: DiscriminatorOptions, text_width: int) -> None:
        super().__init__()
        norm = options.norm_D
        widths = [min(options.ndf * 2**i, options.ndf * 8) for i in range(options.n_layers_D + 1)]
        # Padding 2, as in pix2pixHD: with less, small patches run out of voxels at the coarser
        # scales.
        layers = [nn.Sequential(Conv3d(c_in, widths[0], 4, stride=2, padding=2), nn.LeakyReLU(0.2))]
        for i in range(1, options.n_layers_D + 1):
            stride = 2 if i < options.n_layers_D else 1
            layers.append(
                nn.Sequential(
                    Conv3d(
                        widths[i - 1],
                        widths[i],
                        4,
                        stride=stride,
                        padding=2,
                        bias=norm in ("none", "rms"),
                    ),
                    make_norm(norm, widths[i]),
                    nn.LeakyReLU(0.2),
                )
            )
        self.layers = nn.ModuleList(layers)
        self.score = ScalarConv3d(widths[-1], 4, padding=2)
        self.text = nn.Linear(text_width, widths[-1], bias=False) if options.text_D else None

    def forward(self, x: Tensor, texts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Fp32 scores of the first volumes under each of the `texts` `(M, text_width)`, M at most
        B; and the features.
        """
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        scores = self.score(x).float()
        return [
            scores[: len(t)] + self._agreement(x[: len(t)], t, scores.shape[2:]) for t in texts
        ], features

    def _agreement(self, last: Tensor, pooled: Tensor, size: Sequence[int]) -> Tensor:
        if self.text is None:
            return last.new_zeros(())
        direction = self.text(pooled) / last.shape[1] ** 0.5
        found = torch.einsum("bcxyz,bc->bxyz", last, direction.to(last.dtype))[:, None].float()
        return F.interpolate(found, tuple(size), mode="nearest")


class MultiScaleDiscriminator(nn.Module):
    """`num_D` PatchGANs, each on the input pooled to half the resolution of the one before (Wang et
    al. 2018, 3.2).
    """

    def __init__(self, options: DiscriminatorOptions, c_condition: int, text_width: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            PatchDiscriminator(2 + c_condition, options, text_width) for _ in range(options.num_D)
        )

    def forward(
        self, volume: Tensor, condition: Tensor, pooled: Tensor, mismatched: Tensor | None = None
    ) -> tuple[list[DiscriminatorOutput], list[Tensor]]:
        """Judges volumes.

        Args:
            volume: `(B, 1, X, Y, Z)`.
            condition: `(N, C, X, Y, Z)`, mask and coordinates; repeated where B is a multiple of N.
            pooled: `(B, text_width)`.
            mismatched: `(M, text_width)` texts that do not belong to the first M volumes; their
                features are shared.

        Returns:
            A judgement a scale, and the scores of the mismatched pairs a scale.
        """
        texts = [pooled] if mismatched is None else [pooled, mismatched]
        judged, mismatches = [], []
        for i, scale in enumerate(self.scales):
            if i:
                volume, condition = (
                    F.avg_pool3d(v, 3, stride=2, padding=1, count_include_pad=False)
                    for v in (volume, condition)
                )
            repeated = condition.repeat(len(volume) // len(condition), 1, 1, 1, 1)
            smooth = F.avg_pool3d(volume, 3, stride=1, padding=1, count_include_pad=False)
            detail = DETAIL_GAIN * (volume - smooth)
            (scores, *others), features = scale(torch.cat([volume, detail, repeated], 1), texts)
            judged.append(DiscriminatorOutput(scores, features))
            mismatches += others
        return judged, mismatches
