"""Where diffusion happens: on the voxels themselves, or on the latents of an autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.autoencoder import Autoencoder, load_autoencoder
from models.networks.layers import halve_noise
from util.cli import UserError


class PixelSpace:
    """The image itself.

    `channels`, `factor`: channels of what is noised, and voxels of the image along one of its
    sides.
    `sigma`: SD of what mask and text leave open.
    """

    channels, factor, sigma = 1, 1, 0.03

    def encode(self, image: Tensor) -> Tensor:
        """`(B, 1, X, Y, Z)` in [-1, 1] as `(B, channels, X/factor, ...)`."""
        return image

    def decode(self, x: Tensor) -> Tensor:
        """The way back."""
        return x

    def reduce(self, condition: Tensor) -> Tensor:
        """Mask or coordinates on the grid of `encode`."""
        return condition

    def noise(self, field: Tensor) -> Tensor:
        """Standard normal noise `(B, channels, X, Y, Z)` on the grid of `encode`, standard normal
        again.
        """
        return field

    def attach_fingerprint(self, network: nn.Module) -> None:
        """Makes the network's checkpoints refuse another space."""


class Fingerprint(nn.Module):
    """Travels with a network's weights and refuses those that were trained with another file."""

    sha256: Tensor

    def __init__(self, digest: bytes, file: Path) -> None:
        super().__init__()
        self.file = file
        self.register_buffer(
            "sha256", torch.frombuffer(bytearray(digest), dtype=torch.uint8).clone()
        )
        self.register_load_state_dict_pre_hook(self._check)

    def _check(self, module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
        saved = state.get(f"{prefix}sha256")
        if saved is not None and not torch.equal(saved.cpu(), self.sha256.cpu()):
            raise UserError(
                f"--autoencoder {self.file} is not the autoencoder that the run was trained with "
                f"(its sha256 begins with {bytes(saved.tolist()).hex()[:12]}, this one's with "
                f"{bytes(self.sha256.tolist()).hex()[:12]}). Give that one, or train a new run."
            )


class LatentSpace(PixelSpace):
    """The latents of a frozen autoencoder, standardised.

    Args:
        file: Weights, with their .json beside them.
        window: The run's HU window, which must be the autoencoder's.
    """

    sigma = 0.3

    def __init__(self, file: Path, window: tuple[float, float]) -> None:
        self.file = file
        self.autoencoder: Autoencoder = load_autoencoder(file, window)
        self.channels, self.factor = self.autoencoder.channels, self.autoencoder.factor

    def encode(self, image: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            return self.autoencoder.to(image.device).encode(image.float())

    def decode(self, x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self.autoencoder.to(x.device).decode(x.float())

    def reduce(self, condition: Tensor) -> Tensor:
        return F.avg_pool3d(condition, self.factor)

    def noise(self, field: Tensor) -> Tensor:
        for _ in range(self.factor.bit_length() - 1):
            field = halve_noise(field)
        return field

    def attach_fingerprint(self, network: nn.Module) -> None:
        network.add_module("autoencoder", Fingerprint(self.autoencoder.digest, self.file))
