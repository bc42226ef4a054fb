"""Generation with a trained run: sample and prompt in, volume out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.base_model import MODELS, Condition, GenerativeModel
from models.sliding_window import SlidingWindow
from models.text.base_encoder import ENCODERS, TextEncoder
from models.text.encoders import build_text_encoder
from options.base_options import TextOptions
from options.diffusion_options import SamplingOptions
from options.parser import from_dict
from options.test_options import ModelOptions
from options.train_options import TrainOptions
from util import __version__, seeding
from util.cli import UserError, counted, is_out_of_memory
from util.files import json_digest
from util.training import checkpoint, runs
from util.training.devices import make_device
from util.training.shared_runs import is_shared
from util.volume_inputs import NoiseInput, VolumeInput, whole

log = logging.getLogger(__name__)

VARIANTS_AT_ONCE = 4  # prompts of a case whose volumes are generated together
TEXT_PART = "text"  # part of a checkpoint: what the encoder learned from the training prompts


# Entries of state.json without which a run can neither be continued nor generate.
RUN_ENTRIES = ("labels", "columns", "encoder", "encoder_values")


class Sample(Protocol):
    """A case to generate, such as `data.volume_dataset.VolumeSample`."""

    @property
    def name(self) -> str:
        """Decides the noise, together with the seed."""

    def mask_input(self, device: torch.device) -> VolumeInput:
        """Return one-hot labels `(1, K, X, Y, Z)`."""

    def coords_input(self, device: torch.device) -> VolumeInput:
        """Return the position in the whole volume `(1, 3, X, Y, Z)`, -1 to 1."""


@dataclass(frozen=True)
class VolumeGenerator:
    """Generation of whole volumes.

    All variants of a case share one noise field, so that they differ in the text alone.

    Args:
        model: The model, whose `inference_network` generates.
        device: The device of the network.
        seed: Seed of the noise.
    """

    model: GenerativeModel
    encoder: TextEncoder
    window: SlidingWindow
    device: torch.device
    seed: int = 0

    def __call__(self, sample: Sample, prompt: Sequence[str], noise_key: str = "") -> Tensor:
        """Generate one volume.

        Args:
            sample: Mask and coordinates.
            prompt: The texts of the prompt's phrases.
            noise_key: Decides the noise in place of the sample's name.

        Returns:
            `(X, Y, Z)` in [-1, 1], float32, on the CPU.
        """
        return self.variants(sample, [prompt], noise_key)[0]

    def variants(
        self, sample: Sample, prompts: Sequence[Sequence[str]], noise_key: str = ""
    ) -> list[Tensor]:
        """Generate a volume for each prompt, from the same noise.

        What the text does not change is computed once, and equal prompts are generated once.

        Args:
            sample: Mask and coordinates.
            prompts: The texts of the phrases of each prompt.
            noise_key: Decides the noise in place of the sample's name.

        Returns:
            `(X, Y, Z)` in [-1, 1] each, float32, on the CPU.
        """
        distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        volumes: dict[tuple[str, ...], Tensor] = {}
        for first in range(0, len(distinct), VARIANTS_AT_ONCE):
            some = distinct[first : first + VARIANTS_AT_ONCE]
            condition = self._condition(sample, some)
            noise = self._noise(noise_key or sample.name, condition.mask.shape[2:])
            with self._inference(sample.name):
                generated = self.model.generate_variants(condition, noise, self.window)
            volumes |= zip(some, generated[:, 0].float().cpu(), strict=True)
        return [volumes[tuple(prompt)] for prompt in prompts]

    def invert(
        self, image: Tensor, sample: Sample, prompt: Sequence[str], strength: float
    ) -> Tensor:
        """Return the state from which `regenerate` makes `image` `(1, X, Y, Z)` again."""
        condition = self._condition(sample, [prompt])
        with self._inference(sample.name):
            return self.model.invert(self._batched(image), condition, strength, self.window)

    def regenerate(
        self, state: Tensor, sample: Sample, prompt: Sequence[str], strength: float
    ) -> Tensor:
        """Generate `(X, Y, Z)` in [-1, 1] from a state of `invert`."""
        condition = self._condition(sample, [prompt])
        with self._inference(sample.name):
            volume = self.model.regenerate(state, condition, strength, self.window)
        return volume[0, 0].float().cpu()

    def _noise(self, name: str, size: Sequence[int]) -> Any:
        """Return the noise of a volume, `(1, N, X, Y, Z)`, as boxes where the model takes them."""
        channels = self.model.noise_channels
        if not self.model.options.generator.noise_by_place:
            generator = seeding.seeded_generator(self.seed, name)
            return self._batched(torch.randn(channels, *size, generator=generator))
        key = seeding.noise_key(self.seed, name)
        noise = NoiseInput(key, channels, size, self.device)
        return noise if self.model.boxed_inputs else whole(noise)

    def _condition(self, sample: Sample, prompts: Sequence[Sequence[str]]) -> Condition:
        text = self.encoder.encode([list(prompt) for prompt in prompts]).to(self.device)
        mask: Any = sample.mask_input(self.device)
        coords: Any = sample.coords_input(self.device)
        if not self.model.boxed_inputs:
            mask, coords = whole(mask), whole(coords)
        return Condition(mask, coords, text)

    def _batched(self, volume: Tensor) -> Tensor:
        return volume[None].to(self.device)

    @contextmanager
    def _inference(self, name: str) -> Iterator[None]:
        """Evaluation mode without gradients; memory that runs out becomes a `UserError`."""
        network = self.model.inference_network
        training, tf32 = network.training, torch.backends.cudnn.allow_tf32
        network.eval()
        # TF32 keeps ten bits, about a HU near -860; a counterfactual is a difference of such
        # numbers.
        torch.backends.cudnn.allow_tf32 = False
        try:
            with torch.inference_mode():
                yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"There is not enough memory ({self.device}) to generate {name} in "
                f"{counted(self.window.batch, 'tile')} of {self.window.tile or 'the whole volume'} "
                "at once. Use --tile_batch 1, a smaller --tile, or another device (--gpu_ids).",
            ) from None
        finally:
            network.train(training)
            torch.backends.cudnn.allow_tf32 = tf32


@dataclass(frozen=True)
class LoadedRun:
    """A run as read from its checkpoint.

    Attributes:
        folder: The run's folder.
        options: The options that it was trained with.
        state: Plain values of the checkpoint: step, labels, columns, encoder.
        generator: Generates with the run's network.
        text_encoder: Where its text encoder lies now, as `--text_encoder` takes it.
    """

    folder: Path
    options: TrainOptions
    state: dict[str, Any]
    generator: VolumeGenerator
    text_encoder: str

    @property
    def labels(self) -> tuple[int, ...]:
        """The mask labels of the run, background first."""
        return tuple(self.state["labels"])

    @property
    def digest(self) -> str:
        """Digest of the weights, which tells the run from another of its name and step."""
        return json_digest(self.state.get("sha256"))  # absent in runs of early versions

    @property
    def network(self) -> nn.Module:
        """The network that generates."""
        return self.generator.model.inference_network


def restore_encoder(encoder: TextEncoder, checkpoint_dir: Path, state: Mapping[str, Any]) -> None:
    """Restore what a text encoder learned from the training prompts of a run.

    Args:
        encoder: The encoder, already compared with that of the run.
        state: Its plain values.

    Raises:
        UserError: The encoder's values or tensors are damaged.
    """
    tensors = checkpoint.load_part(checkpoint_dir, TEXT_PART)
    try:
        encoder.load_state(tensors, state["encoder_values"])
    except (UserError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{checkpoint_dir / checkpoint.STATE_FILE} or {TEXT_PART}.safetensors beside it is "
            f"damaged: the text encoder cannot be restored ({error}). {checkpoint.REMEDY}"
        ) from None


def locate_text_encoder(options: TextOptions, folder: Path) -> TextOptions:
    """Return the text options of a run with the places where its encoder's files lie now.

    Relative paths are stored as given in training, so that they do not exist from another working
    folder. The encoder's identity is checked after loading.

    Args:
        options: The run's options.
        folder: The run's folder.
    """
    stored = options.text_encoder
    kind, _, file = stored.rpartition(":")  # such as medclip:FILE
    if stored not in ENCODERS and kind != "hub":
        located = _locate(file, folder)
        stored = f"{kind}:{located}" if kind else located
    bert = options.medclip_bert and _locate(options.medclip_bert, folder)
    return replace(options, text_encoder=stored, medclip_bert=bert)


def locate_shared_files(options: TrainOptions, folder: Path) -> TrainOptions:
    """Return the options of a run with the files that lie in its own folder, as a shared run has.

    Args:
        options: The run's options; a template or an autoencoder may be a file beside them.
        folder: The run's folder.
    """
    data, diffusion = options.data, options.diffusion
    if data.template and (folder / data.template).is_file():
        data = replace(data, template=str(folder / data.template))
    if diffusion.autoencoder and (folder / diffusion.autoencoder).is_file():
        diffusion = replace(diffusion, autoencoder=str(folder / diffusion.autoencoder))
    return replace(options, data=data, diffusion=diffusion)


def _locate(stored: str, folder: Path) -> str:
    """Return the first path that exists, else `stored`.

    Candidates are: the path below the run's folder, as a shared run has it; the stored path;
    `<run folder>.clip` and the same name beside a parent of the run folder, for a stored name that
    ends so; the stored path below each parent of the run folder.
    """
    path, folder = Path(stored), folder.resolve()
    if is_shared(str(folder)) and stored and (folder / path).exists():
        return str(folder / path)
    if path.exists():
        return stored
    candidates = []
    if path.suffix == ".clip":
        candidates += [folder.with_name(f"{folder.name}.clip")]
        candidates += [parent / path.name for parent in folder.parents]  # that of a refit's run
    if not path.is_absolute():
        candidates += [parent / path for parent in folder.parents]
    return next((str(candidate) for candidate in candidates if candidate.exists()), stored)


def load_run(
    model_options: ModelOptions,
    *,
    seed: int = 0,
    sampling: SamplingOptions | None = None,
    device: torch.device | None = None,
) -> LoadedRun:
    """Rebuild a run's network and text encoder from its folder.

    Args:
        model_options: The run, its checkpoint, and how it is tiled.
        seed: Seed of the noise.
        sampling: How a diffusion model samples, where not as the run says.
        device: Where to generate, instead of `model_options.gpu_ids`.

    Raises:
        UserError: No such run or checkpoint, damaged files, another architecture or text encoder.
    """
    folder = runs.find_run(model_options.checkpoints_dir, model_options.name)
    options = from_dict(TrainOptions, runs.read_options(folder), str(folder / runs.OPTIONS_FILE))
    options = locate_shared_files(options, folder)
    device = device or make_device(model_options.gpu_ids)
    checkpoint_dir = checkpoint.find(folder / model_options.which_epoch)
    state = checkpoint.load_state(checkpoint_dir, RUN_ENTRIES)
    is_old = _warn_of_version(folder, state.get("version"))
    text = locate_text_encoder(options.text, folder)
    if model_options.text_encoder:
        text = replace(text, text_encoder=model_options.text_encoder)
    encoder = build_text_encoder(text)
    encoder.check_identity(state["encoder"])
    if not is_shared(str(folder)):  # a shared folder keeps no texts of its users
        encoder.attach_cache(folder)
    restore_encoder(encoder, checkpoint_dir, state)
    model_class = MODELS[options.generator.model]
    model = model_class(options, len(state["labels"]), encoder.width, training=False)
    if sampling is not None:
        model.set_sampling(sampling)
    averaged = model_options.use_average and "average" in state["parts"]
    part = "average" if averaged else model.ema_network
    checkpoint.load_network(model.inference_network, checkpoint_dir, part)
    model.inference_network.to(device)
    tile = model_options.tile
    size = options.patch.patch_size if tile is None else tuple(t for t in tile if t)
    window = SlidingWindow(
        size,
        model.size_multiple,
        model_options.overlap,
        model_options.tile_batch,
        by_memory=tile is None and (model.exact_tiles or not is_old),
    )
    generator = VolumeGenerator(model, encoder, window, device, seed)
    return LoadedRun(folder, options, state, generator, text.text_encoder)


def _warn_of_version(folder: Path, version: str | None) -> bool:
    """Warn of a run of another minor version, and return whether it is one.

    Defaults and networks have changed since.
    """
    version = version or "0.1"  # whose checkpoints hold no version
    is_other = version.split(".")[:2] != __version__.split(".")[:2]
    if is_other:
        log.warning(
            "The run %s was trained by version %s, and this is version %s. It generates as that "
            "version did; train a new run for what has been added since, such as texture that "
            "follows the text.",
            folder.name,
            version,
            __version__,
        )
    return is_other
