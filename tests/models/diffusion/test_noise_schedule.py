"""Noise schedules, and steps of samplers in both directions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor

from models.diffusion.noise_schedule import DiffusionSampler, NoiseSchedule
from options.diffusion_options import DiffusionOptions

TARGETS = ("flow", "v", "noise")
SD = 0.1


def make_schedule(
    target: str = "flow", preconditioning: str = "residual", **changes: Any
) -> NoiseSchedule:
    options = DiffusionOptions(
        diffusion_target=target,  # type: ignore[arg-type]
        zero_snr=target != "noise",
        preconditioning=preconditioning,  # type: ignore[arg-type]
    )
    return NoiseSchedule(replace(options, **changes), SD)


# --- noise levels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_levels_run_from_the_image_to_noise(target: str) -> None:
    p, t = make_schedule(target), torch.linspace(0, 1, 101)
    a, s = p.alpha_sigma(t)
    assert a[0] == 1 and s[0] == 0 and (a.diff() <= 0).all() and (s.diff() >= 0).all()
    assert s[-1] == pytest.approx(1, abs=1e-3)
    assert (a[-1] == 0) == (
        target != "noise"
    )  # zero terminal signal, which noise prediction cannot have
    torch.testing.assert_close(a + s if target == "flow" else a**2 + s**2, torch.ones(101))
    assert torch.isfinite(p.log_noise(t)).all() and torch.isfinite(p.weight(t)).all()


@pytest.mark.parametrize("target", TARGETS)
def test_the_estimate_is_the_best_one_for_a_gaussian(target: str) -> None:
    """Of images N(F, sigma_data^2) the mean given x_t is a linear blend of both; checked against
    least squares.
    """
    p, draw, mean = make_schedule(target), torch.Generator().manual_seed(0), 0.4
    image, noise = (torch.randn(200_000, generator=draw, dtype=torch.float64) for _ in range(2))
    image = mean + SD * image
    for time in (0.05, 0.3, 0.7):
        a, s = (float(v) for v in p.alpha_sigma(torch.tensor([time])))
        x = a * image + s * noise
        skip, blend = (float(v) for v in p.preconditioning(torch.tensor([time])))
        slope = float(((x - x.mean()) * (image - image.mean())).mean() / x.var())
        assert skip == pytest.approx(slope, abs=5e-3)
        assert float((skip * x + blend * mean - image).mean()) == pytest.approx(0, abs=2e-3)
    assert [float(v) for v in p.preconditioning(torch.zeros(1))] == pytest.approx([1, 0])


@pytest.mark.parametrize("target", TARGETS)
def test_edm_predicts_what_has_unit_variance(target: str) -> None:
    """Of what differs from the mean, the best estimate is c_skip x_t; what is left is c_out F."""
    p, draw = make_schedule(target, "edm"), torch.Generator().manual_seed(0)
    image, noise = (torch.randn(200_000, generator=draw, dtype=torch.float64) for _ in range(2))
    image = SD * image
    for time in (0.02, 0.3, 0.7, 0.99):
        t = torch.tensor([time])
        a, s = (float(v) for v in p.alpha_sigma(t))
        x = a * image + s * noise
        skip, out = (float(v) for v in p.preconditioning(t))
        assert float((p.input_scale(t) * x).std()) == pytest.approx(1, abs=0.01)
        assert float(((image - skip * x) / out).std()) == pytest.approx(1, abs=0.01)
        assert float(((image - skip * x) * x).mean()) == pytest.approx(0, abs=1e-3 * s)


@pytest.mark.parametrize("target", TARGETS)
def test_edm_trains_where_texture_is_decided(target: str) -> None:
    p = make_schedule(target, "edm", log_noise_mean=-2.0, log_noise_sd=1.0)
    uniform, terminal = torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0))
    times = p.training_times(uniform, terminal)
    assert times.min() > 0 and times.max() < 1
    found = p.log_noise(times)
    assert float(found.mean()) == pytest.approx(-2.0, abs=0.05)
    assert float(found.std()) == pytest.approx(1.0, abs=0.05)
    ends = p.training_times(torch.tensor([0.0, 1.0]), torch.zeros(2))
    assert ((ends >= 0) & (ends <= 1)).all()


def test_weights_are_those_of_the_targets() -> None:
    """An image's error d is an error of a/s d in noise, of d/s in v and in the flow's velocity;
    squared, and limited.
    """
    t = torch.tensor([0.2, 0.5, 0.9])
    for target in TARGETS:
        p = make_schedule(target, snr_gamma=0.0)
        a, s = p.alpha_sigma(t)
        torch.testing.assert_close(p.weight(t), (a / s if target == "noise" else 1 / s).square())
    assert make_schedule("flow", snr_gamma=5.0).weight(t).max() == 5.0


def test_some_training_samples_are_pure_noise() -> None:
    p = make_schedule("flow", terminal_prob=0.25)
    uniform, terminal = torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0))
    times = p.training_times(uniform, terminal)
    assert float((times == 1).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert times.min() > 0 and float(times[times < 1].mean()) == pytest.approx(0.5, abs=0.02)


def test_times_of_sampling() -> None:
    p = make_schedule()
    assert p.sampling_times(4, 1.0) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    shifted = p.sampling_times(4, 0.2, 0.8)
    assert shifted[0] == 0.8 and shifted[-1] == 0 and shifted[2] < 0.4
    flow, noise = (make_schedule(target, "edm").sampling_times(6, 0.2) for target in ("flow", "v"))
    levels = [
        make_schedule(target, "edm").log_noise(torch.tensor(times[1:-1]))
        for target, times in (("flow", flow), ("v", noise))
    ]
    assert noise[0] == 1 and noise[-1] == 0
    torch.testing.assert_close(levels[0], levels[1], atol=0.05, rtol=0.05)


# --- steps ----------------------------------------------------------------------------------------


def gaussian_sampler(p: NoiseSchedule, kind: str) -> DiffusionSampler:
    """For images N(0.4, SD^2), voxel by voxel."""
    return DiffusionSampler(p, lambda x, t: torch.full_like(x, 0.4), kind)


@pytest.mark.parametrize(
    ("target", "kind"), [("flow", "euler"), ("flow", "heun"), ("v", "ddim"), ("v", "ddpm")]
)
def test_sampling_gives_the_distribution(target: str, kind: str) -> None:
    p, draw = make_schedule(target), torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 32, 32, 32, generator=draw)
    result = gaussian_sampler(p, kind).sample(
        noise, p.sampling_times(200 if kind == "ddpm" else 5, 0.2), draw
    )
    assert float(result.mean()) == pytest.approx(0.4, abs=0.004)
    assert float(result.std()) == pytest.approx(SD, rel=0.04)


@pytest.mark.parametrize(
    ("target", "kind"), [("flow", "euler"), ("flow", "heun"), ("v", "ddim"), ("v", "ddpm")]
)
def test_edm_samples_the_distribution_of_differences(target: str, kind: str) -> None:
    p, draw = make_schedule(target, "edm"), torch.Generator().manual_seed(0)

    def best(x: Tensor, t: float) -> Tensor:
        return p.preconditioning(torch.tensor([t]))[0] * x

    noise = torch.randn(1, 1, 32, 32, 32, generator=draw)
    times = p.sampling_times(200, 0.2)
    result = DiffusionSampler(p, best, kind).sample(noise, times, draw)
    assert float(result.mean()) == pytest.approx(0, abs=0.004)
    assert float(result.std()) == pytest.approx(SD, rel=0.05)


def wavy(x: Tensor, t: float) -> Tensor:
    """A smooth, non-linear network that looks at its input."""
    return 0.5 * torch.tanh(x.roll(1, 2) + 0.5 * x.roll(1, 3)) + 0.1 * t


@pytest.mark.parametrize(
    ("target", "kind"),
    [("flow", "euler"), ("flow", "heun"), ("flow", "dpmpp_2m"), ("v", "ddim"), ("v", "dpmpp_2m")],
)
@pytest.mark.parametrize("start", [1.0, 0.5])
@pytest.mark.parametrize("preconditioning", ["edm", "residual"])
def test_an_inverted_image_comes_back(
    target: str, kind: str, start: float, preconditioning: str
) -> None:
    p = make_schedule(target, preconditioning)

    def denoise(x: Tensor, t: float) -> Tensor:
        if not p.edm:
            return wavy(x, t)
        skip, out = p.preconditioning(torch.tensor([t]))
        return skip * x + out * wavy(p.input_scale(torch.tensor([t])) * x, t)

    sampler = DiffusionSampler(p, denoise, kind)
    times = p.sampling_times(20, 0.2 if target == "flow" else 1.0, start)
    image = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    back = sampler.sample_by_step(sampler.invert(image, times), times)
    assert (back - image).abs().max() < 2e-3


def test_heun_needs_fewer_steps_than_euler() -> None:
    p, noise = (
        make_schedule(),
        torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)),
    )
    exact = DiffusionSampler(p, wavy, "heun").sample(noise, p.sampling_times(300, 0.2))
    off = {
        k: (DiffusionSampler(p, wavy, k).sample(noise, p.sampling_times(15, 0.2)) - exact)
        .abs()
        .mean()
        for k in ("euler", "heun")
    }
    assert off["heun"] < off["euler"] / 3


@pytest.mark.parametrize(
    ("target", "preconditioning"), [("flow", "edm"), ("v", "edm"), ("flow", "residual")]
)
def test_extrapolation_is_of_second_order(target: str, preconditioning: str) -> None:
    """Images are Gaussian with half the SD that the schedule expects: the path is known.

    From x_1 = eps at pure noise it leads to the mean + SD eps; with one evaluation in each step.
    """
    p, sd, mean = make_schedule(target, preconditioning, diffusion_steps=100_000), SD / 2, 0.2
    calls = []

    def predict(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        alpha, sigma = (float(v) for v in p.alpha_sigma(torch.tensor([t])))
        best = mean + alpha * sd**2 / ((alpha * sd) ** 2 + sigma**2) * (x - alpha * mean)
        if p.edm:
            return best
        skip, blend = (float(v) for v in p.preconditioning(torch.tensor([t])))
        return (best - skip * x) / max(blend, 1e-6)

    noise = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))

    def error(kind: str, steps: int) -> float:
        calls.clear()
        times = p.sampling_times(steps, 0.2)
        sampled = DiffusionSampler(p, predict, kind).sample(noise.double(), times)
        assert len(calls) == steps
        return float((sampled - mean - sd * noise).abs().mean()) / sd

    by_steps = {steps: error("dpmpp_2m", steps) for steps in (10, 40)}
    first_order = error("euler" if target == "flow" else "ddim", 10)
    assert by_steps[10] < first_order / 2
    assert by_steps[40] < by_steps[10] / 6


def test_steps_between_equal_levels_change_nothing() -> None:
    """A noise schedule has no more levels than steps of training; times are rounded to them."""
    p = make_schedule("v", "edm", diffusion_steps=10)
    x = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    sampler = DiffusionSampler(p, lambda x, t: 0.1 * torch.tanh(x), "dpmpp_2m")
    twice = sampler.sample(x, [1.0, 0.99, 0.6, 0.59, 0.3, 0.2, 0.0])
    torch.testing.assert_close(twice, sampler.sample(x, [1.0, 0.6, 0.3, 0.2, 0.0]))


@pytest.mark.parametrize(
    ("preconditioning", "shift"), [("edm", 5.0), ("residual", 5.0), ("residual", 0.05)]
)
def test_ddpm_takes_as_many_steps_as_the_schedule_has(preconditioning: str, shift: float) -> None:
    """Some lie closer together than its levels, at noise or at the image."""
    p, draw = make_schedule("v", preconditioning), torch.Generator().manual_seed(0)

    def best(x: Tensor, t: float) -> Tensor:
        if preconditioning == "residual":
            return torch.zeros_like(x)
        return p.preconditioning(torch.tensor([t]))[0] * x

    noise = torch.randn(1, 1, 16, 16, 16, generator=draw)
    times = p.sampling_times(1000, shift)
    result = DiffusionSampler(p, best, "ddpm").sample(noise, times, draw)
    assert float(result.mean()) == pytest.approx(0, abs=0.008)
    assert float(result.std()) == pytest.approx(SD, rel=0.1)


def test_ddim_of_v_is_that_of_monai() -> None:
    p = NoiseSchedule(make_schedule("v", zero_snr=False).options, 1e-6)
    draw = torch.Generator().manual_seed(0)
    theirs = DDIMScheduler(
        1000, schedule="scaled_linear_beta", clip_sample=False, prediction_type="v_prediction"
    )
    theirs.set_timesteps(10)
    x, image = torch.randn(2, 1, 1, 4, 4, 4, generator=draw)
    at, to = 500, 400
    alpha = theirs.alphas_cumprod[at]
    expected, _ = theirs.step((alpha.sqrt() * x - image) / (1 - alpha).sqrt(), at, x)
    result = DiffusionSampler(p, lambda x, t: image, "ddim").step(
        x, (at + 1) / 1000, (to + 1) / 1000
    )
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
