"""A trained run that is ready to generate: mask and prompt in, volume out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.base_model import MODELS, GenerativeModel
from models.sliding_window import SlidingWindow
from models.text.base_encoder import TextEmbedding, TextEncoder
from models.text.encoders import build_text_encoder
from options.diffusion_options import SamplingOptions
from options.parser import from_dict
from options.train_options import TrainOptions
from util import seeding as noise
from util.cli import UserError
from util.training import checkpoint, runs

TEXT_PART = "text"  # what the encoder learned from the training prompts, in a checkpoint


@dataclass(frozen=True)
class VolumeGenerator:
    """Generates volumes; all arms of a case share one noise field, so that they differ in the text
    alone.

    Args:
        model: The kind of model, which knows how to generate.
        network: The generating network.
        encoder: The text encoder.
        window: The sliding window.
        device: Where the network is.
        seed: Seed of the noise.
    """

    model: GenerativeModel
    network: nn.Module
    encoder: TextEncoder
    window: SlidingWindow
    device: torch.device
    seed: int = 0

    def __call__(self, mask: Tensor, coords: Tensor, case: str, prompt: Sequence[str]) -> Tensor:
        """One volume.

        Args:
            mask: `(K, X, Y, Z)` one-hot.
            coords: `(3, X, Y, Z)` place in the whole volume.
            case: Name that decides the noise, together with the seed.
            prompt: The texts of its phrases.

        Returns:
            `(X, Y, Z)` in [-1, 1], float32, on the CPU.
        """
        field = noise.field(self.seed, case, (self.model.noise_channels, *mask.shape[1:]))
        mask, coords, field = self._moved(mask, coords, field)
        with self._generating(case):
            volume = self.model.generate(
                self.network, mask, coords, field, self._text(prompt), self.window
            )
        return volume[0, 0].float().cpu()

    def invert(
        self,
        image: Tensor,
        mask: Tensor,
        coords: Tensor,
        case: str,
        prompt: Sequence[str],
        strength: float,
    ) -> Tensor:
        """The state from which `regenerate` makes `image` `(1, X, Y, Z)` again, see
        `GenerativeModel.invert`.
        """
        image, mask, coords = self._moved(image, mask, coords)
        with self._generating(case):
            return self.model.invert(
                self.network, image, mask, coords, self._text(prompt), strength, self.window
            )

    def regenerate(
        self,
        state: Tensor,
        mask: Tensor,
        coords: Tensor,
        case: str,
        prompt: Sequence[str],
        strength: float,
    ) -> Tensor:
        """`(X, Y, Z)` in [-1, 1] from what `invert` gave."""
        mask, coords = self._moved(mask, coords)
        with self._generating(case):
            volume = self.model.regenerate(
                self.network, state, mask, coords, self._text(prompt), strength, self.window
            )
        return volume[0, 0].float().cpu()

    def _text(self, prompt: Sequence[str]) -> TextEmbedding:
        return self.encoder.encode([list(prompt)]).to(self.device)

    def _moved(self, *volumes: Tensor) -> list[Tensor]:
        return [v[None].to(self.device) for v in volumes]

    @contextmanager
    def _generating(self, case: str) -> Iterator[None]:
        """The network as it generates, without gradients; memory that runs out becomes a
        `UserError`.
        """
        training, tf32 = self.network.training, torch.backends.cudnn.allow_tf32
        self.network.eval()
        # TF32 keeps ten bits, about a HU near -860; a counterfactual is a difference of such
        # numbers.
        torch.backends.cudnn.allow_tf32 = False
        try:
            with torch.inference_mode():
                yield
        except torch.OutOfMemoryError:
            raise UserError(
                f"The GPU has not enough free memory to generate {case} in {self.window.batch} "
                f"tiles of {self.window.tile or 'the whole volume'} at once. Use --tile_batch 1, a "
                "smaller --tile, or --gpu_ids -1.",
            ) from None
        finally:
            self.network.train(training)
            torch.backends.cudnn.allow_tf32 = tf32


@dataclass(frozen=True)
class LoadedRun:
    """A run as read from its checkpoint."""

    folder: Path
    options: TrainOptions
    state: dict[str, Any]  # of the checkpoint: step, labels, columns, encoder
    generator: VolumeGenerator

    @property
    def labels(self) -> tuple[int, ...]:
        return tuple(self.state["labels"])


def load_run(
    folder: Path,
    which_epoch: str = "latest",
    *,
    device: torch.device,
    text_encoder: str = "",
    tile: Sequence[int] | None = None,
    overlap: float = 0.5,
    tile_batch: int = 4,
    use_average: bool = True,
    seed: int = 0,
    sampling: SamplingOptions | None = None,
) -> LoadedRun:
    """Rebuilds a run's network and text encoder from its folder.

    Args:
        folder: `checkpoints/RUN`.
        which_epoch: `latest` or an epoch's number.
        device: Where to generate.
        text_encoder: Where the text encoder lies now; empty for where it lay in training.
        tile: Voxels of a tile; None for the run's patch size, zeros for whole volumes.
        overlap: Overlap of tiles.
        tile_batch: Tiles at once.
        use_average: Use the moving average of the weights, where the run has one.
        seed: Seed of the noise.
        sampling: How a diffusion model samples, where not as the run says.

    Raises:
        UserError: No such run or checkpoint, damaged files, another architecture or text encoder.
    """
    options = from_dict(TrainOptions, runs.saved_options(folder), str(folder / runs.OPTIONS_FILE))
    place = checkpoint.find(folder / which_epoch)
    state = checkpoint.load_state(place)
    text = replace(options.text, text_encoder=text_encoder or options.text.text_encoder)
    encoder = build_text_encoder(text)
    encoder.check_identity(state["encoder"])
    encoder.attach_cache(folder)
    encoder.load_state(checkpoint.load_part(place, TEXT_PART), state["encoder_values"])
    model = MODELS[options.generator.model](
        options, len(state["labels"]), encoder.width, training=False
    )
    if sampling is not None:
        model.set_sampling(sampling)
    network = model.raw[model.ema_network]
    part = "average" if use_average and "average" in state["parts"] else model.ema_network
    checkpoint.load_network(network, place, part)
    network.to(device)
    size = options.patch.patch_size if tile is None else tuple(t for t in tile if t)
    window = SlidingWindow(size, model.size_multiple, overlap, tile_batch)
    return LoadedRun(
        folder, options, state, VolumeGenerator(model, network, encoder, window, device, seed)
    )
