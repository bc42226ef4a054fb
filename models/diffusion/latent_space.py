"""Spaces in which diffusion runs: the voxels, or the latents of an autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.autoencoder import Autoencoder, load_autoencoder
from models.networks.layers import halve_noise
from util.cli import UserError


class PixelSpace:
    """The voxels of the image.

    Attributes:
        channels: Channels C in which noise is added.
        factor: Voxels f of the image along one side of an element.
        sigma: SD of an element given mask and text, for residual preconditioning.
        sigma_data: The same for edm, which learns what differs from it.
    """

    channels: int = 1
    factor: int = 1
    sigma: float = 0.03
    sigma_data: float = 0.1

    def encode(self, image: Tensor) -> Tensor:
        """`(B, 1, X, Y, Z)` in [-1, 1] to `(B, C, X/f, Y/f, Z/f)`."""
        return image

    def decode(self, x: Tensor) -> Tensor:
        """`(B, C, X/f, Y/f, Z/f)` to `(B, 1, X, Y, Z)` in [-1, 1]."""
        return x

    def reduce(self, condition: Tensor) -> Tensor:
        """Return mask or coordinates `(B, K, X, Y, Z)` on the grid of `encode`."""
        return condition

    def noise(self, field: Tensor) -> Tensor:
        """Return standard normal noise `(B, C, X, Y, Z)` on the grid of `encode`."""
        return field

    def attach_fingerprint(self, network: nn.Module) -> None:
        """Make the network refuse checkpoints that were trained in another space."""


class Fingerprint(nn.Module):
    """Hash of a file, saved with a network's weights; weights with another hash are refused.

    Args:
        digest: sha256 of the file.
        file: The file, for the message.
    """

    sha256: Tensor

    def __init__(self, digest: bytes, file: Path) -> None:
        super().__init__()
        self.file = file
        sha256 = torch.frombuffer(bytearray(digest), dtype=torch.uint8).clone()
        self.register_buffer("sha256", sha256)
        self.register_load_state_dict_pre_hook(self._check)

    def _check(self, module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
        saved = state.get(f"{prefix}sha256")
        if saved is not None and not torch.equal(saved.cpu(), self.sha256.cpu()):
            expected = bytes(saved.tolist()).hex()[:12]
            actual = bytes(self.sha256.tolist()).hex()[:12]
            raise UserError(
                f"--autoencoder {self.file} is not the autoencoder that the run was trained with "
                f"(sha256 of that one: {expected}..., of this one: {actual}...). Give that one, or "
                "train a new run."
            )


class LatentSpace(PixelSpace):
    """The standardised latents of a frozen autoencoder.

    Args:
        file: Weights, with their .json beside them.
        window: HU window of the run.
    """

    sigma = 0.3
    sigma_data = 0.5

    def __init__(self, file: Path, window: tuple[float, float]) -> None:
        self.file = file
        self.autoencoder: Autoencoder = load_autoencoder(file, window)
        self.channels = self.autoencoder.channels
        self.factor = self.autoencoder.factor

    def encode(self, image: Tensor) -> Tensor:
        """`(B, 1, X, Y, Z)` in [-1, 1] to latents `(B, C, X/f, Y/f, Z/f)`, in float32."""
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            return self.autoencoder.to(image.device).encode(image.float())

    def decode(self, x: Tensor) -> Tensor:
        """Latents `(B, C, X/f, Y/f, Z/f)` to `(B, 1, X, Y, Z)`, in float32."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self.autoencoder.to(x.device).decode(x.float())

    def reduce(self, condition: Tensor) -> Tensor:
        """Return the mean of mask or coordinates over the voxels of each latent."""
        return F.avg_pool3d(condition, self.factor)

    def noise(self, field: Tensor) -> Tensor:
        """Return noise `(B, C, X/f, Y/f, Z/f)`, standard normal again."""
        for _ in range(self.factor.bit_length() - 1):
            field = halve_noise(field)
        return field

    def attach_fingerprint(self, network: nn.Module) -> None:
        """Save the hash of the autoencoder's files with the network's weights."""
        network.add_module("autoencoder", Fingerprint(self.autoencoder.digest, self.file))
