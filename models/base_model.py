"""What a generative model offers to the trainer and to test.py; the trainer knows no GAN, no CT and
no text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from models.registry import Registry
from models.text.base_encoder import TextEmbedding
from options.diffusion_options import SamplingOptions
from options.train_options import TrainOptions
from util.cli import UserError

Batch = Mapping[str, Any]
# (network, loss, its terms by name): backward pass and optimiser step of that network; the terms
# are for messages.
Update = Callable[[str, Tensor, Mapping[str, Tensor]], None]
Tiler = Callable[
    ..., Tensor
]  # (function of tiles, whole tensors) -> whole tensor, see models/sliding_window.py

MODELS: Registry[type[GenerativeModel]] = Registry("--model")


class GenerativeModel(ABC):
    """Base of all models.

    `networks` are the trained ones by name. The trainer may replace them by wrapped ones (several
    processes, compiled); `raw` always holds the networks themselves.
    """

    networks: dict[str, nn.Module]
    raw: dict[str, nn.Module]
    ema_network: str  # the network that is averaged over steps, and generates
    size_multiple: int  # every side of a patch or tile is a multiple of this
    noise_channels: int

    @abstractmethod
    def __init__(
        self, options: TrainOptions, n_labels: int, text_width: int, training: bool = True
    ) -> None:
        """Builds the networks; K = `n_labels` channels of the one-hot mask, `training` for what
        only training needs.
        """

    @abstractmethod
    def param_groups(self) -> dict[str, list[dict[str, Any]]]:
        """Per network the optimiser's groups: `params`, `lr`, and `from_epoch` where learning
        starts later.
        """

    @abstractmethod
    def training_step(
        self, batch: Batch, text: TextEmbedding, other: TextEmbedding, update: Update
    ) -> dict[str, Tensor]:
        """One step.

        Args:
            batch: `image` `(B,1,X,Y,Z)`, `mask` `(B,K,X,Y,Z)`, `coords` `(B,3,X,Y,Z)`, `noise`
                `(B,N,X,Y,Z)`.
            text: Embedding of the batch's prompts.
            other: Embedding of other cases' prompts, that do not belong to the images.
            update: Called once a network with its loss and the terms of it.

        Returns:
            Loss terms by name, detached.
        """

    @abstractmethod
    def generate(
        self,
        network: nn.Module,
        mask: Tensor,
        coords: Tensor,
        noise: Tensor,
        text: TextEmbedding,
        tiler: Tiler,
    ) -> Tensor:
        """A whole volume `(1,1,X,Y,Z)` in [-1, 1], float32.

        Args:
            network: The generating network (its moving average, usually).
            mask: `(1,K,X,Y,Z)` one-hot; `coords`: `(1,3,X,Y,Z)`; `noise`: `(1,N,X,Y,Z)`.
            text: Embedding of one prompt.
            tiler: Runs a function of tiles over the volume.
        """

    def set_sampling(self, sampling: SamplingOptions) -> None:
        """Takes these settings of sampling for those of the run; raises `UserError` if they do not
        fit.
        """
        if sampling.given:
            raise UserError(
                f"{', '.join(sampling.given)}: the run is no diffusion model and generates in one "
                "step. Leave the flag out, or use a run of --model diffusion."
            )

    def check_editing(self) -> None:
        """Raises `UserError` where real scans cannot be edited; else there are `invert` and
        `regenerate`.
        """
        raise UserError(
            "--edit_real: the run is no diffusion model, so it cannot find the noise that gives a "
            "real scan. Use a run of --model diffusion or latent_diffusion."
        )

    def invert(
        self,
        network: nn.Module,
        image: Tensor,
        mask: Tensor,
        coords: Tensor,
        text: TextEmbedding,
        strength: float,
        tiler: Tiler,
    ) -> Tensor:
        """The state from which `regenerate` makes `image` `(1,1,X,Y,Z)` again, at the noise level
        `strength` (1: noise).
        """
        raise NotImplementedError

    def regenerate(
        self,
        network: nn.Module,
        state: Tensor,
        mask: Tensor,
        coords: Tensor,
        text: TextEmbedding,
        strength: float,
        tiler: Tiler,
    ) -> Tensor:
        """A whole volume `(1,1,X,Y,Z)` in [-1, 1] from what `invert` gave, with this text."""
        raise NotImplementedError
