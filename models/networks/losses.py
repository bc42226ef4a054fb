"""Loss terms of the GAN: adversarial, feature matching, voxel-wise and perceptual."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.discriminator import DiscriminatorOutput
from models.weights import read_weights
from util.cli import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_SD = (0.229, 0.224, 0.225)
LAYER_WEIGHTS = {3: 1 / 16, 8: 1 / 8, 17: 1 / 4}  # weight of the features after a VGG19 layer


def discriminator_loss(mode: str, scores: list[Tensor], real: bool) -> Tensor:
    """Discriminator loss of real or generated volumes, averaged over scales.

    Args:
        mode: `lsgan` (Mao et al. 2017, eq. 2 with a = 0, b = 1) or `hinge` (Lim & Ye 2017).
        scores: `(B, 1, ...)` of each scale.
        real: Whether the volumes are real.
    """
    if mode == "lsgan":
        terms = [(s - float(real)).square().mean() for s in scores]
    else:
        terms = [F.relu(1 - s if real else 1 + s).mean() for s in scores]
    return torch.stack(terms).mean()


def generator_loss(mode: str, scores: list[Tensor]) -> Tensor:
    """Generator loss of the scores of generated volumes, averaged over scales."""
    if mode == "lsgan":
        return discriminator_loss(mode, scores, real=True)
    return torch.stack([-s.mean() for s in scores]).mean()


def feature_matching_loss(
    fake: list[DiscriminatorOutput], real: list[DiscriminatorOutput], draws: int = 1
) -> Tensor:
    """Mean absolute difference of discriminator features over layers and scales.

    This is eq. 4 of Wang et al. 2018 (pix2pixHD), with a mean in place of the sum over layers. For
    two draws, half of their own difference is subtracted, which makes it an energy score (see
    `models.networks.scores`): features of vessels need not lie where the scan has them.

    Args:
        fake: Output for P draws of each of B conditions, one draw of all after the other.
        real: Output for the B scans.
        draws: P, 1 or 2.
    """
    terms = []
    for pred_fake, pred_real in zip(fake, real, strict=True):
        for f, r in zip(pred_fake.features, pred_real.features, strict=True):
            f = f.float()
            term = F.l1_loss(f, r.detach().float().repeat(draws, 1, 1, 1, 1))
            if draws == 2:
                first, second = f.chunk(2)
                term = term - F.l1_loss(first, second) / 2
            terms.append(term)
    return torch.stack(terms).mean()


def voxel_loss(
    fake: Tensor, real: Tensor, background: Tensor, beta: float, label_weight: float
) -> Tensor:
    """Smooth L1 loss (Girshick 2015, eq. 3), with labelled voxels weighted.

    Args:
        fake: `(B, 1, X, Y, Z)` in [-1, 1].
        real: `(B, 1, X, Y, Z)` in [-1, 1].
        background: `(B, 1, X, Y, Z)`, 1 where the mask has no label.
        beta: Absolute error, in units of [-1, 1], below which the loss is quadratic; 0 for L1.
        label_weight: Weight of labelled voxels relative to the background.
    """
    errors = F.smooth_l1_loss(fake, real, beta=beta, reduction="none")
    return torch.mean(errors * (1 + (label_weight - 1) * (1 - background)))


class PerceptualLoss(nn.Module):
    """Difference of VGG19 features on slices of three planes (Johnson et al. 2016).

    Args:
        weights: File with torchvision's VGG19 state dict; empty for the file in torch's hub cache.

    Raises:
        UserError: The weights are missing or do not fit.
    """

    SLICES = 4  # per plane and step
    mean: Tensor
    std: Tensor

    def __init__(self, weights: str = "") -> None:
        super().__init__()
        path = Path(weights) if weights else _vgg_cache_file()
        if not path.is_file():
            raise UserError(
                f"--lambda_perceptual needs VGG19 weights, and {path} is not there. Download "
                f"{path.name} as named in torchvision's VGG19_Weights on another machine and give "
                "its path by --perceptual_weights, or set --lambda_perceptual 0."
            )
        from torchvision.models import vgg19  # slow to import, and needed by few

        vgg = vgg19()
        try:
            vgg.load_state_dict(read_weights(path, "--perceptual_weights"))
        except RuntimeError as error:
            raise UserError(
                f"--perceptual_weights: {path} does not hold torchvision's VGG19 weights ({error})."
            ) from None
        last = max(LAYER_WEIGHTS)
        self.layers = vgg.features[: last + 1].eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_SD)[:, None, None])

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """`fake`, `real`: `(B, 1, X, Y, Z)` in [-1, 1]."""
        return torch.stack([self._compare(fake, real, axis) for axis in (2, 3, 4)]).mean()

    def _compare(self, fake: Tensor, real: Tensor, axis: int) -> Tensor:
        # Evenly spaced slices, not random ones: a step is a pure function of its batch.
        size = fake.shape[axis]
        positions = torch.linspace(0, size - 1, self.SLICES + 2, device=fake.device)[1:-1].long()
        x = self._prepare_slices(fake, positions, axis)
        y = self._prepare_slices(real, positions, axis)
        loss = fake.new_zeros(())
        for i, layer in enumerate(self.layers):
            x = layer(x)
            y = layer(y)
            if i in LAYER_WEIGHTS:
                loss = loss + LAYER_WEIGHTS[i] * F.l1_loss(x.float(), y.float())
        return loss

    def _prepare_slices(self, volume: Tensor, positions: Tensor, axis: int) -> Tensor:
        """Return slices of `(B, 1, X, Y, Z)` as VGG's input: `(N, 3, H, W)`, as for ImageNet."""
        slices = volume.index_select(axis, positions).movedim(axis, 1).flatten(0, 1)
        return ((slices + 1) / 2).expand(-1, 3, -1, -1).sub(self.mean).div(self.std)


def _vgg_cache_file() -> Path:
    from torchvision.models import VGG19_Weights

    url = VGG19_Weights.IMAGENET1K_V1.url
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
