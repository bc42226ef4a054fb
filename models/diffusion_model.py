"""Diffusion models: generation in many small steps from noise, and inversion of real scans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
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
from models.diffusion.latent_space import LatentSpace, PixelSpace
from models.diffusion.noise_schedule import MIN_SCALE, DiffusionSampler, NoiseSchedule
from models.networks.condition import organ_region
from models.networks.denoiser import MEAN_LEVEL, Denoiser
from models.networks.generator import size_multiple
from models.networks.label_embedding import body_channel
from models.networks.layers import VALUES_PER_CHANNEL, acts_per_voxel
from models.sliding_window import SlidingWindow
from models.text.base_encoder import TextEmbedding
from options.checks import check_patch_size, check_sampling
from options.diffusion_options import MULTISTEP_SAMPLER, SamplingOptions
from options.train_options import TrainOptions
from util.cli import UserError

DEFAULT = SamplingOptions(MULTISTEP_SAMPLER, 15, time_shift=0.2, guidance=1.0, guidance_mask=1.0)
# With residual preconditioning, as in version 0.1: Euler or DDIM.
RESIDUAL_DEFAULT = replace(DEFAULT, sampler=None, sampling_steps=30)


def mask_text(text: TextEmbedding, kept: Tensor) -> TextEmbedding:
    """Return the prompts where `kept` `(B,)` is true, empty ones elsewhere."""
    return TextEmbedding(
        text.tokens * kept[:, None, None], text.valid & kept[:, None], text.pooled * kept[:, None]
    )


def embed_labels(network: nn.Module, mask: Tensor) -> Tensor:
    """Return a mask as the denoiser takes it, before it is dropped or averaged."""
    labels = getattr(network, "labels", None)
    return mask if labels is None else labels(mask)


def append_dims(values: Tensor) -> Tensor:
    """`(B,)` as `(B, 1, 1, 1, 1)`."""
    return values[:, None, None, None, None]


@MODELS.register("diffusion")
class DiffusionModel(GenerativeModel):
    """A diffusion model conditioned on a mask and a text.

    It learns rectified flow (Liu et al. 2022), or diffusion with v (Salimans & Ho 2022) or noise
    prediction (Ho et al. 2020). By default the mean image given mask and text is learned by squared
    error, and what differs from it, such as texture, is diffused. One network does both.

    Args:
        options: The run's options.
        n_labels: K, channels of the one-hot mask.
        text_width: Width of the text embedding.
        training: Not used; sampling takes the same network.
    """

    invertible = True

    def __init__(
        self, options: TrainOptions, n_labels: int, text_width: int, training: bool = True
    ) -> None:
        self.options, diffusion = options, options.diffusion
        self.n_labels = n_labels
        self.body = options.data.body_channel(n_labels)
        self.space = self.make_space(options)
        self.ema_network = "G"
        self.size_multiple = size_multiple(options.generator) * self.space.factor
        self.noise_channels = self.space.channels
        edm = diffusion.preconditioning == "edm"
        default = self.space.sigma_data if edm else self.space.sigma
        self.schedule = NoiseSchedule(diffusion, diffusion.sigma_data or default)
        self.label_offsets = {"G.stem": self.space.channels}  # behind the noisy image
        self.raw = {
            "G": Denoiser(
                options.generator,
                self.space.channels,
                n_labels,
                text_width,
                diffusion.time_width,
                self.body,
            )
        }
        self.space.attach_fingerprint(self.raw["G"])
        self.networks = dict(self.raw)
        self.inference_network = self.raw["G"]
        self.set_sampling(SamplingOptions())

    @property
    def _voxel_bytes(self) -> int:
        """About how much memory a voxel takes in the network."""
        return 4 * VALUES_PER_CHANNEL * self.options.generator.ngf

    @classmethod
    def make_space(cls, options: TrainOptions) -> PixelSpace:
        """Return the space that noise is added in."""
        return PixelSpace()

    @classmethod
    def check_options(cls, options: TrainOptions) -> None:
        super().check_options(options)
        cls.make_space(options)

    def set_sampling(self, sampling: SamplingOptions) -> None:
        default = DEFAULT
        if not self.schedule.edm:
            default = replace(RESIDUAL_DEFAULT, sampler="euler" if self.schedule.flow else "ddim")
        self.sampling = sampling.with_defaults(self.options.sampling.with_defaults(default))
        check_sampling(self.options.diffusion, self.sampling)

    def param_groups(self) -> dict[str, list[dict[str, Any]]]:
        parameters = [p for p in self.raw["G"].parameters() if p.requires_grad]
        return {"G": [{"params": parameters, "lr": self.options.optim.lr, "from_epoch": 0}]}

    def training_step(self, batch: Batch, text: BatchText) -> Iterator[NetworkLoss]:
        diffusion, schedule = self.options.diffusion, self.schedule
        x0 = self.space.encode(batch["image"])
        eps = self.space.noise(batch["noise"])
        mask = self.space.reduce(embed_labels(self.raw["G"], batch["mask"]))
        coords = self.space.reduce(batch["coords"])
        time, terminal, text_drop, mask_drop = batch["draws"].unbind(1)
        kept_text = mask_text(text.matched, text_drop >= diffusion.text_dropout)
        kept_mask = mask * append_dims(mask_drop >= diffusion.mask_dropout)
        condition = Condition(kept_mask, coords, kept_text)
        t = schedule.training_times(time, terminal)
        region = organ_region(mask, body_channel(self.n_labels, self.body))
        by_label = 1 + (self.options.loss.label_weight - 1) * region
        if schedule.edm:
            learns_mean = terminal < diffusion.terminal_prob
            errors = self._edm_errors(x0, eps, t, condition, learns_mean)
            by_sample = (errors * by_label).sum((1, 2, 3, 4)) / by_label.sum((1, 2, 3, 4))
            loss = by_sample.mean()
        else:
            loss = (self._residual_errors(x0, eps, t, condition) * by_label).mean()
        yield NetworkLoss("G", loss, {"G_image": loss})

    def _edm_errors(
        self, x0: Tensor, eps: Tensor, t: Tensor, condition: Condition, learns_mean: Tensor
    ) -> Tensor:
        """Return the squared errors of the mean, or of the denoised difference from it.

        Squared errors have their minimum at the mean, however rare an effect is; one that is linear
        for large errors has it nearer the median.

        Args:
            x0: The image.
            eps: Noise.
            t: `(B,)` times.
            condition: Mask, coordinates and text of the batch.
            learns_mean: `(B,)` bool, samples of which the mean is predicted.
        """
        schedule = self.schedule
        with torch.no_grad():  # the network itself: a wrapped one passes once before its backward
            mean = self._predict_mean(self.raw["G"], condition).float()
        alpha, sigma = schedule.alpha_sigma(t)
        c_skip, c_out = schedule.preconditioning(t)
        x_t = append_dims(alpha) * (x0 - mean) + append_dims(sigma) * eps
        noisy = append_dims(schedule.input_scale(t)) * x_t
        level = schedule.log_noise(t)
        output = self.networks["G"](
            torch.where(append_dims(learns_mean), 0, noisy),
            torch.where(learns_mean, MEAN_LEVEL, level),
            condition.mask,
            condition.coords,
            condition.text,
        )
        of_mean = (output - x0) / schedule.sigma_data
        denoised = append_dims(c_skip) * x_t + append_dims(c_out) * output
        of_noise = (denoised - (x0 - mean)) / append_dims(c_out.clamp_min(MIN_SCALE))
        return torch.where(append_dims(learns_mean), of_mean, of_noise).square()

    def _predict_mean(self, network: nn.Module, condition: Condition) -> Tensor:
        """Return the mean image `(B, C, X, Y, Z)` given mask and text: no noisy image goes in."""
        mask = condition.mask
        nothing = mask.new_zeros(len(mask), self.space.channels, *mask.shape[2:])
        level = torch.full((len(mask),), MEAN_LEVEL, device=mask.device)
        mean: Tensor = network(nothing, level, mask, condition.coords, condition.text)
        return mean

    def _residual_errors(self, x0: Tensor, eps: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the weighted squared errors of the image, linear where large (version 0.1)."""
        schedule = self.schedule
        alpha, sigma = schedule.alpha_sigma(t)
        c_skip, c_out = schedule.preconditioning(t)
        x_t = append_dims(alpha) * x0 + append_dims(sigma) * eps
        output = self.networks["G"](
            x_t, schedule.log_noise(t), condition.mask, condition.coords, condition.text
        )
        estimate = append_dims(c_skip) * x_t + append_dims(c_out) * output
        beta = self.options.loss.smooth_l1_beta / PixelSpace.sigma * self.space.sigma
        if beta:
            errors = F.smooth_l1_loss(estimate, x0, beta=beta, reduction="none")
        else:
            errors = (estimate - x0).abs()
        return errors * append_dims(schedule.weight(t))

    def _on_sampled_grid(self, condition: Condition, tiler: Tiler) -> tuple[Condition, Tiler]:
        """Return condition and tiler as the network takes them, the same in all steps."""
        mask = self.space.reduce(embed_labels(self.inference_network, condition.mask))
        coords = self.space.reduce(condition.coords)
        if self.space.factor > 1:
            tiler = tiler.coarser(self.space.factor)  # type: ignore[attr-defined]
        if isinstance(tiler, SlidingWindow) and acts_per_voxel(self.options.generator.norm):
            tiler = tiler.whole_if_small(mask.shape[2:], self._voxel_bytes)
        return Condition(mask, coords, condition.text), tiler

    def _sampler(self, condition: Condition, tiler: Tiler) -> DiffusionSampler:
        """Return a sampler that runs the network over the whole volume in each of its steps.

        Args:
            condition: Of `_on_sampled_grid`.
            tiler: Of the same.
        """

        def denoise(x: Tensor, t: float) -> Tensor:
            time = torch.tensor([t], device=x.device)
            output = self._run_tiles(
                x * self.schedule.input_scale(time),
                self.schedule.log_noise(time),
                condition,
                tiler,
            )
            if not self.schedule.edm:
                return output
            c_skip, c_out = self.schedule.preconditioning(time)
            return c_skip * x + c_out * output

        return DiffusionSampler(self.schedule, denoise, str(self.sampling.sampler))

    def _run_tiles(self, x: Tensor, level: Tensor, condition: Condition, tiler: Tiler) -> Tensor:
        """Return the network's output for a whole volume `x` at a noise level `(1,)`."""

        def run_tile(x: Tensor, mask: Tensor, coords: Tensor) -> Tensor:
            tiles = Condition(mask, coords, condition.text.expand(len(x)))
            return self._guided(x, level.expand(len(x)), tiles)

        return tiler(run_tile, x, condition.mask, condition.coords)

    def _mean(self, like: Tensor, condition: Condition, tiler: Tiler) -> Tensor:
        """Return what a sample is added to: the mean image given mask and text; 0 without edm."""
        nothing = torch.zeros_like(like)
        if not self.schedule.edm:
            return nothing
        level = torch.tensor([MEAN_LEVEL], device=like.device)
        return self._run_tiles(nothing, level, condition, tiler)

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
        start = self.space.noise(noise)
        sampled = self._on_sampled_grid(condition, tiler)
        sample = self._sampler(*sampled).sample(start, self._times(), fresh)
        return self._decode(self._mean(sample, *sampled) + sample, tiler)

    def check_inversion(self) -> None:
        if self.sampling.sampler == "ddpm":
            raise UserError(
                "Real scans cannot be edited along --sampler ddpm, which draws new noise in every "
                "step. Use --sampler ddim."
            )

    def invert(self, image: Tensor, condition: Condition, strength: float, tiler: Tiler) -> Tensor:
        """Return the inverted difference from the mean, and the mean, `(1, 2C, X/f, Y/f, Z/f)`."""
        f = self.space.factor
        x = image
        if f > 1:
            latents = tiler(lambda tile: self._enlarge(self.space.encode(tile)), image)
            x = latents[..., ::f, ::f, ::f]
        sampled = self._on_sampled_grid(condition, tiler)
        mean = self._mean(x, *sampled)
        inverted = self._sampler(*sampled).invert(x - mean, self._times(strength))
        return torch.cat([inverted, mean], 1)

    def regenerate(
        self, state: Tensor, condition: Condition, strength: float, tiler: Tiler
    ) -> Tensor:
        inverted, own_mean = state.chunk(2, 1)
        sampled = self._on_sampled_grid(condition, tiler)
        sample = self._sampler(*sampled).sample_by_step(inverted, self._times(strength))
        mean = torch.lerp(own_mean, self._mean(sample, *sampled), strength)
        return self._decode(mean + sample, tiler)


@MODELS.register("latent_diffusion")
class LatentDiffusionModel(DiffusionModel):
    """The same on the latents of a frozen autoencoder (Rombach et al. 2022)."""

    @classmethod
    def make_space(cls, options: TrainOptions) -> PixelSpace:
        space = LatentSpace(Path(options.diffusion.autoencoder), options.data.hu_window)
        check_patch_size(options, space.factor)
        return space
