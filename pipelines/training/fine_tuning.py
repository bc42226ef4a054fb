"""Training that starts from another run: its weights, with labels and text mapped to the new ones.

A tensor is copied where its shape is that of the source. Of the others, channels of the mask are
mapped by label and channels of the text by phrase; what the source does not know has weights of 0,
so that it has no effect until training gives it one. A text encoder of another kind leaves nothing
to map: all that the text enters by then starts anew, without effect.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.base_model import MODELS, GenerativeModel
from models.inference import RUN_ENTRIES, TEXT_PART, locate_shared_files, locate_text_encoder
from models.networks.fusion import Affine, FusionUnit
from models.networks.layers import NoiseInjection
from models.networks.places import PlaceEffect
from models.text.base_encoder import TextEncoder
from options.base_options import DataOptions
from options.parser import from_dict
from options.train_options import RunOptions, TrainOptions
from pipelines.training.coarse_to_fine import load_global_generator
from pipelines.training.study import Study
from util.cli import UserError, format_list
from util.training import checkpoint, runs
from util.volume_inputs import MAX_ONE_HOT

log = logging.getLogger(__name__)

Shapes = Mapping[str, torch.Size]
BODY = -1  # stands for the body's label, whatever its number


@dataclass(frozen=True)
class SourceRun:
    """The run that a training starts from.

    Attributes:
        checkpoint_dir: Its latest checkpoint.
        state: The checkpoint's plain values.
    """

    folder: Path
    options: TrainOptions
    checkpoint_dir: Path
    state: Mapping[str, Any]

    @classmethod
    def load(cls, name: str, checkpoints_dir: str) -> SourceRun:
        """Read a run by name or folder, or a shared one by its file or folder.

        Raises:
            UserError: There is no such run, or it is damaged.
        """
        try:
            folder = runs.find_source(checkpoints_dir, name)
            stored = runs.read_options(folder)
            options = from_dict(TrainOptions, stored, str(folder / runs.OPTIONS_FILE))
            place = checkpoint.find(folder / "latest")
            state = checkpoint.load_state(place, RUN_ENTRIES)
        except UserError as error:
            raise UserError(f"--init_from {name}: {error}") from None
        return cls(folder, locate_shared_files(options, folder), place, state)

    def start_options(self) -> TrainOptions:
        """Return the options that a new run starts with: the architecture and data of the source.

        Cohort, splits, names and the length of training are the new run's own.
        """
        own = DataOptions()
        cohort = [
            *("dataroot", "splits", "cache_dir", "permute", "resample", "fold", "paraphrases"),
            *("body_label", "text_columns", "key_column", "patient_column"),
        ]
        data = replace(self.options.data, **{name: getattr(own, name) for name in cohort})
        return replace(
            self.options,
            run=RunOptions(),
            data=data,
            text=locate_text_encoder(self.options.text, self.folder),
            optim=replace(self.options.optim, load_global="", niter_fix_global=0),
        )

    def adopt_text(self, encoder: TextEncoder) -> Tensor | None:
        """Let a fitted encoder continue what that of the source learned.

        Returns:
            `(C_old, C_new)`, which maps embeddings of the encoder to those of the source; None
            where the source has another encoder.
        """
        saved = self.state["encoder"]
        if not encoder.is_same(saved):
            log.warning(
                "The run %s was trained with another text encoder (%s), so all that the text "
                "enters by starts anew, without effect.",
                self.folder.name,
                saved.get("kind"),
            )
            return None
        tensors = checkpoint.load_part(self.checkpoint_dir, TEXT_PART)
        return encoder.adopt(tensors, self.state["encoder_values"])

    def load_weights(
        self, model: GenerativeModel, labels: Sequence[int], text: Tensor | None
    ) -> None:
        """Fill a model's networks with the weights of the source.

        Args:
            model: The new model.
            labels: Its labels, background first.
            text: The result of `adopt_text`.

        Raises:
            UserError: The architectures differ in more than labels and text.
        """
        parts = self.state["parts"]
        old_labels = self.state["labels"]
        bodies = self.options.data.body_number, model.options.data.body_number
        label_map = _label_map(old_labels, labels, bodies)
        width = 0 if text is None else len(text)
        for name, network in model.raw.items():
            averaged = name == model.ema_network and "average" in parts
            part = "average" if averaged else name
            if part not in parts:
                log.info("The source holds no network %s, which starts anew.", name)
                continue
            tensors = checkpoint.load_part(self.checkpoint_dir, part)
            roles = _roles(self.options, name, len(old_labels), width)
            offsets = {
                start.removeprefix(f"{name}."): first
                for start, first in model.label_offsets.items()
                if start.startswith(f"{name}.")
            }
            mapping = _Mapping(roles, label_map, offsets, text)
            self._load_network(name, network, tensors, mapping)

    def _load_network(
        self, name: str, network: nn.Module, tensors: Mapping[str, Tensor], mapping: _Mapping
    ) -> None:
        fresh = _text_modules(network, mapping.roles.text) if mapping.text is None else ()
        scaled = [
            f"{unit}."
            for unit, module in network.named_modules()
            if isinstance(module, Affine | NoiseInjection | PlaceEffect)
        ]
        state = network.state_dict()
        new: dict[str, Tensor] = {}
        for key, own in state.items():
            if key.startswith(tuple(fresh)) or key not in tensors:
                new[key] = own
                continue
            new[key] = mapping(key, tensors[key])
            is_scaled = key in mapping.roles.text and key.startswith(tuple(scaled))
            if is_scaled and mapping.text is not None:  # it divides by the root of the width
                old_width, width = mapping.text.shape
                new[key] = new[key] * (width / old_width) ** 0.5
        if set(tensors) - set(state) or set(state) - set(tensors):
            problems = checkpoint.weight_differences(state, tensors)
        else:
            problems = checkpoint.weight_differences(state, new)
        if problems:
            raise UserError(
                f"--init_from {self.folder.name}: its network {name} is of another architecture "
                f"({'; '.join(problems)}). Leave flags of the generator out, so that they are "
                "those of the source."
            )
        network.load_state_dict(new)


@dataclass(frozen=True)
class _Roles:
    """The dimension of each tensor that labels or text enter by, by its name."""

    labels: Mapping[str, int]
    text: Mapping[str, int]


@dataclass(frozen=True)
class _Mapping:
    """Maps tensors of the source to those of a new network.

    Attributes:
        roles: Dimensions that labels and text enter by.
        labels: `(K_old, K_new)`, 1 where two channels are the same label.
        offsets: First channel of the labels where it is not 0, by the beginning of names.
        text: `(C_old, C_new)`; None where no text is mapped.
    """

    roles: _Roles
    labels: Tensor
    offsets: Mapping[str, int]
    text: Tensor | None

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of the source for the new network."""
        if name in self.roles.labels:
            first = next((n for start, n in self.offsets.items() if name.startswith(start)), 0)
            tensor = self._map_labels(tensor, self.roles.labels[name], first)
        if name in self.roles.text and self.text is not None:
            tensor = _map_dimension(tensor, self.roles.text[name], self.text)
        return tensor.contiguous()

    def _map_labels(self, tensor: Tensor, dimension: int, first: int) -> Tensor:
        known = len(self.labels)
        rest = tensor.shape[dimension] - first - known
        before, labels, after = tensor.split([first, known, rest], dimension)
        return torch.cat([before, _map_dimension(labels, dimension, self.labels), after], dimension)


