"""The GAN: pix2pixHD's generator and discriminators in 3D, with text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.base_model import MODELS, Batch, GenerativeModel, Tiler, Update
from models.networks.discriminator import DiscriminatorOutput, MultiScaleDiscriminator
from models.networks.generator import Generator, size_multiple
from models.networks.losses import (
    PerceptualLoss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    voxel_loss,
)
from models.text.base_encoder import TextEmbedding
from options.train_options import TrainOptions


@MODELS.register("pix2pixhd")
class Pix2PixHDModel(GenerativeModel):
    """pix2pixHD (Wang et al. 2018) conditioned on a mask and a text.

    Args:
        options: The run's options.
        n_labels: K, channels of the one-hot mask.
        text_width: Width of the text embedding.
        training: Whether to build what only training needs.
    """

    def __init__(
        self, options: TrainOptions, n_labels: int, text_width: int, training: bool = True
    ) -> None:
        self.options = options
        self.ema_network = "G"
        self.size_multiple = size_multiple(options.generator)
        self.noise_channels = options.generator.noise_channels
        self.raw = {"G": Generator(options.generator, n_labels, text_width)}
        self.adversarial = options.loss.lambda_gan > 0 or options.loss.lambda_feat > 0
        if training and self.adversarial:
            condition = n_labels + 3 * options.generator.coord_channels
            self.raw["D"] = MultiScaleDiscriminator(options.discriminator, condition, text_width)
        self.networks = dict(self.raw)
        perceptual = training and options.loss.lambda_perceptual > 0
        self.perceptual = PerceptualLoss(options.loss.perceptual_weights) if perceptual else None

    def param_groups(self) -> dict[str, list[dict[str, Any]]]:
        optim, network = self.options.optim, self.raw["G"]
        assert isinstance(network, Generator)
        late = optim.niter_fix_global if self.options.generator.n_local_enhancers else 0
        parts = [
            (list(part.parameters()), lr, epoch)
            for part, lr, epoch in (
                (network.global_generator, optim.lr, late),
                (network.effect, optim.lr * optim.lr_text, 0),
            )
            if part is not None
        ]
        known = {id(p) for parameters, _, _ in parts for p in parameters}
        parts.insert(0, ([p for p in network.parameters() if id(p) not in known], optim.lr, 0))
        groups = {
            "G": [
                {"params": parameters, "lr": lr, "from_epoch": epoch}
                for parameters, lr, epoch in parts
            ]
        }
        if "D" in self.raw:
            groups["D"] = [
                {"params": list(self.raw["D"].parameters()), "lr": optim.lr_D, "from_epoch": 0}
            ]
        return groups

    def training_step(
        self, batch: Batch, text: TextEmbedding, other: TextEmbedding, update: Update
    ) -> dict[str, Tensor]:
        real, mask, coords = batch["image"], batch["mask"], batch["coords"]
        fake = self.networks["G"](mask, coords, batch["noise"], text)
        terms: dict[str, Tensor] = {}
        on_real: list[DiscriminatorOutput] = []
        condition = torch.cat([mask, coords], 1) if self.options.generator.coord_channels else mask
        if self.adversarial:
            on_real, terms["D"] = self._train_discriminator(
                real, fake.detach(), condition, text, other, update
            )
        loss = self._generator_terms(terms, fake, real, condition, text, on_real)
        update("G", loss, {k: v for k, v in terms.items() if k != "D"})
        return {name: term.detach() for name, term in terms.items()}

    def _train_discriminator(
        self,
        real: Tensor,
        fake: Tensor,
        condition: Tensor,
        text: TextEmbedding,
        other: TextEmbedding,
        update: Update,
    ) -> tuple[list[DiscriminatorOutput], Tensor]:
        """Real and generated volumes go through as one batch: a wrapped network allows one pass
        before its backward.
        """
        mode, n = self.options.loss.gan_mode, len(real)
        mismatched = other.pooled if self.options.discriminator.text_D else None
        judged, mismatches = self.networks["D"](
            torch.cat([real, fake]), condition, text.pooled.repeat(2, 1), mismatched
        )
        loss_real = discriminator_loss(mode, [j.scores[:n] for j in judged], real=True)
        loss_fake = discriminator_loss(mode, [j.scores[n:] for j in judged], real=False)
        if mismatches:
            loss_fake = (loss_fake + discriminator_loss(mode, mismatches, real=False)) / 2
        loss = (loss_real + loss_fake) / 2
        on_real = [
            DiscriminatorOutput(j.scores[:n].detach(), [f[:n].detach() for f in j.features])
            for j in judged
        ]
        update("D", loss, {"D": loss})
        return on_real, loss

    def _generator_terms(
        self,
        terms: dict[str, Tensor],
        fake: Tensor,
        real: Tensor,
        condition: Tensor,
        text: TextEmbedding,
        on_real: list[DiscriminatorOutput],
    ) -> Tensor:
        """Fills `terms` and returns their weighted sum."""
        weights, total = self.options.loss, fake.new_zeros(())
        if self.adversarial:
            judge = self.raw["D"].requires_grad_(False)
            on_fake, _ = judge(fake, condition, text.pooled)
            judge.requires_grad_(True)
            if weights.lambda_gan:
                terms["G_gan"] = generator_loss(weights.gan_mode, [j.scores for j in on_fake])
                total = total + weights.lambda_gan * terms["G_gan"]
            if weights.lambda_feat:
                terms["G_feat"] = feature_matching_loss(on_fake, on_real)
                total = total + weights.lambda_feat * terms["G_feat"]
        if weights.lambda_l1:
            background = condition[:, :1]  # the first label
            terms["G_l1"] = voxel_loss(
                fake, real, background, weights.smooth_l1_beta, weights.label_weight
            )
            total = total + weights.lambda_l1 * terms["G_l1"]
        if self.perceptual is not None:
            terms["G_perceptual"] = self.perceptual.to(fake.device)(fake, real)
            total = total + weights.lambda_perceptual * terms["G_perceptual"]
        return total

    def generate(
        self,
        network: nn.Module,
        mask: Tensor,
        coords: Tensor,
        noise: Tensor,
        text: TextEmbedding,
        tiler: Tiler,
    ) -> Tensor:
        def tile(mask: Tensor, coords: Tensor, noise: Tensor) -> Tensor:
            b = len(mask)
            repeated = TextEmbedding(
                *(t.expand(b, *t.shape[1:]) for t in (text.tokens, text.valid, text.pooled))
            )
            return network(mask, coords, noise, repeated)

        return tiler(tile, mask, coords, noise)
