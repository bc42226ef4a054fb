"""The GAN: generator and discriminators of pix2pixHD in 3D, conditioned on mask and text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models.base_model import (
    MODELS,
    Batch,
    BatchText,
    Condition,
    GenerativeModel,
    NetworkLoss,
    Tiler,
)
from models.networks.discriminator import DiscriminatorOutput, MultiScaleDiscriminator
from models.networks.generator import Generator, size_multiple
from models.networks.losses import (
    PerceptualLoss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    voxel_loss,
)
from options.train_options import TrainOptions


@MODELS.register("pix2pixhd")
class Pix2PixHDModel(GenerativeModel):
    """pix2pixHD (Wang et al. 2018) in 3D, conditioned on a mask and a text.

    Args:
        options: The run's options.
        n_labels: K, channels of the one-hot mask.
        text_width: C, channels of the text embedding.
        training: Whether to build what only training needs.
    """

    def __init__(
        self, options: TrainOptions, n_labels: int, text_width: int, training: bool = True
    ) -> None:
        self.options = options
        self.ema_network = "G"
        self.size_multiple = size_multiple(options.generator)
        self.noise_channels = options.generator.noise_channels
        self.generator = Generator(options.generator, n_labels, text_width)
        self.raw = {"G": self.generator}
        self.adversarial = options.loss.lambda_gan > 0 or options.loss.lambda_feat > 0
        if training and self.adversarial:
            channels = n_labels + 3 * options.generator.coord_channels
            self.raw["D"] = MultiScaleDiscriminator(options.discriminator, channels, text_width)
        self.networks = dict(self.raw)
        self.inference_network = self.generator
        perceptual = training and options.loss.lambda_perceptual > 0
        self.perceptual = PerceptualLoss(options.loss.perceptual_weights) if perceptual else None

    @classmethod
    def check_options(cls, options: TrainOptions) -> None:
        super().check_options(options)
        if options.loss.lambda_perceptual > 0:
            PerceptualLoss(options.loss.perceptual_weights)

    def param_groups(self) -> dict[str, list[dict[str, Any]]]:
        optim = self.options.optim
        enhanced = self.options.generator.n_local_enhancers > 0
        coarse: dict[str, Any] = {
            "params": list(self.generator.global_generator.parameters()),
            "lr": optim.lr,
            "from_epoch": optim.niter_fix_global if enhanced else 0,
        }
        separate_groups = [coarse]
        if self.generator.effect is not None:
            parameters = list(self.generator.effect.parameters())
            separate_groups.append(
                {"params": parameters, "lr": optim.lr * optim.lr_text, "from_epoch": 0}
            )
        grouped = {id(p) for group in separate_groups for p in group["params"]}
        remaining = [p for p in self.generator.parameters() if id(p) not in grouped]
        groups = {"G": [{"params": remaining, "lr": optim.lr, "from_epoch": 0}, *separate_groups]}
        if "D" in self.raw:
            parameters = list(self.raw["D"].parameters())
            groups["D"] = [{"params": parameters, "lr": optim.lr_D, "from_epoch": 0}]
        return groups

    def training_step(self, batch: Batch, text: BatchText) -> Iterator[NetworkLoss]:
        real, mask, coords = batch["image"], batch["mask"], batch["coords"]
        fake = self.networks["G"](mask, coords, batch["noise"], text.matched)
        with_coords = self.options.generator.coord_channels
        inputs = torch.cat([mask, coords], 1) if with_coords else mask
        pred_real: list[DiscriminatorOutput] = []
        if self.adversarial:
            outputs, mismatches = self._discriminate(real, fake.detach(), inputs, text)
            n = len(real)
            yield NetworkLoss("D", *self._discriminator_loss(outputs, mismatches, n))
            pred_real = [
                DiscriminatorOutput(o.scores[:n].detach(), [f[:n].detach() for f in o.features])
                for o in outputs
            ]
        terms = self._generator_terms(fake, real, inputs, text, pred_real)
        yield NetworkLoss("G", self._weighted_sum(terms, fake), terms)

    def _discriminate(
        self, real: Tensor, fake: Tensor, inputs: Tensor, text: BatchText
    ) -> tuple[list[DiscriminatorOutput], list[Tensor]]:
        """Return the outputs for real and generated volumes, and the scores of mismatched pairs.

        Real and generated volumes pass as one batch, because a wrapped network allows one forward
        pass before its backward pass.
        """
        mismatched = text.mismatched.pooled if self.options.discriminator.text_D else None
        pooled = text.matched.pooled.repeat(2, 1)
        outputs, mismatches = self.networks["D"](
            torch.cat([real, fake]), inputs, pooled, mismatched
        )
        return outputs, mismatches

    def _discriminator_loss(
        self, outputs: list[DiscriminatorOutput], mismatches: list[Tensor], n: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the discriminators, whose first `n` volumes are real, and its term."""
        mode = self.options.loss.gan_mode
        loss_real = discriminator_loss(mode, [o.scores[:n] for o in outputs], real=True)
        loss_fake = discriminator_loss(mode, [o.scores[n:] for o in outputs], real=False)
        if mismatches:
            loss_fake = (loss_fake + discriminator_loss(mode, mismatches, real=False)) / 2
        loss = (loss_real + loss_fake) / 2
        return loss, {"D": loss}

    def _generator_terms(
        self,
        fake: Tensor,
        real: Tensor,
        inputs: Tensor,
        text: BatchText,
        pred_real: list[DiscriminatorOutput],
    ) -> dict[str, Tensor]:
        """Return the unweighted terms of the generator's loss whose weight is not 0."""
        weights = self.options.loss
        terms: dict[str, Tensor] = {}
        if self.adversarial:
            discriminator = self.raw["D"].requires_grad_(False)
            pred_fake, _ = discriminator(fake, inputs, text.matched.pooled)
            discriminator.requires_grad_(True)
            if weights.lambda_gan:
                terms["G_gan"] = generator_loss(weights.gan_mode, [o.scores for o in pred_fake])
            if weights.lambda_feat:
                terms["G_feat"] = feature_matching_loss(pred_fake, pred_real)
        if weights.lambda_l1:
            background = inputs[:, :1]  # the first label
            terms["G_l1"] = voxel_loss(
                fake, real, background, weights.smooth_l1_beta, weights.label_weight
            )
        if self.perceptual is not None:
            terms["G_perceptual"] = self.perceptual.to(fake.device)(fake, real)
        return terms

    def _weighted_sum(self, terms: dict[str, Tensor], fake: Tensor) -> Tensor:
        weights = self.options.loss
        lambdas = {
            "G_gan": weights.lambda_gan,
            "G_feat": weights.lambda_feat,
            "G_l1": weights.lambda_l1,
            "G_perceptual": weights.lambda_perceptual,
        }
        total = fake.new_zeros(())
        for name, term in terms.items():
            total = total + lambdas[name] * term
        return total

    def generate(self, condition: Condition, noise: Tensor, tiler: Tiler) -> Tensor:
        def generate_tiles(mask: Tensor, coords: Tensor, noise: Tensor) -> Tensor:
            text = condition.text.expand(len(mask))
            return self.inference_network(mask, coords, noise, text)

        return tiler(generate_tiles, condition.mask, condition.coords, noise)