def _map_dimension(tensor: Tensor, dimension: int, matrix: Tensor) -> Tensor:
    """Return a tensor whose dimension of length n_old is multiplied by `(n_old, n_new)`."""
    moved = tensor.movedim(dimension, -1)
    return (moved @ matrix.to(moved.dtype)).movedim(-1, dimension)


def _label_map(
    old: Sequence[int], new: Sequence[int], bodies: tuple[int | None, int | None]
) -> Tensor:
    """Return `(K_old, K_new)`, 1 where two labels have the same number or are both the body.

    A body that is found in scans gets the next free label, which lesions move.

    Args:
        bodies: Labels of the old and the new body, if there are any.
    """
    if None not in bodies:
        old = [BODY if label == bodies[0] else label for label in old]
        new = [BODY if label == bodies[1] else label for label in new]
    unknown = [label for label in new if label not in old]
    if unknown:
        log.info("Labels that the source does not have start without effect: %s.", unknown)
    return torch.tensor([[float(a == b) for b in new] for a in old])


def _roles(options: TrainOptions, network: str, n_labels: int, text_width: int) -> _Roles:
    """Return which dimensions grow with the labels and with the text, by building networks.

    Args:
        options: Options of the source.
        network: Name of the network.
        n_labels: K of the source.
        text_width: C of the source; 0 for any.
    """
    width = text_width or 8
    base = _shapes(options, network, n_labels, width)
    # One label more than `MAX_ONE_HOT` would be another way for labels to enter.
    labels = n_labels - 1 if n_labels == MAX_ONE_HOT else n_labels + 1
    return _Roles(
        _changed(base, _shapes(options, network, labels, width)),
        _changed(base, _shapes(options, network, n_labels, width + 1)),
    )


