"""The GAN: generator and discriminators of pix2pixHD in 3D, conditioned on mask and text."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.base_model import (
    MODELS,
    Batch,
    BatchText,
    Condition,
    GenerativeModel,
    NetworkLoss,
    Tiler,
)
from models.networks.condition import input_channels, organ_region
from models.networks.discriminator import DiscriminatorOutput, MultiScaleDiscriminator
from models.networks.fusion import FusionUnit
from models.networks.generator import Generator, LocalEnhancer, receptive_halo, size_multiple
from models.networks.label_embedding import make_label_embedding
from models.networks.layers import VALUES_PER_CHANNEL, NoiseInjection
from models.networks.losses import (
    PerceptualLoss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    voxel_loss,
)
from models.networks.scores import mean_score, patch_score, quantile_score
from models.sliding_window import ScaledInput, SlidingWindow, TileReach
from models.text.base_encoder import TextEmbedding
from options.train_options import TrainOptions
from util.cli import UserError
from util.volume_inputs import VolumeInput


@MODELS.register("pix2pixhd")
class Pix2PixHDModel(GenerativeModel):
    """pix2pixHD (Wang et al. 2018) in 3D, conditioned on a mask and a text.

    Args:
        options: The run's options.
        n_labels: K, channels of the one-hot mask.
        text_width: C, channels of the text embedding.
        training: Whether to build what only training needs.
    """

    boxed_inputs = True
    # The discriminator sees a volume and its detail before the mask.
    label_offsets = MappingProxyType({"D.scales": 2})

    def __init__(
        self, options: TrainOptions, n_labels: int, text_width: int, training: bool = True
    ) -> None:
        self.options = options
        self.ema_network = "G"
        has_halo = receptive_halo(options.generator) is not None
        self.exact_tiles = has_halo and options.generator.noise_by_place
        self.size_multiple = size_multiple(options.generator)
        self.noise_channels = options.generator.noise_channels
        self.input_channels = input_channels(options.generator, n_labels) + self.noise_channels
        loss = options.loss
        self.draws = 2 if loss.lambda_mean or loss.lambda_patch or loss.lambda_quantile else 1
        self.body = options.data.body_channel(n_labels)
        self.generator = Generator(options.generator, n_labels, text_width, self.body)
        self.raw = {"G": self.generator}
        self.adversarial = options.loss.lambda_gan > 0 or options.loss.lambda_feat > 0
        if training and self.adversarial:
            channels = input_channels(options.generator, n_labels)
            labels = make_label_embedding(n_labels, self.body)
            self.raw["D"] = MultiScaleDiscriminator(
                options.discriminator, channels, text_width, labels
            )
        self.networks = dict(self.raw)
        self.inference_network = self.generator
        perceptual = training and options.loss.lambda_perceptual > 0
        self.perceptual = PerceptualLoss(options.loss.perceptual_weights) if perceptual else None

    @classmethod
    def check_options(cls, options: TrainOptions) -> None:
        super().check_options(options)
        if options.loss.lambda_perceptual > 0:
            PerceptualLoss(options.loss.perceptual_weights)
        scored = options.loss.lambda_patch or options.loss.lambda_quantile
        if scored and not options.generator.noise_channels:
            raise UserError(
                "--lambda_patch and --lambda_quantile reward draws that differ, and with "
                "--noise_channels 0 all draws are equal. Set both to 0, or --noise_channels to 4."
            )

    def param_groups(self) -> dict[str, list[dict[str, Any]]]:
        optim = self.options.optim
        text_rate = optim.lr * optim.lr_text
        wait = optim.niter_fix_global if self.options.generator.n_local_enhancers else 0
        global_generator = {id(p) for p in self.generator.global_generator.parameters()}
        text = {id(p) for p in self._text_parameters()}
        kinds = [
            (optim.lr, 0, lambda p: p not in global_generator and p not in text),
            (optim.lr, wait, lambda p: p in global_generator and p not in text),
            (text_rate, 0, lambda p: p not in global_generator and p in text),
            (text_rate, wait, lambda p: p in global_generator and p in text),
        ]
        groups: dict[str, list[dict[str, Any]]] = {"G": []}
        for rate, from_epoch, belongs in kinds:
            parameters = [
                p for p in self.generator.parameters() if belongs(id(p)) and p.requires_grad
            ]
            if parameters:
                groups["G"].append({"params": parameters, "lr": rate, "from_epoch": from_epoch})
        if "D" in self.raw:
            parameters = list(self.raw["D"].parameters())
            groups["D"] = [{"params": parameters, "lr": optim.lr_D, "from_epoch": 0}]
        return groups

    def named_parts(self) -> dict[str, list[nn.Parameter]]:
        """Return `anatomy`, all but what the text enters by; `text`; and `encoder`.

        The encoder is what sees mask and coordinates alone.
        """
        generator = self.generator
        text = list(self._text_parameters())
        ids = {id(parameter) for parameter in text}
        network = generator.global_generator
        seeing: list[nn.Module] = [network.stem, network.down, network.bottleneck.blocks]
        for enhancer in generator.enhancers:
            assert isinstance(enhancer, LocalEnhancer)
            seeing += [enhancer.stem, enhancer.down]
        return {
            "anatomy": [p for p in generator.parameters() if id(p) not in ids],
            "text": text,
            "encoder": [p for module in seeing for p in module.parameters()],
        }

    def _text_parameters(self) -> Iterator[nn.Parameter]:
        """Yield what the text enters by: its residual, and units within the network beside it.

        Without them a rate of their own would change runs of earlier versions, which have only one
        or the other.
        """
        if self.generator.effect is not None:
            yield from self.generator.effect.parameters()
        if self.options.generator.text_effect:
            for module in self.generator.modules():
                if isinstance(module, FusionUnit):
                    yield from module.parameters()
                elif isinstance(module, NoiseInjection) and module.gain is not None:
                    yield from module.gain.parameters()

    def training_step(self, batch: Batch, text: BatchText) -> Iterator[NetworkLoss]:
        real, mask, coords = batch["image"], batch["mask"], batch["coords"]
        noise = torch.cat(batch["noise"].chunk(self.draws, 1)) if self.draws > 1 else batch["noise"]
        drawn = self.networks["G"](mask, coords, noise, text.matched)  # (P B, 1, X, Y, Z)
        first = drawn[: len(real)]
        with_coords = self.options.generator.coord_channels
        inputs = torch.cat([mask, coords], 1) if with_coords else mask
        pred_real: list[DiscriminatorOutput] = []
        if self.adversarial:
            outputs, mismatches = self._discriminate(real, first.detach(), inputs, text)
            n = len(real)
            yield NetworkLoss("D", *self._discriminator_loss(outputs, mismatches, n))
            pred_real = [
                DiscriminatorOutput(o.scores[:n].detach(), [f[:n].detach() for f in o.features])
                for o in outputs
            ]
        terms: dict[str, Tensor] = {}
        if self.adversarial:
            terms |= self._adversarial_terms(drawn, inputs, text, pred_real)
        if self.draws > 1:
            terms |= self._score_terms(drawn, real, mask)
        terms |= self._distance_terms(first, real, mask)
        yield NetworkLoss("G", self._weighted_sum(terms, drawn), terms)

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

    def _adversarial_terms(
        self,
        drawn: Tensor,
        inputs: Tensor,
        text: BatchText,
        pred_real: list[DiscriminatorOutput],
    ) -> dict[str, Tensor]:
        """Return the generator's adversarial and feature-matching terms whose weight is not 0."""
        weights = self.options.loss
        if not weights.lambda_feat:  # features are matched over all draws, and one draw is judged
            drawn = drawn[: len(inputs)]
        pooled = text.matched.pooled.repeat(len(drawn) // len(inputs), 1)
        discriminator = self.raw["D"].requires_grad_(False)
        pred_fake, _ = discriminator(drawn, inputs, pooled)
        discriminator.requires_grad_(True)
        terms: dict[str, Tensor] = {}
        if weights.lambda_gan:
            terms["G_gan"] = generator_loss(weights.gan_mode, [o.scores for o in pred_fake])
        if weights.lambda_feat:
            terms["G_feat"] = feature_matching_loss(pred_fake, pred_real, self.draws)
        return terms

    def _score_terms(self, drawn: Tensor, real: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the scores of two draws whose weight is not 0; they need full precision."""
        weights = self.options.loss
        labelled = organ_region(mask, self.body)
        weight = 1 + (weights.label_weight - 1) * labelled
        with torch.autocast(drawn.device.type, enabled=False):
            first, second = drawn.float().chunk(2)
            terms: dict[str, Tensor] = {}
            if weights.lambda_mean:
                terms["G_mean"] = mean_score(first, second, real, weight)
            if weights.lambda_patch:
                terms["G_patch"] = patch_score(first, second, real, weight)
            if weights.lambda_quantile:
                terms["G_quantile"] = quantile_score(first, second, real, labelled)
        return terms

    def _distance_terms(self, fake: Tensor, real: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the distances of one draw from the scan whose weight is not 0."""
        weights = self.options.loss
        terms: dict[str, Tensor] = {}
        if weights.lambda_l1:
            terms["G_l1"] = voxel_loss(
                fake,
                real,
                1 - organ_region(mask, self.body),
                weights.smooth_l1_beta,
                weights.label_weight,
            )
        if self.perceptual is not None:
            terms["G_perceptual"] = self.perceptual.to(fake.device)(fake, real)
        return terms

    def _weighted_sum(self, terms: dict[str, Tensor], fake: Tensor) -> Tensor:
        weights = self.options.loss
        lambdas = {
            "G_gan": weights.lambda_gan,
            "G_feat": weights.lambda_feat,
            "G_mean": weights.lambda_mean,
            "G_patch": weights.lambda_patch,
            "G_quantile": weights.lambda_quantile,
            "G_l1": weights.lambda_l1,
            "G_perceptual": weights.lambda_perceptual,
        }
        total = fake.new_zeros(())
        for name, term in terms.items():
            total = total + lambdas[name] * term
        return total

    def generate(self, condition: Condition, noise: Tensor, tiler: Tiler) -> Tensor:
        return self.generate_variants(condition, noise, tiler)

    def generate_variants(
        self, condition: Condition, noise: Tensor | VolumeInput, tiler: Tiler
    ) -> Tensor:
        sides = condition.mask.shape[2:]
        aligned = not any(side % self.size_multiple for side in sides)
        if self.exact_tiles and aligned and isinstance(tiler, SlidingWindow):
            return self._generate_exactly(condition, noise, tiler)
        volumes = []
        for number in range(len(condition.text.pooled)):
            text = condition.text.select(number)

            def generate_tiles(
                mask: Tensor, coords: Tensor, noise: Tensor, text: TextEmbedding = text
            ) -> Tensor:
                return self.inference_network(mask, coords, noise, text.expand(len(mask)))

            volumes.append(tiler(generate_tiles, condition.mask, condition.coords, noise))
        return torch.cat(volumes)

    def _generate_exactly(
        self, condition: Condition, noise: Tensor | VolumeInput, tiler: SlidingWindow
    ) -> Tensor:
        """Generate in tiles, with the values of the whole volume.

        The blocks at the coarsest scale look far, and their features are few: they are computed for
        the whole volume, once for all prompts. The tiles' encoder and decoder look no further than
        `receptive_halo`.

        Returns:
            `(A, 1, X, Y, Z)` in [-1, 1], on the CPU.
        """
        network, text, stride = self.inference_network, condition.text, self.size_multiple
        network = cast(Generator, network)
        device = next(network.parameters()).device
        sides = condition.mask.shape[2:]
        variants = len(text.pooled)
        mask, coords = ScaledInput(condition.mask), ScaledInput(condition.coords)
        width = self.options.generator.ngf * stride
        coarse = torch.empty(1, width, *(side // stride for side in sides), device=device)
        encoder = TileReach(stride, self._voxel_bytes(decoded=False), stride)
        tiler.run_exactly(network.encode, [mask, coords], encoder, coarse)
        for block in network.blocks:
            refined = torch.empty_like(coarse)
            reach = TileReach(2, 4 * 6 * width)
            tiler.coarser(stride).run_exactly(block, [ScaledInput(coarse)], reach, refined)
            coarse = refined

        def decode(coarse: Tensor, mask: Tensor, coords: Tensor, noise: Tensor) -> Tensor:
            # Without an organ, prompts change nothing.
            everywhere = self.options.generator.text_region == "everywhere"
            same = not everywhere and not organ_region(mask, self.body).any()
            prompts = text.select(0) if same else text
            return network.decode(coarse, mask, coords, noise, prompts)

        halo = receptive_halo(self.options.generator)
        assert halo is not None
        out = torch.empty(variants, 1, *sides)
        inputs = [ScaledInput(coarse, stride), mask, coords, ScaledInput(noise)]
        reach = TileReach(halo, self._voxel_bytes(decoded=True))
        return tiler.run_exactly(decode, inputs, reach, out)

    def _voxel_bytes(self, decoded: bool) -> int:
        """Return about how much memory a voxel of a tile takes in the encoder, or in both parts."""
        encoder = 2 * self.input_channels + 4 * self.options.generator.ngf
        return 4 * (encoder + decoded * VALUES_PER_CHANNEL * self.options.generator.ngf)
