"""Flags of the diffusion models: training target, sampling and editing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from options.parser import flag

MULTISTEP_SAMPLER = "dpmpp_2m"
FLOW_SAMPLERS = ("euler", "heun", MULTISTEP_SAMPLER)
SCHEDULE_SAMPLERS = ("ddim", "ddpm", MULTISTEP_SAMPLER)


@dataclass(frozen=True)
class DiffusionOptions:
    """Training target and noise schedule of a diffusion model."""

    ABSENT: ClassVar[Mapping[str, Any]] = {"preconditioning": "residual"}

    diffusion_target: Literal["flow", "v", "noise"] = flag(
        "flow",
        "Training target: rectified flow (straight paths), or v or noise on a noise schedule.",
        choices=("flow", "v", "noise"),
    )
    diffusion_steps: int = flag(
        1000, "Steps of the noise schedule, and the maximum of --sampling_steps.", low=2
    )
    schedule: str = flag(
        "scaled_linear_beta",
        "Noise schedule of the targets v and noise.",
        choices=("linear_beta", "scaled_linear_beta", "sigmoid_beta", "cosine"),
    )
    zero_snr: bool = flag(
        True, "End the schedule in pure noise, where sampling starts; otherwise means drift."
    )
    preconditioning: Literal["edm", "residual"] = flag(
        "edm",
        "What is diffused, and how the network predicts it: edm (what differs from the mean of "
        "mask and text, with texture learned at every noise level), or residual (the image; "
        "texture is a constant SD around the network's prediction, as in version 0.1).",
        choices=("edm", "residual"),
    )
    log_noise_mean: float = flag(
        -2.5,
        "Mean of the logarithm of the noise level, relative to the image, in training with edm; "
        "-2.5 is 57 HU in a window of 1400 HU.",
    )
    log_noise_sd: float = flag(1.4, "SD of that logarithm.", low=0.01)
    snr_gamma: float = flag(
        5.0,
        "Largest weight of the image's squared error with residual preconditioning; the weights "
        "implied by the targets grow without bound as noise decreases (0: no limit).",
        low=0,
    )
    terminal_prob: float = flag(
        0.2,
        "Share of training samples that teach the mean, with mask and text as the only input.",
        low=0,
        high=1,
        old_names=("pure_noise",),
    )
    sigma_data: float = flag(
        0.0,
        "SD of the image given mask and text, in units of [-1, 1] or of standardised latents (0: "
        "0.1 for voxels, which is 70 HU, and 0.5 for latents; with residual preconditioning, which "
        "prints it as texture, 0.03 and 0.3).",
        low=0,
    )
    time_width: int = flag(64, "Width of the embedding of the noise level.", low=2)
    text_dropout: float = flag(
        0.1, "Share of training samples without text; --guidance needs it.", low=0, high=0.9
    )
    mask_dropout: float = flag(
        0.0, "Share of training samples without mask; --guidance_mask needs it.", low=0, high=0.9
    )
    autoencoder: str = flag(
        "",
        "Autoencoder of latent_diffusion: a file of weights with a .json beside it, as "
        "scripts/train_autoencoder.py writes them.",
    )


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling of a diffusion model; None for the value of the run, in test.py."""

    sampler: str | None = flag(
        None,
        "DPM-Solver++(2M) for all (the default with edm), Euler or Heun for flows (default with "
        "residual preconditioning: Euler), DDIM or DDPM for noise schedules (the same: DDIM).",
        choices=(*FLOW_SAMPLERS, "ddim", "ddpm"),
    )
    sampling_steps: int | None = flag(
        None,
        "Steps from noise to image (default: 15; 30 with residual preconditioning).",
        low=1,
    )
    time_shift: float | None = flag(
        None,
        "Below 1, more of the steps are at little noise (default: 0.2).",
        low=0.01,
        high=100,
    )
    guidance: float | None = flag(
        None,
        "Scale of classifier-free guidance by the text: the factor of its effect on every step "
        "(default: 1).",
        low=0,
    )
    guidance_mask: float | None = flag(None, "Scale of guidance by the mask (default: 1).", low=0)

    def with_defaults(self, defaults: SamplingOptions) -> SamplingOptions:
        """Return these settings, with the defaults where they are None."""
        return replace(defaults, **self._not_none())

    @property
    def set_flags(self) -> list[str]:
        """The flags that are not None."""
        return [f"--{name}" for name in self._not_none()]

    def _not_none(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class EditOptions:
    """Counterfactuals of real scans."""

    edit_real: bool = flag(
        False,
        "Edit the patients' real scans: a diffusion model inverts each scan to noise with its row, "
        "and samples it again with every --vary; a GAN adds the difference of two generated "
        "volumes.",
    )
    edit_strength: float = flag(
        1.0,
        "Noise level to which a scan is inverted, 1 being pure noise, or factor of the difference "
        "that a GAN adds; a lower one keeps more of the scan and changes less.",
        low=0.01,
        high=1,
    )
    edit_cycles: int = flag(
        5,
        "Times that a scan is inverted and sampled again without a change, to measure the error of "
        "the inversion (first and last cycle); 0 saves this time, and that of editing back.",
        low=0,
    )