def _shapes(options: TrainOptions, network: str, n_labels: int, width: int) -> Shapes:
    data = replace(options.data, body_label="none")  # decides no shape, as the loss does not
    loss = replace(options.loss, lambda_perceptual=0.0)
    plain = replace(options, data=data, loss=loss)
    with torch.device("meta"):
        model = MODELS[options.generator.model](plain, n_labels, width)
    return {name: tensor.shape for name, tensor in model.raw[network].state_dict().items()}


def _changed(base: Shapes, other: Shapes) -> dict[str, int]:
    """Return the dimension whose length differs, by tensor."""
    changed = {}
    for name, shape in base.items():
        differing = [d for d, (a, b) in enumerate(zip(shape, other[name], strict=True)) if a != b]
        if differing:
            changed[name] = differing[0]
    return changed


def _text_modules(network: nn.Module, text: Mapping[str, int]) -> list[str]:
    """Return the beginnings of the names of all that belongs to what the text enters by."""
    units = [name for name, m in network.named_modules() if isinstance(m, FusionUnit)]
    prefixes = []
    for tensor in text:
        owners = [unit for unit in units if tensor.startswith(f"{unit}.")]
        owner = min(owners, key=len) if owners else tensor.rpartition(".")[0]
        prefixes.append(f"{owner}.")
    return list(dict.fromkeys(prefixes))


def start_model(options: TrainOptions, study: Study, is_resumed: bool) -> GenerativeModel:
    """Build the model of a training, with the weights that it starts from.

    Args:
        options: The run's options.
        study: Its data; with `--init_from` the text encoder continues that of the source.
        is_resumed: Whether a checkpoint of the run itself will be loaded.

    Raises:
        UserError: The run to start from does not fit.
    """
    source, text = None, None
    if options.run.init_from and not is_resumed:
        source = SourceRun.load(options.run.init_from, options.run.checkpoints_dir)
        text = source.adopt_text(study.encoder)
    n_labels = len(study.cohort.labels)
    model = MODELS[options.generator.model](options, n_labels, study.encoder.width)
    if source is not None:
        source.load_weights(model, study.cohort.labels, text)
    if options.optim.load_global and not is_resumed:
        load_global_generator(options, model)
    freeze(model, options.run.freeze)
    return model


def freeze(model: GenerativeModel, parts: Sequence[str]) -> None:
    """Keep parts of a model as they are: their parameters get no gradient.

    Args:
        parts: Names as `--freeze` takes them.

    Raises:
        UserError: The model has no such part, or nothing is left to train.
    """
    if not parts:
        return
    known = model.named_parts()
    if unknown := [part for part in parts if part not in known]:
        raise UserError(
            f"--freeze {unknown[0]}: the model has the parts {format_list(list(known)) or 'none'}."
        )
    for part in parts:
        for parameter in known[part]:
            parameter.requires_grad_(False)
    trained = sum(p.numel() for p in model.raw["G"].parameters() if p.requires_grad)
    if not trained:
        raise UserError(f"--freeze {' '.join(parts)} leaves nothing to train. Freeze less.")
    log.info("%.3f M parameters of the generator are trained.", trained / 1e6)
