"""Autoencoder of latent diffusion: MONAI's AutoencoderKL or MAISI's, with a .json beside it."""

from __future__ import annotations

import hashlib
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from models.networks.layers import ChannelNorm
from models.weights import read_weights
from util.cli import UserError, counted, is_out_of_memory
from util.files import read_json
from util.schema import fits, misfit

if TYPE_CHECKING:  # slow to import, and needed by few
    from monai.networks.nets import AutoencoderKL

REPLACED_NORMS = (nn.GroupNorm, nn.InstanceNorm3d)
GUIDE = "docs/howto/diffusion.md"
# A network of more channels or blocks cannot be built; a damaged number must not ask for memory.
MAX_ARGUMENT = 8192


@dataclass(frozen=True)
class AutoencoderConfig:
    """Content of the .json beside the weights.

    Attributes:
        kind: Class of the network, MONAI's AutoencoderKL or AutoencoderKlMaisi.
        config: Arguments of its constructor.
        hu_window: HU window that it was trained on.
        input_range: Inputs that stand for the ends of `hu_window`.
        channel_norm: Whether its group norms are replaced by norms over the channels of each voxel,
            so that tiles agree.
        mean: Mean of each latent channel, for standardisation; empty for 0.
        std: SD of each latent channel; empty for 1.
    """

    kind: Literal["AutoencoderKL", "AutoencoderKlMaisi"]
    config: dict[str, Any]
    hu_window: tuple[float, float] = (-1000.0, 400.0)
    input_range: tuple[float, float] = (-1.0, 1.0)
    channel_norm: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def config_file(weights: Path) -> Path:
    """Return the path of the .json beside the weights."""
    return weights.with_suffix(".json")


def use_channel_norms(network: nn.Module) -> None:
    """Replace every group norm of a network by a norm over the channels of each voxel."""
    for name, child in network.named_children():
        if isinstance(child, REPLACED_NORMS):
            channels = child.num_channels if isinstance(child, nn.GroupNorm) else child.num_features
            setattr(network, name, ChannelNorm(channels))
        else:
            use_channel_norms(child)


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """Build the network with random weights.

    Raises:
        UserError: MONAI refuses the arguments.
    """
    try:
        if config.kind == "AutoencoderKlMaisi":
            from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

            network: AutoencoderKL = AutoencoderKlMaisi(**config.config)
        else:
            from monai.networks import nets

            network = nets.AutoencoderKL(**config.config)
    except MemoryError:
        raise
    except Exception as error:  # MONAI checks few arguments, so that almost any error is possible
        if is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--autoencoder: MONAI's {config.kind} refuses the .json's config ({reason})."
        ) from None
    if config.channel_norm:
        use_channel_norms(network)
    return network


