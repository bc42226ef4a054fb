"""Small networks and random inputs for tests of networks, losses, trainer and sliding window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

from models.text.base_encoder import TextEmbedding
from options.train_options import (
    DiscriminatorOptions,
    GeneratorOptions,
    LossOptions,
    OptimOptions,
    TrainOptions,
)

LABELS, WIDTH, SIZE = 4, 6, (8, 8, 8)
UNITS = ("concat", "affine", "additive", "attention", "both")  # of fusion, that use the text

GENERATOR = GeneratorOptions(
    ngf=4, n_downsample_global=1, n_blocks_global=1, n_blocks_local=1, text_hidden=8
)
DISCRIMINATOR = DiscriminatorOptions(ndf=4, num_D=1, n_layers_D=1)


def train_options(**changes: Any) -> TrainOptions:
    """Options of a tiny network; each change goes to the group that has a flag of its name."""
    groups: dict[str, Any] = {
        "generator": GENERATOR,
        "discriminator": DISCRIMINATOR,
        "loss": LossOptions(),
        "optim": OptimOptions(batch_size=2, lr=1e-3, lr_D=1e-3),
    }
    for name, value in changes.items():
        group = next(g for g, options in groups.items() if hasattr(options, name))
        groups[group] = replace(groups[group], **{name: value})
    return TrainOptions(**groups)


def text(batch: int = 2, tokens: int = 3, seed: int = 0, width: int = WIDTH) -> TextEmbedding:
    """Random embeddings; the last prompt has one token less than the others."""
    values = torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed))
    valid = torch.ones(batch, tokens, dtype=torch.bool)
    valid[-1, -1] = False
    values = values * valid[..., None]
    return TextEmbedding(values, valid, values.sum(1))


def nothing_known(batch: int = 2) -> TextEmbedding:
    """Empty prompts."""
    return TextEmbedding(
        torch.zeros(batch, 1, WIDTH),
        torch.zeros(batch, 1, dtype=torch.bool),
        torch.zeros(batch, WIDTH),
    )


def batch(
    options: TrainOptions,
    count: int = 2,
    size: tuple[int, int, int] = SIZE,
    seed: int = 0,
    draws: int = 1,
) -> dict[str, Tensor]:
    """Random volumes, masks of all labels, coordinates, and noise for some draws."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, LABELS, (count, *size), generator=draw)
    image = torch.rand(count, 1, *size, generator=draw) * 2 - 1
    coords = torch.rand(count, 3, *size, generator=draw) * 2 - 1
    noise = torch.randn(count, draws * options.generator.noise_channels, *size, generator=draw)
    return {
        "image": image,
        "mask": torch.nn.functional.one_hot(labels, LABELS).movedim(-1, 1).float(),
        "coords": coords,
        "noise": noise,
        "draws": torch.rand(count, 4, generator=draw),
    }


def wake(network: nn.Module, std: float = 0.3) -> nn.Module:
    """Replace parameters that are zero by random values, as training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=std)
    return network


def i3resnet_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a small network in the names and the precision of the published file."""
    torch.manual_seed(seed)
    network = ResNet(
        "bottleneck",
        [1, 2, 1, 1],
        [2, 2, 4, 4],
        n_input_channels=3,
        conv1_t_size=(3, 7, 7),  # type: ignore[arg-type]
        conv1_t_stride=(1, 2, 2),  # type: ignore[arg-type]
        feed_forward=False,
        bias_downsample=False,
    )
    return {
        k: v.bfloat16() if v.is_floating_point() else v for k, v in network.state_dict().items()
    }
