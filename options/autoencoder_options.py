"""Flags of scripts/train_autoencoder.py and scripts/fetch_autoencoder.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.base_options import DataOptions, PatchOptions
from options.parser import argument, flag, group, path_flag


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
    label_weight: float = flag(
        8.0, "Weight of labelled voxels relative to the background and the body.", low=1
    )
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


@dataclass(frozen=True)
class FetchOptions:
    """Where the weights come from, what they are, and how they are checked."""

    OUT: str = argument(
        "File for the weights, ending in .safetensors; a .json is written beside it, and the "
        "check's page into a folder of the same name."
    )
    overwrite: bool = flag(False, "Replace existing files.")
    file: str = path_flag("", "Local file of weights to use instead of a download.", kind="file")
    repo: str = flag("MONAI/maisi_ct_generative", "Repository of the model hub.")
    repo_file: str = flag("models/autoencoder.pt", "File of the weights in --repo.")
    revision: str = flag("", "Revision of --repo (default: the newest).")
    channels: tuple[int, ...] = flag(
        (64, 128, 256), "Channels at each resolution, of MAISI's autoencoder by default.", low=1
    )
    res_blocks: tuple[int, ...] = flag((2, 2, 2), "Residual blocks at each resolution.", low=1)
    latent_channels: int = flag(4, "Channels of the latents.", low=1)
    norm_groups: int = flag(32, "Groups of its group norms.", low=1)
    trained_window: tuple[float, float] = flag(
        (-1000.0, 1000.0), "HU window that it was trained on.", low=-4000, high=8000
    )
    input_range: tuple[float, float] = flag(
        (0.0, 1.0), "Inputs that stand for the ends of --trained_window."
    )
    check_cases: int = flag(4, "Training scans to reconstruct for the check.", low=1)
    tile: tuple[int, int, int] = flag(
        (96, 96, 96),
        "Tile in voxels of the check. Group norms depend on the whole tile, so use that of the "
        "later runs.",
        low=8,
    )
    overlap: float = flag(0.25, "Share of a tile that its neighbour covers too.", low=0, high=0.9)
    gpu_ids: str = flag("", "GPU, such as 0; -1 for the CPU (default: a GPU if available).")
    seed: int = flag(0, "Seed of the patches, and of the split.", low=0)


@dataclass(frozen=True)
class FetchCommand:
    """All flags of the command."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("dataroot",)
    EXAMPLE: ClassVar[str] = (
        "python scripts/fetch_autoencoder.py maisi.safetensors --dataroot cohort --file "
        "autoencoder.pt"
    )

    fetch: FetchOptions = group(FetchOptions, "Autoencoder")
    data: DataOptions = group(DataOptions, "Cohort")
    patch: PatchOptions = group(PatchOptions, "Patches that latents are standardised by")
