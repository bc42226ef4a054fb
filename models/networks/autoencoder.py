"""The autoencoder of latent diffusion: MONAI's AutoencoderKL or MAISI's, described by a .json
beside its weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from monai.networks.nets import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn

from models.networks.layers import ChannelNorm
from util.cli import UserError
from util.files import read_json

NORMS = (nn.GroupNorm, nn.InstanceNorm3d)


@dataclass(frozen=True)
class AutoencoderConfig:
    """The .json beside the weights.

    Attributes:
        kind: MONAI's AutoencoderKL, or AutoencoderKlMaisi.
        config: Arguments of its constructor.
        hu_window: HU that it was trained on.
        input_range: What it takes the lowest and the highest of them as.
        channel_norm: Whether its group norms were replaced by norms of each voxel's channels, so
            that tiles agree.
        mean, std: Of its latents, a channel each, by which they are standardised; empty for 0 and
            1.
    """

    kind: Literal["AutoencoderKL", "AutoencoderKlMaisi"]
    config: dict[str, Any]
    hu_window: tuple[float, float] = (-1000.0, 400.0)
    input_range: tuple[float, float] = (-1.0, 1.0)
    channel_norm: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def description_file(file: Path) -> Path:
    return file.with_suffix(".json")


def per_voxel(network: nn.Module) -> nn.Module:
    """The network with every group norm replaced by one over the channels of each voxel."""
    for name, child in network.named_children():
        if isinstance(child, NORMS):
            channels = child.num_channels if isinstance(child, nn.GroupNorm) else child.num_features
            setattr(network, name, ChannelNorm(channels))
        else:
            per_voxel(child)
    return network


def build(description: AutoencoderConfig) -> AutoencoderKL:
    """The network without weights; raises `UserError` for a configuration that MONAI refuses."""
    try:
        if description.kind == "AutoencoderKlMaisi":
            from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

            network: AutoencoderKL = AutoencoderKlMaisi(**description.config)
        else:
            network = AutoencoderKL(**description.config)
    except (TypeError, ValueError, ImportError) as error:  # ImportError: attention needs einops
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--autoencoder: MONAI's {description.kind} refuses the .json's config ({reason})."
        ) from None
    if description.channel_norm:
        per_voxel(network)
    return network


class Autoencoder(nn.Module):
    """Images in [-1, 1] to standardised latents and back; frozen.

    Args:
        network: MONAI's.
        description: Ranges and statistics.
        window: HU that -1 and 1 stand for here.
        digest: sha256 of weights and description.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: AutoencoderKL,
        description: AutoencoderConfig,
        window: tuple[float, float],
        digest: bytes = b"",
    ) -> None:
        super().__init__()
        self.network, self.digest = network.eval().requires_grad_(False), digest
        self.channels: int = network.latent_channels
        levels = description.config.get("channels") or description.config["num_channels"]
        self.factor = 2 ** (len(levels) - 1)
        self.window, self.own_window, self.range = (
            window,
            description.hu_window,
            description.input_range,
        )
        shape = (1, self.channels, 1, 1, 1)
        self.register_buffer(
            "mean", torch.tensor(description.mean or (0.0,) * self.channels).view(shape)
        )
        self.register_buffer(
            "std", torch.tensor(description.std or (1.0,) * self.channels).view(shape)
        )

    def encode(self, image: Tensor) -> Tensor:
        """`(B, 1, X, Y, Z)` in [-1, 1] to `(B, C, X/f, Y/f, Z/f)`: the means of the latents."""
        (low, high), (first, last) = self.own_window, self.range
        hu = (image + 1) / 2 * (self.window[1] - self.window[0]) + self.window[0]
        z, _ = self.network.encode(((hu - low) / (high - low)).clamp(0, 1) * (last - first) + first)
        return (z - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        """The way back."""
        (low, high), (first, last) = self.own_window, self.range
        hu = (self.network.decode(z * self.std + self.mean) - first) / (last - first) * (
            high - low
        ) + low
        return (hu - self.window[0]) / (self.window[1] - self.window[0]) * 2 - 1


def load_autoencoder(file: Path, window: tuple[float, float]) -> Autoencoder:
    """Reads weights and description; raises `UserError` for files that are missing, damaged or do
    not fit each other.
    """
    if not str(file) or str(file) == "." or not file.is_file():
        raise UserError(
            "--autoencoder is "
            f"{'not given' if str(file) == '.' else f'{file}, which is not there'}; --model "
            "latent_diffusion needs the file of weights that scripts/train_autoencoder.py wrote, "
            "or one of your own."
        )
    description = _describe(description_file(file))
    network = build(description)
    try:
        tensors = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, "cpu", weights_only=True)
        )
        tensors = tensors.get("state_dict", tensors)
        network.load_state_dict(tensors)
    except Exception as error:
        raise UserError(
            f"--autoencoder {file} does not hold the weights that its .json describes "
            f"({str(error).splitlines()[0][:200]}). Give the file and the .json that belong "
            "together."
        ) from None
    digest = hashlib.sha256(file.read_bytes() + description_file(file).read_bytes()).digest()
    return Autoencoder(network, description, window, digest)


def _describe(file: Path) -> AutoencoderConfig:
    values = read_json(file)
    known = {f.name for f in dataclasses.fields(AutoencoderConfig)}
    if not isinstance(values, dict) or not {"kind", "config"} <= set(values) <= known:
        raise UserError(
            f"--autoencoder: {file} must be an object with kind, config and at most these: "
            f"{', '.join(sorted(known))}. See docs/models.md."
        )
    if values["kind"] not in ("AutoencoderKL", "AutoencoderKlMaisi"):
        raise UserError(
            f"--autoencoder: {file} names the kind {values['kind']!r}; it must be AutoencoderKL or "
            "AutoencoderKlMaisi."
        )
    found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return AutoencoderConfig(**found)
