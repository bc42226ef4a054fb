"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all; nothing loaded
can run code.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from util import __version__
from util.cli import UserError
from util.files import atomic_folder, previous_folder, read_json, sync, write_json

log = logging.getLogger(__name__)

STATE_FILE = "state.json"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
Tensors = Mapping[str, Tensor]


def save(folder: Path, parts: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
    """Writes a checkpoint; the one that was there stays until the new one is complete.

    Args:
        folder: Where it appears, such as `checkpoints/RUN/latest`.
        parts: Tensors by part (network, optimiser, average); each becomes `<part>.safetensors`.
        state: Plain values, for `state.json`.

    Raises:
        UserError: No space is left, or the folder cannot be written; the previous checkpoint is
            untouched.
    """
    try:
        with atomic_folder(folder) as temporary:
            for name, tensors in parts.items():
                # safetensors takes neither channels-last nor shared memory.
                plain = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
                path = temporary / f"{name}.safetensors"
                save_file(plain, path)
                sync(path)  # on the disk before the folder gets its name
            values = {**state, "parts": sorted(parts), "version": __version__}
            write_json(temporary / STATE_FILE, values)
    except (OSError, SafetensorError, UserError) as error:
        full = getattr(error, "errno", None) in NO_SPACE or any(
            os.strerror(code) in str(error) for code in NO_SPACE
        )
        reason = "no space is left on the disk" if full else str(error)
        raise UserError(
            f"Checkpoint {folder} could not be written: {reason}. The previous one is untouched; "
            "make room and resume with --continue_train."
        ) from None


def find(folder: Path) -> Path:
    """The checkpoint of that name, also when a save was killed between its two renames; `UserError`
    if there is none.
    """
    for place in (folder, previous_folder(folder)):
        if (place / STATE_FILE).is_file():
            return place
    there = sorted(p.name for p in folder.parent.glob("*") if (p / STATE_FILE).is_file())
    todo = (
        "Choose one of them by --which_epoch."
        if there
        else "Train the run, from its start by --overwrite."
    )
    raise UserError(
        f"{folder} holds no checkpoint. Checkpoints in {folder.parent}: "
        f"{', '.join(there) or 'none'}. {todo}"
    )


def load_state(folder: Path) -> dict[str, Any]:
    """The plain values of a checkpoint; raises `UserError` if the file is damaged or none of
    ours.
    """
    state = read_json(folder / STATE_FILE)
    if not isinstance(state, dict) or not {"step", "parts"} <= set(state):
        raise UserError(
            f"{folder / STATE_FILE} is damaged: it does not say what the checkpoint holds. Use "
            "another checkpoint (--which_epoch), or train again."
        )
    return state


def load_part(folder: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part; raises `UserError` if the file is missing or damaged."""
    path = folder / f"{part}.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing, so the checkpoint is not complete. Use another one "
            "(--which_epoch)."
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Use another checkpoint (--which_epoch), or train again."
        ) from None


def load_network(network: nn.Module, folder: Path, part: str, prefix: str = "") -> None:
    """Loads weights that must fit exactly (those below `prefix`); raises `UserError` that says what
    does not.
    """
    own = network.state_dict()
    tensors = {
        k.removeprefix(prefix): t
        for k, t in load_part(folder, part).items()
        if k.startswith(prefix)
    }
    missing, surplus = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    shapes = [
        f"{k} {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    if missing or surplus or shapes:
        problems = [
            f"missing {missing[0]} and {len(missing) - 1} more" if missing else "",
            f"not known {surplus[0]} and {len(surplus) - 1} more" if surplus else "",
            f"other shape {shapes[0]} and {len(shapes) - 1} more" if shapes else "",
        ]
        raise UserError(
            f"{folder / part}.safetensors is of another architecture "
            f"({'; '.join(p for p in problems if p)}). Use the options of the run that wrote it: "
            "they are in its options.json."
        )
    network.load_state_dict(tensors)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as tensors named `<parameter index>.<name>`."""
    return {
        f"{i}.{k}": torch.as_tensor(v)
        for i, s in optimizer.state_dict()["state"].items()
        for k, v in s.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, source: Path) -> None:
    """Puts back what `optimizer_tensors` took; raises `UserError` if it belongs to other
    parameters.
    """
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    shapes = {f"{i}.exp_avg": p.shape for i, p in enumerate(parameters)}
    if tensors and {k: t.shape for k, t in tensors.items() if k.endswith(".exp_avg")} != shapes:
        raise UserError(
            f"{source}: the optimiser's state belongs to another architecture. Start a new run."
        )
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if (
            tensor.shape == parameter.shape
        ):  # in the memory format of the parameter, which fused optimisers count on
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(
                tensor
            )
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
