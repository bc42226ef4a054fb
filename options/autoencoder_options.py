"""Flags of scripts/train_autoencoder.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.base_options import DataOptions, PatchOptions
from options.parser import argument, flag, group


@dataclass(frozen=True)
class AutoencoderOptions:
    """Architecture, training and output file."""

    OUT: str = argument(
        "File for the weights, ending in .safetensors; a .json is written beside it."
    )
    overwrite: bool = flag(False, "Replace existing files.")
    channels: tuple[int, ...] = flag(
        (32, 64, 64), "Channels at each resolution; each resolution is half the one before.", low=4
    )
    latent_channels: int = flag(4, "Channels of the latents.", low=1)
    res_blocks: int = flag(1, "Residual blocks at each resolution.", low=1)
    kl: float = flag(
        1e-6,
        "Weight of the Kullback-Leibler term, which keeps latents near a standard normal.",
        low=0,
    )
    label_weight: float = flag(8.0, "Weight of labelled voxels relative to the background.", low=1)
    max_steps: int = flag(5000, "Training steps.", low=1)
    batch_size: int = flag(4, "Patches per step.", low=1)
    lr: float = flag(
        1e-3, "Highest learning rate; it rises for a tenth of the steps and falls to zero.", low=0
    )
    precision: str = flag("fp32", "Precision of training.", choices=("fp32", "bf16"))
    gpu_ids: str = flag("", "GPU, such as 0; -1 for the CPU (default: a GPU if available).")
    seed: int = flag(0, "Seed of weights, order, crops and latents, and of the split.", low=0)


@dataclass(frozen=True)
class AutoencoderCommand:
    """All flags of the command."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("dataroot",)
    EXAMPLE: ClassVar[str] = (
        "python scripts/train_autoencoder.py autoencoder.safetensors --dataroot phantoms"
    )

    autoencoder: AutoencoderOptions = group(AutoencoderOptions, "Autoencoder")
    data: DataOptions = group(DataOptions, "Cohort")
    patch: PatchOptions = group(PatchOptions, "Patches")
