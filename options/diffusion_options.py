"""Flags of the diffusion models: what they learn, and how they sample and edit."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from options.parser import flag

FLOW_SAMPLERS = ("euler", "heun")
SCHEDULE_SAMPLERS = ("ddim", "ddpm")


@dataclass(frozen=True)
class DiffusionOptions:
    """What a diffusion model learns."""

    diffusion_target: Literal["flow", "v", "noise"] = flag(
        "flow",
        "What is learnt: rectified flow (straight paths), or, on a noise schedule, v or the noise.",
        choices=("flow", "v", "noise"),
    )
    diffusion_steps: int = flag(
        1000, "Steps of the noise schedule, and the most that sampling may take.", low=2
    )
    schedule: str = flag(
        "scaled_linear_beta",
        "Noise schedule of v and noise.",
        choices=("linear_beta", "scaled_linear_beta", "sigmoid_beta", "cosine"),
    )
    zero_snr: bool = flag(
        True, "Make the schedule end in pure noise, as sampling begins there; else means drift."
    )
    snr_gamma: float = flag(
        5.0,
        "Largest weight of a clean image's squared error: the weights that the targets imply grow "
        "without bound towards little noise (0: no limit).",
        low=0,
    )
    terminal_prob: float = flag(
        0.2,
        "Share of training samples that are pure noise, where mask and text alone decide.",
        low=0,
        high=1,
        old_names=("pure_noise",),
    )
    sigma_data: float = flag(
        0.0,
        "SD of what mask and text leave open, in [-1, 1] or in scaled latents: less noise than "
        "this is passed on, more is replaced (0: 0.03 for voxels, which is 21 HU, 0.3 for "
        "latents).",
        low=0,
    )
    time_width: int = flag(64, "Width of the embedding of the noise level.", low=2)
    text_dropout: float = flag(
        0.1, "Share of training samples without text, which --guidance needs.", low=0, high=0.9
    )
    mask_dropout: float = flag(
        0.0, "Share of training samples without mask, which --guidance_mask needs.", low=0, high=0.9
    )
    autoencoder: str = flag(
        "",
        "Autoencoder of latent_diffusion: a file of weights with its .json beside it, as written "
        "by scripts/train_autoencoder.py.",
    )


@dataclass(frozen=True)
class SamplingOptions:
    """How a diffusion model generates; test.py takes what it is not given from the run."""

    sampler: str | None = flag(
        None,
        "Euler or Heun for flows, DDIM or DDPM for noise schedules (none: Euler or DDIM).",
        choices=(*FLOW_SAMPLERS, *SCHEDULE_SAMPLERS),
    )
    sampling_steps: int | None = flag(None, "Steps from noise to image (none: 30).", low=1)
    time_shift: float | None = flag(
        None,
        "Below 1, more of the steps are taken where there is little noise (none: 0.2).",
        low=0.01,
        high=100,
    )
    guidance: float | None = flag(
        None,
        "How far the text's effect on every step is exaggerated (classifier-free guidance; none: "
        "1, not).",
        low=0,
    )
    guidance_mask: float | None = flag(None, "The same for the mask (none: 1).", low=0)

    def over(self, other: SamplingOptions) -> SamplingOptions:
        """These settings, and the other's where these say nothing."""
        given = {
            f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None
        }
        return replace(other, **given)

    @property
    def given(self) -> list[str]:
        """The flags that say something."""
        return [f"--{f.name}" for f in fields(self) if getattr(self, f.name) is not None]


@dataclass(frozen=True)
class EditOptions:
    """Counterfactuals of real scans."""

    edit_real: bool = flag(
        False,
        "Change the patients' own scans: each is turned to the noise that gives it under its own "
        "row, and made again with every --vary.",
    )
    edit_strength: float = flag(
        1.0,
        "Noise level up to which a scan is taken back: 1 starts again from pure noise, less keeps "
        "more of the scan and changes less.",
        low=0.01,
        high=1,
    )
    edit_cycles: int = flag(
        5,
        "Times a scan is inverted and made again without change, to measure the error of that (in "
        "cycle 1 and in the last); 0 saves the time, also that of editing back.",
        low=0,
    )
