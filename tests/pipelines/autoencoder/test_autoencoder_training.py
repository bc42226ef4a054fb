"""What an autoencoder learns and is measured by, whatever the masks hold."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from models.networks.autoencoder import AutoencoderConfig
from options.autoencoder_options import AutoencoderOptions
from pipelines.autoencoder.training import autoencoder_loss, evaluate_autoencoder
from util.volume_inputs import mask_input

SIZE = (1, 1, 4, 4, 4)


class Half(nn.Module):
    """An autoencoder of one latent per voxel that returns half of every value."""

    latent_channels = 1

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return image, torch.ones_like(image)

    def decode(self, z: Tensor) -> Tensor:
        return z / 2

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return image / 2, torch.zeros_like(image), torch.ones_like(image)


@pytest.mark.parametrize("n_labels", [5, 40])
def test_labelled_voxels_weigh_more_and_are_measured(n_labels: int) -> None:
    """Masks of many labels enter networks as numbers, not as one-hot channels."""
    network = cast(AutoencoderKL, Half())
    image = torch.full(SIZE, 0.2)
    image[..., 0] = 0.8
    channels = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    channels[..., 0] = n_labels - 1
    mask = mask_input(channels, n_labels)
    options = AutoencoderOptions("x.safetensors", label_weight=3.0)
    loss = autoencoder_loss(network, image, mask, options)
    torch.testing.assert_close(loss, torch.tensor((3 * 0.4 + 3 * 0.1) / 4))

    config: dict[str, Any] = {"channels": [8]}
    _, error_hu = evaluate_autoencoder(
        network,
        AutoencoderConfig("AutoencoderKL", config),
        (-1000.0, 400.0),
        iter([{"image": image, "mask": mask}]),
        torch.device("cpu"),
    )
    assert error_hu == pytest.approx(0.4 * 700)
