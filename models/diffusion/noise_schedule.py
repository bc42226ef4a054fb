"""Noise schedules and samplers: pure functions of tensors.

A noisy image is x_t = alpha_t x_0 + sigma_t eps, with eps standard normal. The time t runs from 0
(the image) to 1 (noise). A network predicts F, and the estimate of the image is c_skip(t) x_t +
c_out(t) F.

With `edm` preconditioning (Karras et al. 2022, section 5), x_0 is what differs from the mean given
mask and text, and F has about unit variance at every noise level: at little noise it is the noise
itself, so that texture is learned from the data. With `residual` preconditioning, x_0 is the image,
and the estimate is the posterior mean of x_0 ~ N(F, sigma_data^2) given x_t; what the network does
not predict is printed as texture of that SD. Predictions of noise, v and velocity (flows) are
affine in this estimate; they differ in the weight of its squared error.

Notation:
    `alpha`, `sigma` -> alpha_t, sigma_t (signal and noise, Salimans & Ho 2022)
    `c_in`, `c_skip`, `c_out` -> factors of the network's input, of x_t and of F (Karras, eq. 7)
    `prediction` -> the estimate of x_0 (`edm`), or F(x_t, t) (`residual`)
    `sd` -> the SD of x_t around alpha_t times the prediction: sigma_t, and with `residual`
        preconditioning sqrt(alpha_t^2 sigma_data^2 + sigma_t^2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from options.diffusion_options import MULTISTEP_SAMPLER, DiffusionOptions
from util.cli import is_main_process

Network = Callable[[Tensor, float], Tensor]  # (x_t, t) -> prediction
MIN_SCALE = 1e-3  # of sigma, alpha and c_out where they are divided by
MAX_INVERSIONS = 10  # fixed-point iterations per step
INVERSION_TOLERANCE = 1e-4  # largest error of a step that starts from the inverted state


def schedule_levels(options: DiffusionOptions) -> Tensor:
    """Return alpha and sigma of MONAI's noise schedule at t = 0, 1/T, ..., 1, as `(T + 1, 2)`.

    With `zero_snr`, the schedule is shifted and scaled to end without signal (Lin et al. 2024,
    arXiv 2305.08891, algorithm 1). Otherwise training never includes pure noise, where sampling
    starts, and means such as a lung's density drift.
    """
    from monai.networks.schedulers import DDPMScheduler  # slow to import

    scheduler = DDPMScheduler(
        num_train_timesteps=options.diffusion_steps, schedule=options.schedule
    )
    alpha = scheduler.alphas_cumprod.double().sqrt()
    if options.zero_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    alpha = torch.cat([torch.ones(1, dtype=torch.float64), alpha])
    sigma = (1 - alpha.square()).clamp_min(0).sqrt()
    return torch.stack([alpha, sigma], 1).float()


@dataclass(frozen=True)
class NoiseSchedule:
    """Noise levels and loss weights of one training target.

    Args:
        options: Target, schedule and weights.
        sigma_data: SD of the image given mask and text.
    """

    options: DiffusionOptions
    sigma_data: float

    @cached_property
    def _levels(self) -> Tensor:
        return schedule_levels(self.options)

    @property
    def flow(self) -> bool:
        """Whether the target is a rectified flow, with alpha_t = 1 - t and sigma_t = t."""
        return self.options.diffusion_target == "flow"

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t and sigma_t at times `(B,)`."""
        if self.flow:
            return 1 - t, t
        levels = self._levels.to(t.device)
        alpha, sigma = levels[(t * (len(levels) - 1)).round().long()].unbind(-1)
        return alpha, sigma

    @property
    def edm(self) -> bool:
        """Whether the network predicts with unit variance at every noise level."""
        return self.options.preconditioning == "edm"

    @property
    def path_sd(self) -> float:
        """SD of the image around a prediction, along the path of a sampler."""
        return 0.0 if self.edm else self.sigma_data

    def input_scale(self, t: Tensor) -> Tensor:
        """Return c_in at times `(B,)`: the network's input has unit variance."""
        alpha, sigma = self.alpha_sigma(t)
        variance = (alpha * self.sigma_data).square() + sigma.square()
        return variance.rsqrt() if self.edm else torch.ones_like(variance)

    def preconditioning(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return c_skip and c_out at times `(B,)`."""
        alpha, sigma = self.alpha_sigma(t)
        variance = (alpha * self.sigma_data).square() + sigma.square()
        c_skip = alpha * self.sigma_data**2 / variance
        if self.edm:
            return c_skip, sigma * self.sigma_data * variance.rsqrt()
        return c_skip, sigma.square() / variance

    def weight(self, t: Tensor) -> Tensor:
        """Return the weight of the image's squared error at times `(B,)`.

        It is the weight that the target implies, at most `snr_gamma` (Hang et al. 2023, eq. 6).
        With `edm`, F weighs the same at every noise level instead.
        """
        alpha, sigma = self.alpha_sigma(t)
        top = alpha if self.options.diffusion_target == "noise" else torch.ones_like(alpha)
        weight = (top / sigma.clamp_min(1e-4)).square()
        return weight.clamp_max(self.options.snr_gamma) if self.options.snr_gamma else weight

    def training_times(self, uniform: Tensor, terminal: Tensor) -> Tensor:
        """Return times `(B,)` of training samples; without `edm`, a share is at t = 1.

        With `edm`, log(sigma_t / alpha_t) is normal (Karras et al. 2022, table 1); uniform times
        give a tenth of the samples to the noise levels at which texture is decided.

        Args:
            uniform: `(B,)` uniform numbers, for the time.
            terminal: `(B,)` uniform numbers, for the choice of t = 1.
        """
        if self.edm:
            margin = torch.finfo(uniform.dtype).eps
            normal = torch.special.ndtri(uniform.clamp(margin, 1 - margin))
            log_noise = self.options.log_noise_mean + self.options.log_noise_sd * normal
            return self._time_of(log_noise)
        return torch.where(terminal < self.options.terminal_prob, 1.0, 1 - uniform)

    def _time_of(self, log_noise: Tensor) -> Tensor:
        """Return the time at which log(sigma_t / alpha_t) has these values `(B,)`."""
        if self.flow:
            return torch.sigmoid(log_noise)
        alpha, sigma = self._levels.to(log_noise.device).unbind(-1)
        levels = (sigma.clamp_min(MIN_SCALE) / alpha.clamp_min(MIN_SCALE)).log()
        return torch.searchsorted(levels, log_noise).clamp(1, len(levels) - 1) / (len(levels) - 1)

    def log_noise(self, t: Tensor) -> Tensor:
        """Return log(sigma_t / alpha_t), the time as the network receives it; finite."""
        alpha, sigma = self.alpha_sigma(t)
        return (sigma.clamp_min(1e-4) / alpha.clamp_min(1e-3)).log().clamp(-7.0, 5.0)

    def sampling_times(self, steps: int, shift: float, start: float = 1.0) -> list[float]:
        """Return `steps` + 1 times from `start` to 0.

        A shift below 1 puts more of them near 0 (Esser et al. 2024, eq. 23). With `edm`, noise
        schedules have the noise levels of a flow: their own even times begin with more noise than
        the texture of a scan has.
        """
        from monai.networks.schedulers.rectified_flow import timestep_transform

        even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        shifted = timestep_transform(even, 1, 1, scale=shift, num_train_timesteps=1)
        times = shifted.clamp_max(1) * start
        if not self.flow:
            first = 1 / self.options.diffusion_steps  # the schedule's first noise level
            noisy = self._time_of(times.float().logit()) if self.edm else times.clamp_min(first)
            times = torch.where(times > 0, noisy, 0.0)
        return [float(t) for t in times]


def _progress(
    steps: Iterable[tuple[float, float]], count: int, title: str
) -> Iterable[tuple[float, float]]:
    """Show a progress bar over the steps of one volume, on a terminal."""
    disable = None if is_main_process() else True
    return tqdm(steps, total=count, desc=title, unit="step", leave=False, disable=disable)


@dataclass(frozen=True)
class Level:
    """Noise level at a time: alpha_t, sigma_t, and the SD of x_t around alpha_t times F."""

    alpha: float
    sigma: float
    sd: float

    @property
    def log_snr(self) -> float:
        """lambda_t = log(alpha_t / sd), finite except at pure noise and at the image of `edm`."""
        if not self.alpha:
            return -math.inf
        return math.log(self.alpha / self.sd) if self.sd else math.inf


@dataclass(frozen=True)
class DiffusionSampler:
    """Sampler from noise to image, and back.

    `euler` and `ddim` are the methods known by these names. With `residual` preconditioning they
    follow the exact path of N(F, sigma_data^2), with F constant over a step. `heun` evaluates the
    network again at the end of a step and uses the mean of both predictions (Karras et al. 2022,
    algorithm 1). `dpmpp_2m` extrapolates the last two predictions instead, and so is of second
    order with one evaluation in each step (DPM-Solver++(2M), Lu et al. 2022, arXiv 2211.01095).

    Args:
        schedule: The noise levels.
        network: Predicts the image, or F, of a noisy image at a time.
        kind: `dpmpp_2m`, `euler`, `heun`, `ddim` or `ddpm`. One step of `dpmpp_2m` alone is that of
            `heun`, so that it can be inverted: extrapolation needs the step before.
    """

    schedule: NoiseSchedule
    network: Network
    kind: str

    def _level(self, t: float) -> Level:
        alpha, sigma = (float(v) for v in self.schedule.alpha_sigma(torch.tensor([t])))
        sd = float(((alpha * self.schedule.path_sd) ** 2 + sigma**2) ** 0.5)
        return Level(alpha, sigma, sd)

    def step(
        self, x: Tensor, t: float, to: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the state at the earlier time `to`.

        Args:
            x: State x_t.
            t: Its time.
            to: The earlier time.
            generator: Source of the noise of `ddpm`.
        """
        now = self._level(t)
        then = self._level(to)
        if now == then:  # times closer together than the schedule's levels
            return x
        prediction = self.network(x, t)
        if self.kind == "ddpm":
            return self._ddpm_step(x, prediction, now, then, generator)
        moved = _move(x, prediction, now, then)
        if self.kind in ("heun", MULTISTEP_SAMPLER) and to > 0:
            prediction = (prediction + self.network(moved, to)) / 2
            moved = _move(x, prediction, now, then)
        return moved

    def _ddpm_step(
        self,
        x: Tensor,
        prediction: Tensor,
        now: Level,
        then: Level,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Step of Ho et al. 2020: Song et al. 2021 (DDIM), eq. 12 and 16 with eta = 1."""
        gain = now.alpha * self.schedule.path_sd**2 / now.sd**2
        image = prediction + gain * (x - now.alpha * prediction)
        eta_sigma = then.sigma / now.sigma * max(0.0, 1 - (now.alpha / then.alpha) ** 2) ** 0.5
        noise = torch.randn(x.shape, generator=generator).to(x)
        direction = max(0.0, then.sigma**2 - eta_sigma**2) ** 0.5 * (x - now.alpha * image)
        return then.alpha * image + direction / now.sigma + eta_sigma * noise

    def _gain(self, t: float, to: float) -> float:
        """Return the factor of a small change of the state in a step.

        The network's output is taken as constant.
        """
        now = self._level(t)
        then = self._level(to)
        skip = 0.0
        if self.schedule.edm:  # the prediction holds a share of the state
            skip = float(self.schedule.preconditioning(torch.tensor([t]))[0])
        return then.alpha * skip + then.sd / now.sd * (1 - now.alpha * skip)

    def invert_step(self, x: Tensor, t: float, to: float) -> Tensor:
        """Return the state at `t` from which `step` gives `x` at `to`, by fixed-point iteration.

        The usual inversion (DDIM) uses the prediction at the wrong end of the step. Its errors add
        up to tens of HU.
        """
        gain = self._gain(t, to)
        state = x
        error = x - self.step(x, t, to)
        rate = 1.0
        for _ in range(MAX_INVERSIONS):
            next_state = state + rate * error / gain
            next_error = x - self.step(next_state, t, to)
            if next_error.norm() < error.norm():
                state = next_state
                error = next_error
            else:  # in a long step, the prediction changes faster than its input
                rate /= 2
            if error.abs().max() < INVERSION_TOLERANCE:
                break
        return state

    def sample(
        self, x: Tensor, times: Sequence[float], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the state at `times[-1]` from `x` at `times[0]`."""
        if self.kind == MULTISTEP_SAMPLER:
            return self._sample_multistep(x, times)
        return self.sample_by_step(x, times, generator)

    def sample_by_step(
        self, x: Tensor, times: Sequence[float], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the state at `times[-1]` by steps that `invert` undoes."""
        for t, to in _progress(pairwise(times), len(times) - 1, "sampling"):
            x = self.step(x, t, to, generator)
        return x

    def _sample_multistep(self, x: Tensor, times: Sequence[float]) -> Tensor:
        """Return the state at `times[-1]` by algorithm 2 of Lu et al. 2022.

        Steps from pure noise, the one after that, and steps to the image itself use the prediction
        as it is: there lambda is infinite.
        """
        levels = [self._level(t) for t in times]
        before: Tensor | None = None
        for number, (t, _to) in enumerate(_progress(pairwise(times), len(times) - 1, "sampling")):
            now, then = levels[number], levels[number + 1]
            prediction = extrapolated = self.network(x, t)
            step = then.log_snr - now.log_snr
            last = now.log_snr - levels[number - 1].log_snr if number else math.inf
            if before is not None and math.isfinite(step) and 0 < last < math.inf:
                extrapolated = prediction + step / (2 * last) * (prediction - before)
            x = _move(x, extrapolated, now, then)
            before = prediction
        return x

    def invert(self, x: Tensor, times: Sequence[float]) -> Tensor:
        """Return the state at `times[0]` from which `sample_by_step` gives `x` at `times[-1]`."""
        for t, to in _progress(reversed(list(pairwise(times))), len(times) - 1, "inverting"):
            x = self.invert_step(x, t, to)
        return x


def _move(x: Tensor, prediction: Tensor, now: Level, then: Level) -> Tensor:
    """Follow the exact path around a constant prediction."""
    return then.alpha * prediction + then.sd / now.sd * (x - now.alpha * prediction)
