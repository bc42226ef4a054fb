"""Masks of many labels enter as a few learned channels; those of few stay one-hot."""

from __future__ import annotations

import pytest
import torch

from models.networks.condition import organ_region
from models.networks.discriminator import MultiScaleDiscriminator
from models.networks.generator import Generator
from models.networks.label_embedding import (
    EMBEDDED_CHANNELS,
    LabelEmbedding,
    make_label_embedding,
    mask_channels,
)
from models.text.base_encoder import TextEmbedding
from options.train_options import DiscriminatorOptions, GeneratorOptions
from util.volume_inputs import LabelInput, mask_input, one_hot

MANY = 133
SIZE = (8, 8, 8)


def numbers() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, MANY, (1, *SIZE), generator=generator).to(torch.uint8)


def test_few_labels_stay_one_hot() -> None:
    channels = numbers() % 16
    assert torch.equal(mask_input(channels, 16), one_hot(channels, 16))
    assert mask_channels(16) == 16 and make_label_embedding(16, None) is None
    network = Generator(GeneratorOptions(ngf=4, n_blocks_global=1), 5, 8)
    assert not any(name.startswith("labels") for name in network.state_dict())


@pytest.mark.parametrize("body", [None, MANY - 1])
def test_background_and_body_keep_channels_of_their_own(body: int | None) -> None:
    mask = mask_input(numbers(), MANY)
    assert mask.shape == (1, 1, *SIZE)
    embedded = LabelEmbedding(MANY, body)(mask)
    assert embedded.shape == (1, EMBEDDED_CHANNELS, *SIZE)
    channel = None if body is None else EMBEDDED_CHANNELS - 1
    assert torch.equal(organ_region(embedded, channel), organ_region(mask, body))
    other = mask[0, 0] == 7
    vectors = embedded[0][:, other]
    assert vectors.shape[1] > 1 and torch.equal(vectors, vectors[:, :1].expand_as(vectors))


def test_boxes_of_a_mask_are_those_of_the_whole() -> None:
    channels = numbers()[0]
    source = LabelInput(channels, MANY, torch.device("cpu"))
    assert source.shape == (1, 1, *SIZE)
    box = source.box((2, 0, 4), (4, 8, 4))
    assert torch.equal(box[0, 0], channels[2:6, :, 4:].float())


def test_networks_learn_the_vectors() -> None:
    torch.manual_seed(0)
    options = GeneratorOptions(ngf=4, n_blocks_global=1, n_downsample_global=1)
    network = Generator(options, MANY, 8, MANY - 1)
    text = TextEmbedding(
        torch.randn(1, 2, 8), torch.ones(1, 2, dtype=torch.bool), torch.randn(1, 8)
    )
    mask = mask_input(numbers(), MANY)
    coords, noise = torch.randn(1, 3, *SIZE), torch.randn(1, 4, *SIZE)
    volume = network(mask, coords, noise, text)
    assert volume.shape == (1, 1, *SIZE)
    labels = make_label_embedding(MANY, MANY - 1)
    channels = EMBEDDED_CHANNELS + 3
    judge = MultiScaleDiscriminator(
        DiscriminatorOptions(ndf=4, n_layers_D=1, num_D=1), channels, 8, labels
    )
    outputs, _ = judge(volume, torch.cat([mask, coords], 1), text.pooled)
    outputs[0].scores.mean().backward()
    assert network.labels is not None and labels is not None
    for vectors in (network.labels.vectors, labels.vectors):
        assert vectors.grad is not None and vectors.grad.abs().sum() > 0