class Autoencoder(nn.Module):
    """Images in [-1, 1] to standardised latents and back; frozen.

    Args:
        network: MONAI's network.
        config: Ranges and statistics.
        window: HU that -1 and 1 stand for in the images.
        digest: sha256 of weights and config.

    Attributes:
        channels: Channels C of the latents.
        factor: Voxels f of the image along one side of a latent.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: AutoencoderKL,
        config: AutoencoderConfig,
        window: tuple[float, float],
        digest: bytes = b"",
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.digest = digest
        self.channels: int = network.latent_channels
        levels = config.config.get("channels") or config.config["num_channels"]
        self.factor = 2 ** (len(levels) - 1)
        self.window = window
        self.trained_window = config.hu_window
        self.input_range = config.input_range
        shape = (1, self.channels, 1, 1, 1)
        mean = torch.tensor(config.mean or (0.0,) * self.channels)
        std = torch.tensor(config.std or (1.0,) * self.channels)
        self.register_buffer("mean", mean.view(shape))
        self.register_buffer("std", std.view(shape))

    def encode(self, image: Tensor) -> Tensor:
        """`(B, 1, X, Y, Z)` in [-1, 1] to `(B, C, X/f, Y/f, Z/f)`, the means of the latents."""
        low, high = self.trained_window
        first, last = self.input_range
        hu = (image + 1) / 2 * (self.window[1] - self.window[0]) + self.window[0]
        z, _ = self.network.encode(((hu - low) / (high - low)).clamp(0, 1) * (last - first) + first)
        return (z - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        """`(B, C, X/f, Y/f, Z/f)` to `(B, 1, X, Y, Z)`."""
        low, high = self.trained_window
        first, last = self.input_range
        image = self.network.decode(z * self.std + self.mean)
        hu = (image - first) / (last - first) * (high - low) + low
        return (hu - self.window[0]) / (self.window[1] - self.window[0]) * 2 - 1


def load_autoencoder(file: Path, window: tuple[float, float]) -> Autoencoder:
    """Load weights and config.

    Args:
        file: The weights, with the .json beside them.
        window: HU that -1 and 1 stand for in the images.

    Raises:
        UserError: Files that are missing, are damaged or do not belong together.
    """
    if file == Path() or not file.is_file():
        problem = "not given" if file == Path() else f"{file}, which is not there"
        raise UserError(
            f"--autoencoder is {problem}; --model latent_diffusion needs the file of weights that "
            "scripts/train_autoencoder.py wrote, or one of your own."
        )
    config = _read_config(config_file(file))
    network = build_autoencoder(config)
    if problem := _range_problem(config, network):
        raise UserError(
            f"--autoencoder: {config_file(file)} is damaged: {problem}. Restore it from a copy; "
            f"see {GUIDE}."
        )
    try:
        network.load_state_dict(read_weights(file, "--autoencoder"))
    except RuntimeError as error:
        raise UserError(
            f"--autoencoder {file} does not hold the weights that its .json describes "
            f"({str(error).splitlines()[0][:200]}). Give the file and the .json that belong "
            "together."
        ) from None
    digest = hashlib.sha256(file.read_bytes() + config_file(file).read_bytes()).digest()
    return Autoencoder(network, config, window, digest)


def _range_problem(config: AutoencoderConfig, network: AutoencoderKL) -> str:
    """Return which number of a config cannot be right, in words, or ""."""
    for name in ("hu_window", "input_range"):
        low, high = getattr(config, name)
        if not low < high or math.isinf(high - low):
            return f"{name} is {low:g},{high:g}; the first must be below the second"
    channels = network.latent_channels
    for name in ("mean", "std"):
        values = getattr(config, name)
        if values and (len(values) != channels or not all(map(math.isfinite, values))):
            return f"{name} must hold {counted(channels, 'number')}, one for each latent channel"
    if any(sd <= 0 for sd in config.std):
        return "std must hold numbers above 0"
    levels = config.config.get("channels") or config.config.get("num_channels")
    if not fits(levels, list[int]) or config.config.get("in_channels", 1) != 1:
        return "config must name the channels of each resolution, and one channel of the input"
    return ""


def _largest_number(value: Any) -> float:
    """Return the largest number in nested plain values; 0 where there is none."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return max(map(_largest_number, value), default=0)
    return value if isinstance(value, int | float) else 0


def _read_config(file: Path) -> AutoencoderConfig:
    values = read_json(file)
    hints = typing.get_type_hints(AutoencoderConfig)
    known = set(hints)
    if not isinstance(values, dict) or not {"kind", "config"} <= set(values) <= known:
        raise UserError(
            f"--autoencoder: {file} must be an object with kind, config and at most these: "
            f"{', '.join(sorted(known))}. See {GUIDE}."
        )
    if values["kind"] not in ("AutoencoderKL", "AutoencoderKlMaisi"):
        raise UserError(
            f"--autoencoder: {file} names the kind {values['kind']!r}; it must be AutoencoderKL or "
            f"AutoencoderKlMaisi. See {GUIDE}."
        )
    if problem := misfit(values, {name: hints[name] for name in values}):
        raise UserError(f"--autoencoder: {file} is damaged: {problem}. See {GUIDE}.")
    if (largest := _largest_number(values["config"])) > MAX_ARGUMENT:
        raise UserError(
            f"--autoencoder: {file} is damaged: config holds the number {largest:.4g}, and no "
            f"argument of the network is above {MAX_ARGUMENT}. See {GUIDE}."
        )
    arguments: dict[str, Any] = dict(values)
    for name, value in arguments.items():
        if isinstance(value, list):
            arguments[name] = tuple(value)
    return AutoencoderConfig(**arguments)
