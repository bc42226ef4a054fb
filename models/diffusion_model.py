"""Diffusion models: the image is reached from noise in many small steps, and a real scan can be led
back to its noise.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base_model import MODELS, Batch, GenerativeModel, Tiler, Update
from models.diffusion.latent_space import LatentSpace, PixelSpace
from models.diffusion.noise_schedule import FLOWS, SCHEDULES, DiffusionSampler, NoiseSchedule
from models.networks.denoiser import Denoiser
from models.networks.generator import size_multiple
from models.text.base_encoder import TextEmbedding
from options.diffusion_options import SamplingOptions
from options.train_options import TrainOptions
from util.cli import UserError

DEFAULT = SamplingOptions(sampling_steps=30, time_shift=0.2, guidance=1.0, guidance_mask=1.0)


def uniform(noise: Tensor, count: int) -> Tensor:
    """`(B, count)` uniform numbers that follow from each sample's noise `(B, N, X, Y, Z)`.

    They are the later digits of its first values, which are uniform and independent of the rest. So
    a sample's time is a function of its number alone, whichever process draws it.
    """
    return (noise.flatten(1)[:, :count].abs().double() * 4096).frac().float()


def mask_text(text: TextEmbedding, kept: Tensor) -> TextEmbedding:
    """The prompts where `kept` `(B,)` is true, empty ones elsewhere."""
    return TextEmbedding(
        text.tokens * kept[:, None, None], text.valid & kept[:, None], text.pooled * kept[:, None]
    )


def repeat(text: TextEmbedding, batch: int) -> TextEmbedding:
    """One prompt for each of `batch` tiles."""
    return TextEmbedding(
        *(t.expand(batch, *t.shape[1:]) for t in (text.tokens, text.valid, text.pooled))
    )


def append_dims(*values: Tensor) -> tuple[Tensor, ...]:
    """Each `(B,)` as `(B, 1, 1, 1, 1)`."""
    return tuple(v[:, None, None, None, None] for v in values)


@MODELS.register("diffusion")
class DiffusionModel(GenerativeModel):
    """Rectified flow (Liu et al. 2022), or diffusion with v (Salimans & Ho 2022) or noise
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
        self.process = NoiseSchedule(diffusion, diffusion.sigma_data or self.space.sigma)
        self.raw = {
            "G": Denoiser(
                options.generator, self.space.channels, n_labels, text_width, diffusion.time_width
            )
        }
        self.space.attach_fingerprint(self.raw["G"])
        self.networks = dict(self.raw)
        self.set_sampling(SamplingOptions())

    def make_space(self, options: TrainOptions) -> PixelSpace:
        if options.diffusion.autoencoder:
            raise UserError(
                "--autoencoder is for --model latent_diffusion; --model diffusion works on voxels. "
                "Leave the flag out, or choose the other model."
            )
        return PixelSpace()

    def set_sampling(self, sampling: SamplingOptions) -> None:
        default = replace(DEFAULT, sampler="euler" if self.process.flow else "ddim")
        self.sampling = sampling.over(self.options.sampling.over(default))
        self._check(self.sampling)

    def _check(self, sampling: SamplingOptions) -> None:
        diffusion = self.options.diffusion
        fitting = FLOWS if self.process.flow else SCHEDULES
        if sampling.sampler not in fitting:
            raise UserError(
                f"--sampler is {sampling.sampler}; with --diffusion_target "
                f"{diffusion.diffusion_target} it must be one of: {', '.join(fitting)}."
            )
        if (sampling.sampling_steps or 0) > diffusion.diffusion_steps:
            raise UserError(
                f"--sampling_steps is {sampling.sampling_steps}; the run's schedule has "
                f"{diffusion.diffusion_steps} (--diffusion_steps). Use at most so many."
            )
        for name, dropout in (("guidance", "text_dropout"), ("guidance_mask", "mask_dropout")):
            if getattr(sampling, name) != 1 and not getattr(diffusion, dropout):
                raise UserError(
                    f"--{name} is {getattr(sampling, name):g}, but training had --{dropout} 0, so "
                    f"the model does not know how to do without. Use --{name} 1, or train with "
                    f"--{dropout} 0.1."
                )

    def param_groups(self) -> dict[str, list[dict[str, Any]]]:
        return {
            "G": [
                {
                    "params": list(self.raw["G"].parameters()),
                    "lr": self.options.optim.lr,
                    "from_epoch": 0,
                }
            ]
        }

    def training_step(
        self, batch: Batch, text: TextEmbedding, other: TextEmbedding, update: Update
    ) -> dict[str, Tensor]:
        diffusion, process = self.options.diffusion, self.process
        image, noise = self.space.encode(batch["image"]), self.space.noise(batch["noise"])
        mask, coords = self.space.reduce(batch["mask"]), self.space.reduce(batch["coords"])
        drawn = uniform(batch["noise"], 4).unbind(1)
        t = process.time(drawn[0], drawn[1])
        (a, s), (skip, blend) = (
            append_dims(*pair) for pair in (process.alpha_sigma(t), process.preconditioning(t))
        )
        noisy = a * image + s * noise
        told = mask_text(text, drawn[2] >= diffusion.text_dropout)
        shown = mask * append_dims(drawn[3] >= diffusion.mask_dropout)[0]
        found = skip * noisy + blend * self.networks["G"](
            noisy, process.log_noise(t), shown, coords, told
        )
        loss = self._loss(found, image, mask[:, :1], process.weight(t))
        update("G", loss, {"G_image": loss})
        return {"G_image": loss.detach()}

    def _loss(self, found: Tensor, image: Tensor, background: Tensor, weight: Tensor) -> Tensor:
        """Squared error, linear where it is large, labelled voxels weighted as in the GAN's voxel
        loss.
        """
        weights = self.options.loss
        smooth = weights.smooth_l1_beta / PixelSpace.sigma * self.space.sigma
        errors = (
            F.smooth_l1_loss(found, image, beta=smooth, reduction="none")
            if smooth
            else (found - image).abs()
        )
        return torch.mean(
            errors * (1 + (weights.label_weight - 1) * (1 - background)) * append_dims(weight)[0]
        )

    def _solver(
        self, network: nn.Module, mask: Tensor, coords: Tensor, text: TextEmbedding, tiler: Tiler
    ) -> DiffusionSampler:
        """Runs the network over the whole volume in each of its steps, tile by tile."""
        mask, coords = self.space.reduce(mask), self.space.reduce(coords)
        tiler = tiler if self.space.factor == 1 else tiler.coarser(self.space.factor)  # type: ignore[attr-defined]

        def whole(x: Tensor, t: float) -> Tensor:
            level = self.process.log_noise(torch.tensor([t], device=x.device))

            def tile(x: Tensor, mask: Tensor, coords: Tensor) -> Tensor:
                return self._guided(
                    network, x, level.expand(len(x)), mask, coords, repeat(text, len(x))
                )

            return tiler(tile, x, mask, coords)

        return DiffusionSampler(self.process, whole, str(self.sampling.sampler))

    def _guided(
        self,
        network: nn.Module,
        x: Tensor,
        level: Tensor,
        mask: Tensor,
        coords: Tensor,
        text: TextEmbedding,
    ) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2022) of the text, and of the mask (Brooks et al.
        2023, eq. 3).
        """
        told = network(x, level, mask, coords, text)
        by_text, by_mask = (
            float(self.sampling.guidance or 0),
            float(self.sampling.guidance_mask or 0),
        )
        if by_text == by_mask == 1:
            return told
        nothing = mask_text(text, torch.zeros(len(x), dtype=torch.bool, device=x.device))
        silent = network(x, level, mask, coords, nothing)
        guided = silent + by_text * (told - silent)
        if by_mask != 1:
            blind = network(x, level, torch.zeros_like(mask), coords, nothing)
            guided = guided + (by_mask - 1) * (silent - blind)
        return guided

    def _times(self, start: float = 1.0) -> list[float]:
        return self.process.times(
            int(self.sampling.sampling_steps or 1), float(self.sampling.time_shift or 1), start
        )

    def _enlarge(self, x: Tensor) -> Tensor:
        """Latents repeated on the voxels' grid, on which tiles are laid."""
        return (
            F.interpolate(x, scale_factor=float(self.space.factor)) if self.space.factor > 1 else x
        )

    def _decode(self, x: Tensor, tiler: Tiler) -> Tensor:
        f = self.space.factor
        if f > 1:
            x = tiler(lambda z: self.space.decode(z[..., ::f, ::f, ::f]), self._enlarge(x))
        return x.clamp(-1, 1)

    def generate(
        self,
        network: nn.Module,
        mask: Tensor,
        coords: Tensor,
        noise: Tensor,
        text: TextEmbedding,
        tiler: Tiler,
    ) -> Tensor:
        fresh = torch.Generator().manual_seed(int(noise.flatten()[0].view(torch.int32)) % 2**31)
        solver = self._solver(network, mask, coords, text, tiler)
        return self._decode(solver.sample(self.space.noise(noise), self._times(), fresh), tiler)

    def check_editing(self) -> None:
        if self.sampling.sampler == "ddpm":
            raise UserError(
                "--edit_real cannot go back along --sampler ddpm, which draws new noise in every "
                "step. Use --sampler ddim."
            )

    def invert(
        self,
        network: nn.Module,
        image: Tensor,
        mask: Tensor,
        coords: Tensor,
        text: TextEmbedding,
        strength: float,
        tiler: Tiler,
    ) -> Tensor:
        f = self.space.factor
        x = image
        if f > 1:
            x = tiler(lambda tile: self._enlarge(self.space.encode(tile)), image)[
                ..., ::f, ::f, ::f
            ]
        return self._solver(network, mask, coords, text, tiler).invert(x, self._times(strength))

    def regenerate(
        self,
        network: nn.Module,
        state: Tensor,
        mask: Tensor,
        coords: Tensor,
        text: TextEmbedding,
        strength: float,
        tiler: Tiler,
    ) -> Tensor:
        solver = self._solver(network, mask, coords, text, tiler)
        return self._decode(solver.sample(state, self._times(strength)), tiler)


@MODELS.register("latent_diffusion")
class LatentDiffusionModel(DiffusionModel):
    """The same on the latents of a frozen autoencoder (Rombach et al. 2022)."""

    def make_space(self, options: TrainOptions) -> PixelSpace:
        space = LatentSpace(Path(options.diffusion.autoencoder), options.data.hu_window)
        multiple = 2 * size_multiple(options.generator) * space.factor  # tiles overlap by half
        if any(s % multiple for s in options.patch.patch_size):
            size, good = (
                ",".join(map(str, v))
                for v in (
                    options.patch.patch_size,
                    [
                        max(multiple, round(s / multiple) * multiple)
                        for s in options.patch.patch_size
                    ],
                )
            )
            raise UserError(
                f"--patch_size is {size}; the autoencoder makes {space.factor} voxels one, and "
                f"with {options.generator.n_downsample_global} halvings every side must be a "
                f"multiple of {multiple}. The nearest that works: --patch_size {good}."
            )
        return space
