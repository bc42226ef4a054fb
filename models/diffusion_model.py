"""Diffusion models: generation in many small steps from noise, and inversion of real scans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
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
from models.diffusion.latent_space import LatentSpace, PixelSpace
from models.diffusion.noise_schedule import DiffusionSampler, NoiseSchedule
from models.networks.denoiser import Denoiser
from models.networks.generator import size_multiple
from models.text.base_encoder import TextEmbedding
from options.checks import check_patch_size, check_sampling
from options.diffusion_options import SamplingOptions
from options.train_options import TrainOptions
from util.cli import UserError

DEFAULT = SamplingOptions(sampling_steps=30, time_shift=0.2, guidance=1.0, guidance_mask=1.0)


def mask_text(text: TextEmbedding, kept: Tensor) -> TextEmbedding:
    """Return the prompts where `kept` `(B,)` is true, empty ones elsewhere."""
    return TextEmbedding(
        text.tokens * kept[:, None, None], text.valid & kept[:, None], text.pooled * kept[:, None]
    )


def append_dims(values: Tensor) -> Tensor:
    """`(B,)` as `(B, 1, 1, 1, 1)`."""
    return values[:, None, None, None, None]


@MODELS.register("diffusion")
class DiffusionModel(GenerativeModel):
    """A diffusion model conditioned on a mask and a text.

    It learns rectified flow (Liu et al. 2022), or diffusion with v (Salimans & Ho 2022) or noise
    prediction (Ho et al. 2020).

    Args:
        options: The run's options.
        n_labels: K, channels of the one-hot mask.
        text_width: Width of the text embedding.
        training: Not used; sampling takes the same network.
    """

    def __init__(
        self, options: TrainOptions, n_labels: int, text_width: int, training: bool = True
    ) -> None:
        self.options, diffusion = options, options.diffusion
        self.space = self.make_space(options)
        self.ema_network = "G"
        self.size_multiple = size_multiple(options.generator) * self.space.factor
        self.noise_channels = self.space.channels
        self.schedule = NoiseSchedule(diffusion, diffusion.sigma_data or self.space.sigma)
        self.raw = {
            "G": Denoiser(
                options.generator, self.space.channels, n_labels, text_width, diffusion.time_width
            )
        }
        self.space.attach_fingerprint(self.raw["G"])
        self.networks = dict(self.raw)
        self.inference_network = self.raw["G"]
        self.set_sampling(SamplingOptions())

    @classmethod
    def make_space(cls, options: TrainOptions) -> PixelSpace:
        """Return the space that noise is added in."""
        return PixelSpace()

    @classmethod
    def check_options(cls, options: TrainOptions) -> None:
        super().check_options(options)
        cls.make_space(options)

    def set_sampling(self, sampling: SamplingOptions) -> None:
        default = replace(DEFAULT, sampler="euler" if self.schedule.flow else "ddim")
        self.sampling = sampling.with_defaults(self.options.sampling.with_defaults(default))
        check_sampling(self.options.diffusion, self.sampling)

    def param_groups(self) -> dict[str, list[dict[str, Any]]]:
        parameters = list(self.raw["G"].parameters())
        return {"G": [{"params": parameters, "lr": self.options.optim.lr, "from_epoch": 0}]}

    def training_step(self, batch: Batch, text: BatchText) -> Iterator[NetworkLoss]:
        diffusion, schedule = self.options.diffusion, self.schedule
        x0 = self.space.encode(batch["image"])
        eps = self.space.noise(batch["noise"])
        mask = self.space.reduce(batch["mask"])
        coords = self.space.reduce(batch["coords"])
        time, terminal, text_drop, mask_drop = batch["draws"].unbind(1)
        t = schedule.training_times(time, terminal)
        alpha, sigma = schedule.alpha_sigma(t)
        c_skip, c_out = schedule.preconditioning(t)
        x_t = append_dims(alpha) * x0 + append_dims(sigma) * eps
        kept_text = mask_text(text.matched, text_drop >= diffusion.text_dropout)
        kept_mask = mask * append_dims(mask_drop >= diffusion.mask_dropout)
        output = self.networks["G"](x_t, schedule.log_noise(t), kept_mask, coords, kept_text)
        estimate = append_dims(c_skip) * x_t + append_dims(c_out) * output
        loss = self._loss(estimate, x0, mask[:, :1], schedule.weight(t))
        yield NetworkLoss("G", loss, {"G_image": loss})

    def _loss(self, estimate: Tensor, x0: Tensor, background: Tensor, weight: Tensor) -> Tensor:
        """Return the squared error, linear where it is large.

        Labelled voxels weigh as in the voxel loss of the GAN.
        """
        options = self.options.loss
        beta = options.smooth_l1_beta / PixelSpace.sigma * self.space.sigma
        if beta:
            errors = F.smooth_l1_loss(estimate, x0, beta=beta, reduction="none")
        else:
            errors = (estimate - x0).abs()
        by_label = 1 + (options.label_weight - 1) * (1 - background)
        return torch.mean(errors * by_label * append_dims(weight))

    def _sampler(self, condition: Condition, tiler: Tiler) -> DiffusionSampler:
        """Return a sampler that runs the network over the whole volume in each of its steps."""
        mask, coords = self.space.reduce(condition.mask), self.space.reduce(condition.coords)
        if self.space.factor > 1:
            tiler = tiler.coarser(self.space.factor)  # type: ignore[attr-defined]

        def denoise(x: Tensor, t: float) -> Tensor:
            level = self.schedule.log_noise(torch.tensor([t], device=x.device))

            def denoise_tiles(x: Tensor, mask: Tensor, coords: Tensor) -> Tensor:
                tiles = Condition(mask, coords, condition.text.expand(len(x)))
                return self._guided(x, level.expand(len(x)), tiles)

            return tiler(denoise_tiles, x, mask, coords)

        return DiffusionSampler(self.schedule, denoise, str(self.sampling.sampler))

    def _guided(self, x: Tensor, level: Tensor, tiles: Condition) -> Tensor:
        """Return the network's output for tiles `(B, C, X, Y, Z)` with classifier-free guidance.

        Guidance of the text follows Ho & Salimans 2022, of the mask Brooks et al. 2023, eq. 3.
        """
        network, mask, coords = self.inference_network, tiles.mask, tiles.coords
        with_text = network(x, level, mask, coords, tiles.text)
        text_scale = float(self.sampling.guidance or 0)
        mask_scale = float(self.sampling.guidance_mask or 0)
        if text_scale == mask_scale == 1:
            return with_text
        nobody = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        no_text = mask_text(tiles.text, nobody)
        without_text = network(x, level, mask, coords, no_text)
        guided = without_text + text_scale * (with_text - without_text)
        if mask_scale != 1:
            without_mask = network(x, level, torch.zeros_like(mask), coords, no_text)
            guided = guided + (mask_scale - 1) * (without_text - without_mask)
        return guided

    def _times(self, start: float = 1.0) -> list[float]:
        return self.schedule.sampling_times(
            int(self.sampling.sampling_steps or 1), float(self.sampling.time_shift or 1), start
        )

    def _enlarge(self, x: Tensor) -> Tensor:
        """Repeat latents on the grid of the voxels, on which tiles are laid."""
        factor = self.space.factor
        return F.interpolate(x, scale_factor=float(factor)) if factor > 1 else x

    def _decode(self, x: Tensor, tiler: Tiler) -> Tensor:
        f = self.space.factor
        if f > 1:
            x = tiler(lambda z: self.space.decode(z[..., ::f, ::f, ::f]), self._enlarge(x))
        return x.clamp(-1, 1)

    def generate(self, condition: Condition, noise: Tensor, tiler: Tiler) -> Tensor:
        # DDPM draws new noise in every step, from a seed that follows from the volume's own noise.
        seed = int(noise.flatten()[0].view(torch.int32)) % 2**31
        fresh = torch.Generator().manual_seed(seed)
        sampler = self._sampler(condition, tiler)
        return self._decode(sampler.sample(self.space.noise(noise), self._times(), fresh), tiler)

    def check_editing(self) -> None:
        if self.sampling.sampler == "ddpm":
            raise UserError(
                "--edit_real cannot go back along --sampler ddpm, which draws new noise in every "
                "step. Use --sampler ddim."
            )

    def invert(self, image: Tensor, condition: Condition, strength: float, tiler: Tiler) -> Tensor:
        f = self.space.factor
        x = image
        if f > 1:
            latents = tiler(lambda tile: self._enlarge(self.space.encode(tile)), image)
            x = latents[..., ::f, ::f, ::f]
        return self._sampler(condition, tiler).invert(x, self._times(strength))

    def regenerate(
        self, state: Tensor, condition: Condition, strength: float, tiler: Tiler
    ) -> Tensor:
        sampler = self._sampler(condition, tiler)
        return self._decode(sampler.sample(state, self._times(strength)), tiler)


@MODELS.register("latent_diffusion")
class LatentDiffusionModel(DiffusionModel):
    """The same on the latents of a frozen autoencoder (Rombach et al. 2022)."""

    @classmethod
    def make_space(cls, options: TrainOptions) -> PixelSpace:
        space = LatentSpace(Path(options.diffusion.autoencoder), options.data.hu_window)
        check_patch_size(options, space.factor)
        return space
