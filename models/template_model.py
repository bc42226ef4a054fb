"""A complete small generative model to copy.

To add a model:

1. Copy this file to `models/<name>_model.py` and rename the class and the registered name.
2. Replace the parts that are marked "Fill in".
3. Import the file in `models/__init__.py`.

Then `train.py --model <name>` trains it and `test.py` generates with it. New flags go to a group of
`options/train_options.py`. This file is not imported there, so that its model is not offered to
users. It predicts the mean volume of a mask and a text by squared error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base_model import (
    MODELS,
    Batch,
    BatchText,
    Condition,
    GenerativeModel,
    NetworkLoss,
    Tiler,
)
from models.networks.label_embedding import LabelEmbedding, make_label_embedding, mask_channels
from models.networks.layers import conv
from models.text.base_encoder import TextEmbedding
from options.train_options import TrainOptions


class TemplateNetwork(nn.Module):
    """Convolutions over mask, coordinates and noise; the pooled text shifts their features.

    Args:
        channels: Width of the features.
        n_inputs: Channels of mask, coordinates and noise together.
        text_width: C, channels of the text embedding.
        labels: Embeds masks of many labels; None where they are one-hot.
    """

    def __init__(
        self, channels: int, n_inputs: int, text_width: int, labels: LabelEmbedding | None = None
    ) -> None:
        super().__init__()
        self.labels = labels
        # The norm acts on the channels of one voxel, so that tiles of a volume agree.
        self.stem = conv(n_inputs, channels, "layer", "zeros")
        self.text = nn.Linear(text_width, channels)
        self.body = conv(channels, channels, "layer", "zeros")
        self.head = nn.Conv3d(channels, 1, 3, padding=1)
        nn.init.zeros_(self.text.weight)  # text changes nothing at first
        nn.init.zeros_(self.text.bias)

    def forward(self, mask: Tensor, coords: Tensor, noise: Tensor, text: TextEmbedding) -> Tensor:
        """Return a volume `(B,1,X,Y,Z)` in [-1, 1], float32.

        Args:
            mask: `(B,K,X,Y,Z)` one-hot.
            coords: `(B,3,X,Y,Z)` position in the whole volume, -1 to 1.
            noise: `(B,N,X,Y,Z)` standard normal.
            text: Embedding of B prompts.
        """
        mask = mask if self.labels is None else self.labels(mask)
        x = self.stem(torch.cat([mask, coords, noise], 1))
        x = self.body(x + self.text(text.pooled)[:, :, None, None, None])
        # bf16 resolves 2.7 HU near -860 HU, so the last step is taken in full precision.
        with torch.autocast(x.device.type, enabled=False):
            return torch.tanh(self.head(x.float()))


@MODELS.register("template")  # Fill in: the value of --model.
class TemplateModel(GenerativeModel):
    """Regression of the mean volume.

    Args:
        options: The run's options.
        n_labels: K, channels of the one-hot mask.
        text_width: C, channels of the text embedding.
        training: Whether to build what only training needs.
    """

    def __init__(
        self, options: TrainOptions, n_labels: int, text_width: int, training: bool = True
    ) -> None:
        self.options = options
        # Fill in: the network's total stride, and the channels of noise that it needs.
        self.size_multiple = 1
        self.noise_channels = 1
        # Fill in: the networks; those that only training needs only where `training` is true.
        n_inputs = mask_channels(n_labels) + 3 + self.noise_channels
        labels = make_label_embedding(n_labels, options.data.body_channel(n_labels))
        network = TemplateNetwork(options.generator.ngf, n_inputs, text_width, labels)
        self.ema_network = "G"
        self.raw = {"G": network}
        self.networks = dict(self.raw)
        self.inference_network = network

    def param_groups(self) -> dict[str, list[dict[str, Any]]]:
        parameters = list(self.raw["G"].parameters())
        return {"G": [{"params": parameters, "lr": self.options.optim.lr, "from_epoch": 0}]}

    def training_step(self, batch: Batch, text: BatchText) -> Iterator[NetworkLoss]:
        # Use `self.networks`, which the trainer may have wrapped.
        volume = self.networks["G"](batch["mask"], batch["coords"], batch["noise"], text.matched)
        loss = F.mse_loss(volume, batch["image"])
        # Fill in: yield once per network; the optimiser has stepped when the next line runs.
        yield NetworkLoss("G", loss, {"G_mse": loss})

    def generate(self, condition: Condition, noise: Tensor, tiler: Tiler) -> Tensor:
        def generate_tiles(mask: Tensor, coords: Tensor, noise: Tensor) -> Tensor:
            return self.inference_network(mask, coords, noise, condition.text.expand(len(mask)))

        return tiler(generate_tiles, condition.mask, condition.coords, noise)
