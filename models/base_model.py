"""The interface of a generative model: what the trainer and the generation of volumes use.

To add a model, copy `models/template_model.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.networks.fusion import FUSIONS
from models.registry import Registry
from models.text.base_encoder import TextEmbedding
from options.diffusion_options import SamplingOptions
from options.train_options import TrainOptions
from util.cli import UserError
from util.volume_inputs import VolumeInput

Batch = Mapping[str, Any]
# (function of tiles, whole tensors) -> whole tensor, see models/sliding_window.py
Tiler = Callable[..., Tensor]

MODELS: Registry[type[GenerativeModel]] = Registry("--model")


@dataclass(frozen=True)
class Condition:
    """What a whole volume is generated from.

    Mask and coordinates are tensors, or inputs of a model that `boxed_inputs`.

    Attributes:
        mask: `(1, K, X, Y, Z)` one-hot labels, background first.
        coords: `(1, 3, X, Y, Z)` position in the whole volume, -1 to 1.
        text: Embedding of one prompt.
    """

    mask: Any
    coords: Any
    text: TextEmbedding


@dataclass(frozen=True)
class BatchText:
    """Embeddings of a batch's prompts.

    Attributes:
        matched: The prompts of the batch's cases.
        mismatched: Prompts of other cases, which are wrong for the images.
    """

    matched: TextEmbedding
    mismatched: TextEmbedding


class NetworkLoss(NamedTuple):
    """The loss of one network, and its terms by name for the log."""

    network: str
    loss: Tensor
    terms: Mapping[str, Tensor]


class GenerativeModel(ABC):
    """Base class of all models.

    Attributes:
        options: The run's options.
        networks: The trained networks by name. The trainer replaces them by wrapped ones (several
            processes, compiled).
        raw: The networks themselves, never wrapped.
        ema_network: Name of the network that is averaged over steps, and generates.
        inference_network: The network that generates: `raw[ema_network]`, or its moving average.
        size_multiple: Every side of a patch or tile is a multiple of this.
        noise_channels: N, channels of the noise field.
        draws: P, noise fields of a training sample, from which as many volumes are drawn.
        boxed_inputs: Whether `generate_variants` takes inputs of which boxes are cut, instead of
            whole tensors.
        invertible: Whether `invert` finds the noise that gives a real scan.
        exact_tiles: Whether tiles with a halo have the values of the whole volume; those of other
            models overlap and are blended.
        label_offsets: First channel of the mask's labels in an input where it is not 0, by the
            beginning of the names of its weights, such as `G.stem`; the labels are consecutive.
    """

    networks: dict[str, nn.Module]
    raw: dict[str, nn.Module]
    ema_network: str
    inference_network: nn.Module
    size_multiple: int
    noise_channels: int
    draws: int = 1
    boxed_inputs: bool = False
    invertible: bool = False
    exact_tiles: bool = False
    label_offsets: Mapping[str, int] = MappingProxyType({})
    options: TrainOptions

    @abstractmethod
    def __init__(
        self, options: TrainOptions, n_labels: int, text_width: int, training: bool = True
    ) -> None:
        """Build the networks.

        Args:
            options: The run's options.
            n_labels: K, channels of the one-hot mask.
            text_width: C, channels of the text embedding.
            training: Whether to build what only training needs.
        """

    @classmethod
    def check_options(cls, options: TrainOptions) -> None:
        """Raise `UserError` for options that the networks cannot be built from.

        It finds what `options.checks` cannot know: names in registries, and files of weights.
        """
        _ = FUSIONS[options.generator.fusion]

    @abstractmethod
    def param_groups(self) -> dict[str, list[dict[str, Any]]]:
        """Return the optimiser's groups per network.

        Each has `params`, `lr`, and the epoch `from_epoch` in which learning starts.
        """

    @abstractmethod
    def training_step(self, batch: Batch, text: BatchText) -> Iterator[NetworkLoss]:
        """Yield one loss per network; the trainer steps its optimiser before the next is computed.

        Args:
            batch: `image` `(B,1,X,Y,Z)`, `mask` `(B,K,X,Y,Z)`, `coords` `(B,3,X,Y,Z)`, `noise`
                `(B,P N,X,Y,Z)`, `draws` `(B,4)`: uniform numbers for a diffusion model's time and
                dropout.
            text: Embeddings of the batch's prompts.
        """

    @abstractmethod
    def generate(self, condition: Condition, noise: Tensor, tiler: Tiler) -> Tensor:
        """Generate a whole volume `(1,1,X,Y,Z)` in [-1, 1], float32.

        Args:
            condition: Mask, coordinates and text.
            noise: `(1,N,X,Y,Z)` standard normal.
            tiler: Runs a function of tiles over the volume.
        """

    def generate_variants(
        self, condition: Condition, noise: Tensor | VolumeInput, tiler: Tiler
    ) -> Tensor:
        """Generate a volume per prompt of `condition.text`, `(A,1,X,Y,Z)`, from the same noise."""
        assert isinstance(noise, Tensor)
        volumes = []
        for number in range(len(condition.text.pooled)):
            text = condition.text.select(number)
            volumes.append(self.generate(replace(condition, text=text), noise, tiler))
        return torch.cat(volumes)

    def named_parts(self) -> dict[str, list[nn.Parameter]]:
        """Return the parts that a fine-tuning can leave as they are, with their parameters."""
        return {}

    def set_sampling(self, sampling: SamplingOptions) -> None:
        """Replace the run's settings of sampling; raises `UserError` if they do not fit."""
        if sampling.set_flags:
            raise UserError(
                f"{', '.join(sampling.set_flags)}: the run is not a diffusion model and generates "
                "in one step. Leave the flag out, or use a run of --model diffusion."
            )

    def check_inversion(self) -> None:
        """Raise `UserError` unless the model can `invert` and `regenerate` real scans."""
        raise UserError(
            "The run is not a diffusion model, so it cannot find the noise that gives a real scan. "
            "Use --how residual, which adds the difference of two generated volumes to the scan, "
            "or a run of --model diffusion or latent_diffusion."
        )

    def invert(self, image: Tensor, condition: Condition, strength: float, tiler: Tiler) -> Tensor:
        """Return the state from which `regenerate` makes `image` `(1,1,X,Y,Z)` again.

        Args:
            image: A volume in [-1, 1].
            condition: Its mask, coordinates and text.
            strength: Noise level of the state; 1 is pure noise.
            tiler: Runs a function of tiles over the volume.
        """
        raise NotImplementedError

    def regenerate(
        self, state: Tensor, condition: Condition, strength: float, tiler: Tiler
    ) -> Tensor:
        """Generate a whole volume `(1,1,X,Y,Z)` in [-1, 1] from a state of `invert`."""
        raise NotImplementedError
