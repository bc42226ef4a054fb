"""What an autoencoder learns and is measured by, whatever the masks hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from data.load_cohort import load_cohort
from data.volumes import load_volume, write_like
from models.networks.autoencoder import AutoencoderConfig
from options.autoencoder_options import AutoencoderOptions
from options.base_options import DataOptions, PatchOptions
from pipelines.autoencoder.training import (
    BatchPlan,
    autoencoder_loss,
    evaluate_autoencoder,
    load_batches,
)
from util.volume_inputs import MAX_ONE_HOT

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


def test_organs_weigh_more_and_are_measured() -> None:
    network = cast(AutoencoderKL, Half())
    image, organs = torch.full(SIZE, 0.2), torch.zeros(SIZE)
    image[..., 0], organs[..., 0] = 0.8, 1
    options = AutoencoderOptions("x.safetensors", label_weight=3.0)
    loss = autoencoder_loss(network, image, organs, options)
    torch.testing.assert_close(loss, torch.tensor((3 * 0.4 + 3 * 0.1) / 4))

    config: dict[str, Any] = {"channels": [8]}
    _, error_hu = evaluate_autoencoder(
        network,
        AutoencoderConfig("AutoencoderKL", config),
        (-1000.0, 400.0),
        iter([{"image": image, "organs": organs}]),
        torch.device("cpu"),
    )
    assert error_hu == pytest.approx(0.4 * 700)


def test_organs_are_those_of_masks_with_few_labels_and_with_many(
    cohort_copy: Path, tmp_path: Path
) -> None:
    """Masks of many labels enter networks as numbers; the body around organs is none."""
    few = DataOptions(dataroot=str(cohort_copy))
    parts = tuple(range(10, 30))
    many = replace(few, lung_labels=parts)
    patch = PatchOptions(patch_size=(16, 16, 8))
    found = []
    for data in (few, many):
        if data is many:
            for path in (cohort_copy / "gtlung").iterdir():
                labels = load_volume(path).array
                stripes = 10 + np.indices(labels.shape)[0] % len(parts)
                split = np.where(np.isin(labels, few.lung_labels), stripes, labels)
                write_like(path, split, path, np.uint8)
        cohort = load_cohort(data)
        assert cohort.body_label is not None and (len(cohort.labels) > MAX_ONE_HOT) is (
            data is many
        )
        plan = BatchPlan(data, patch, steps=3, batch_size=2, seed=0)
        cache = tmp_path / str(len(cohort.labels))
        found.append([*load_batches(plan, cohort, cache, torch.device("cpu"))])
    density = [batch["image"][batch["organs"] > 0] for batch in found[0]]
    assert float(torch.cat(density).lt(-0.2).float().mean()) > 0.7  # lung and air, not the body
    for one, other in zip(*found, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["organs"], other["organs"])
