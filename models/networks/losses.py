"""Loss terms of the GAN: adversarial, feature matching, voxel-wise, perceptual. Each is a function
or a small module.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from models.networks.discriminator import DiscriminatorOutput
from util.cli import UserError


def discriminator_loss(mode: str, scores: list[Tensor], real: bool) -> Tensor:
    """How wrong scores are, averaged over scales: LSGAN (Mao et al. 2017, eq. 2) or hinge (Lim & Ye
    2017).
    """
    if mode == "lsgan":
        terms = [(s - float(real)).square().mean() for s in scores]
    else:
        terms = [F.relu(1 - s if real else 1 + s).mean() for s in scores]
    return torch.stack(terms).mean()


def generator_loss(mode: str, scores: list[Tensor]) -> Tensor:
    """How little generated volumes are taken for real, averaged over scales."""
    if mode == "lsgan":
        return discriminator_loss(mode, scores, real=True)
    return torch.stack([-s.mean() for s in scores]).mean()


def feature_matching_loss(
    fake: list[DiscriminatorOutput], real: list[DiscriminatorOutput]
) -> Tensor:
    """Mean absolute difference of discriminator features, over layers and scales (Wang et al. 2018,
    eq. 4).
    """
    terms = [
        F.l1_loss(f.float(), r.detach().float())
        for on_fake, on_real in zip(fake, real, strict=True)
        for f, r in zip(on_fake.features, on_real.features, strict=True)
    ]
    return torch.stack(terms).mean()


def voxel_loss(
    fake: Tensor, real: Tensor, background: Tensor, smooth: float, label_weight: float
) -> Tensor:
    """Mean absolute error, quadratic below `smooth` (Girshick 2015, eq. 3), labelled voxels
    weighted.

    Args:
        fake, real: `(B, 1, X, Y, Z)` in [-1, 1].
        background: `(B, 1, X, Y, Z)`, 1 where the mask has no label; elsewhere an error counts
            `label_weight` times.
        smooth: In units of [-1, 1]; 0 is the pure absolute error.
        label_weight: 1 treats all voxels alike.
    """
    errors = F.smooth_l1_loss(fake, real, beta=smooth, reduction="none")
    return torch.mean(errors * (1 + (label_weight - 1) * (1 - background)))


class PerceptualLoss(nn.Module):
    """Difference of VGG19 features on slices of three planes (Johnson et al. 2016).

    Args:
        weights: File with torchvision's VGG19 state dict; empty looks into torch's hub cache.

    Raises:
        UserError: The weights are not there or do not fit.
    """

    SHARES = (
        (3, 1 / 16),
        (8, 1 / 8),
        (17, 1 / 4),
    )  # layer after which features are compared, weight
    SLICES = 4  # slices a plane and step
    mean: Tensor
    std: Tensor

    def __init__(self, weights: str = "") -> None:
        super().__init__()
        url = torchvision.models.VGG19_Weights.IMAGENET1K_V1.url
        path = (
            Path(weights)
            if weights
            else Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
        )
        if not path.is_file():
            raise UserError(
                f"--lambda_perceptual needs VGG19 weights, and {path} is not there. Download "
                f"{path.name} as named in torchvision's VGG19_Weights on another machine and give "
                "its place by --perceptual_weights, or set --lambda_perceptual 0."
            )
        vgg = torchvision.models.vgg19()
        try:
            vgg.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise UserError(
                f"--perceptual_weights: {path} does not hold torchvision's VGG19 weights ({error})."
            ) from None
        self.layers = vgg.features[: self.SHARES[-1][0] + 1].eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """`fake`, `real`: `(B, 1, X, Y, Z)` in [-1, 1]."""
        return torch.stack([self._plane(fake, real, axis) for axis in (2, 3, 4)]).mean()

    def _plane(self, fake: Tensor, real: Tensor, axis: int) -> Tensor:
        # Evenly spaced slices, not drawn ones: a step stays a pure function of its batch.
        at = torch.linspace(0, fake.shape[axis] - 1, self.SLICES + 2, device=fake.device)[
            1:-1
        ].long()
        x, y = (
            self._prepare(v.index_select(axis, at).movedim(axis, 1).flatten(0, 1))
            for v in (fake, real)
        )
        loss = fake.new_zeros(())
        shares = dict(self.SHARES)
        for i, layer in enumerate(self.layers):
            x, y = layer(x), layer(y)
            if i in shares:
                loss = loss + shares[i] * F.l1_loss(x.float(), y.float())
        return loss

    def _prepare(self, slices: Tensor) -> Tensor:
        """`(N, 1, H, W)` in [-1, 1] as VGG takes it: three channels, ImageNet's mean and
        deviation.
        """
        return ((slices + 1) / 2).expand(-1, 3, -1, -1).sub(self.mean).div(self.std)
