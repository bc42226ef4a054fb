"""Noising and its reversal: noise levels, and the steps of samplers forth and back. Pure functions
of tensors.

A noisy image is x_t = a(t) x + s(t) e, with e standard normal; t runs from 0 (the image) to 1
(noise). A network is asked for F, and the estimate of the image is `skip(t) x_t + blend(t) F`: what
a Gaussian of SD `sigma_data` around F would give (Karras et al. 2022, section 5, with F as the
image's mean). Noise prediction, v-prediction and flows are affine in this estimate, and differ in
the weight of its squared error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from monai.networks.schedulers import DDPMScheduler
from monai.networks.schedulers.rectified_flow import timestep_transform
from torch import Tensor
from tqdm import tqdm

from options.diffusion_options import DiffusionOptions
from util.cli import main_rank

Network = Callable[[Tensor, float], Tensor]  # (x_t, t) -> F
FLOWS, SCHEDULES = (
    ("euler", "heun"),
    ("ddim", "ddpm"),
)  # samplers that belong to flows and to noise schedules
ROUNDS, CLOSE = (
    10,
    1e-4,
)  # of inverting one step: at most so many, until the step gives the state within this


def schedule_levels(options: DiffusionOptions) -> Tensor:
    """`(T + 1, 2)`: a and s at t = 0, 1/T, ..., 1 of MONAI's noise schedule, with zero terminal
    signal if asked.

    Lin et al. 2024 (arXiv 2305.08891), algorithm 1: without it training never sees pure noise,
    where sampling starts, and means such as a lung's density drift.
    """
    products = DDPMScheduler(
        num_train_timesteps=options.diffusion_steps, schedule=options.schedule
    ).alphas_cumprod
    signal = products.double().sqrt()
    if options.zero_snr:
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    signal = torch.cat([torch.ones(1, dtype=torch.float64), signal])
    return torch.stack([signal, (1 - signal.square()).clamp_min(0).sqrt()], 1).float()


@dataclass(frozen=True)
class NoiseSchedule:
    """Noise levels and weights of one training target.

    Args:
        options: Target, schedule and weights.
        sigma_data: SD of what mask and text leave open.
    """

    options: DiffusionOptions
    sigma_data: float

    @cached_property
    def _table(self) -> Tensor:
        return schedule_levels(self.options)

    @property
    def flow(self) -> bool:
        return self.options.diffusion_target == "flow"

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a and s at times `(B,)`."""
        if self.flow:
            return 1 - t, t
        table = self._table.to(t.device)
        signal, noise = table[(t * (len(table) - 1)).round().long()].unbind(-1)
        return signal, noise

    def preconditioning(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of x_t and of F in the estimated image, at times `(B,)`."""
        a, s = self.alpha_sigma(t)
        total = (a * self.sigma_data).square() + s.square()
        return a * self.sigma_data**2 / total, s.square() / total

    def weight(self, t: Tensor) -> Tensor:
        """Weight of the image's squared error at times `(B,)`, limited by `--snr_gamma` (Hang et
        al. 2023).
        """
        a, s = self.alpha_sigma(t)
        top = a if self.options.diffusion_target == "noise" else torch.ones_like(a)
        weight = (top / s.clamp_min(1e-4)).square()
        return weight.clamp_max(self.options.snr_gamma) if self.options.snr_gamma else weight

    def time(self, uniform: Tensor, whether: Tensor) -> Tensor:
        """Times of training samples from two uniform numbers each: `--terminal_prob` of them at t =
        1.
        """
        return torch.where(
            whether < self.options.terminal_prob, torch.ones_like(uniform), 1 - uniform
        )

    def log_noise(self, t: Tensor) -> Tensor:
        """log(s / a), what networks are told of the time; finite."""
        a, s = self.alpha_sigma(t)
        return (s.clamp_min(1e-4) / a.clamp_min(1e-3)).log().clamp(-7.0, 5.0)

    def times(self, steps: int, shift: float, start: float = 1.0) -> list[float]:
        """`steps` + 1 times from `start` to 0; a shift below 1 puts more of them near 0 (Esser et
        al. 2024).
        """
        even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        shifted = timestep_transform(even, 1, 1, scale=shift, num_train_timesteps=1)
        return [min(1.0, float(v)) * start for v in shifted]


def _bar(
    steps: Iterable[tuple[float, float]], count: int, what: str
) -> Iterable[tuple[float, float]]:
    """A progress bar over the steps of one volume, on a terminal."""
    return tqdm(
        steps,
        total=count,
        desc=what,
        unit="step",
        leave=False,
        disable=None if main_rank() else True,
    )


@dataclass(frozen=True)
class DiffusionSampler:
    """One way from noise to image, and back.

    `euler` and `ddim` follow the exact path of a Gaussian of SD `sigma_data` around F, with F kept
    over a step: so texture has its full contrast after few steps, where a straight step loses a
    quarter. With `sigma_data` 0 they are the methods known by these names. `heun` asks again at the
    end of a step and takes the mean of both answers.

    Args:
        process: The noise levels.
        network: Gives F of a noisy image at a time.
        kind: `euler`, `heun`, `ddim` or `ddpm`.
    """

    process: NoiseSchedule
    network: Network
    kind: str

    def _at(self, t: float) -> tuple[float, float, float]:
        """a, s, and the SD of x_t around a F."""
        a, s = (float(v) for v in self.process.alpha_sigma(torch.tensor([t])))
        return a, s, float(((a * self.process.sigma_data) ** 2 + s**2) ** 0.5)

    def step(self, x: Tensor, t: float, to: float, fresh: torch.Generator | None = None) -> Tensor:
        """From time `t` to the earlier time `to`; `fresh` gives the noise of `ddpm`."""
        (a, s, spread), (b, q, narrower) = self._at(t), self._at(to)
        found = self.network(x, t)
        if self.kind == "ddpm":  # Ho et al. 2020, as eta = 1 of Song et al. 2021, eq. 16
            image = found + a * self.process.sigma_data**2 / spread**2 * (x - a * found)
            new = q / s * max(0.0, 1 - (a / b) ** 2) ** 0.5
            noise = torch.randn(x.shape, generator=fresh).to(x)
            return b * image + max(0.0, q**2 - new**2) ** 0.5 * (x - a * image) / s + new * noise
        moved = b * found + narrower / spread * (x - a * found)
        if self.kind == "heun" and to > 0:
            found = (found + self.network(moved, to)) / 2
            moved = b * found + narrower / spread * (x - a * found)
        return moved

    def invert_step(self, x: Tensor, t: float, to: float) -> Tensor:
        """The state at `t` from which `step` gives `x` at `to`, found by fixed-point rounds.

        The usual inversion takes the network's answer at the wrong end of the step; its errors add
        up to tens of HU.
        """
        gain = self._at(to)[-1] / self._at(t)[-1]  # of a step, but for the network
        found, off, rate = x, x - self.step(x, t, to), 1.0
        for _ in range(ROUNDS):
            tried = found + rate * off / gain
            left = x - self.step(tried, t, to)
            if left.norm() < off.norm():
                found, off = tried, left
            else:
                rate /= (
                    2  # a long step, in which the network's answer changes faster than its input
                )
            if off.abs().max() < CLOSE:
                break
        return found

    def sample(
        self, x: Tensor, times: Sequence[float], fresh: torch.Generator | None = None
    ) -> Tensor:
        """From `times[0]` to `times[-1]`."""
        for t, to in _bar(pairwise(times), len(times) - 1, "sampling"):
            x = self.step(x, t, to, fresh)
        return x

    def invert(self, x: Tensor, times: Sequence[float]) -> Tensor:
        """From `times[-1]` back to `times[0]`, so that `sample` gives `x` again."""
        for t, to in _bar(reversed(list(pairwise(times))), len(times) - 1, "inverting"):
            x = self.invert_step(x, t, to)
        return x
