"""Checkpoints: a folder of safetensors and JSON that appears whole or not at all.

Nothing that is loaded can run code.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from util import __version__
from util.cli import UserError
from util.files import (
    atomic_folder,
    file_sha256,
    json_digest,
    plain_json,
    previous_folder,
    read_json,
    sync,
    write_json,
)
from util.schema import check_record

log = logging.getLogger(__name__)

STATE_FILE = "state.json"
# Entries of state.json that every model has; those that take None are lacking in older runs.
STATE_TYPES: dict[str, Any] = {
    "step": int,
    "parts": list[str],
    "sha256": dict[str, str] | None,
    "digest": str | None,
    "version": str | None,
    "scaler": dict[str, Any] | None,
    "labels": list[int] | None,
    "columns": list[str] | None,
    "encoder": dict[str, Any] | None,
    "encoder_values": dict[str, Any] | None,
    "weights": dict[str, float] | None,
    "data": dict[str, Any] | None,
}
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")  # of every parameter
REMEDY = "Use another checkpoint (--which_epoch), or train again."
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
Tensors = Mapping[str, Tensor]


def save(folder: Path, parts: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
    """Write a checkpoint; the previous one stays until the new one is complete.

    Args:
        folder: Folder of the checkpoint, such as `checkpoints/RUN/latest`.
        parts: Tensors by part (network, optimiser, average); each becomes `<part>.safetensors`.
        state: Plain values for `state.json`. It also holds the version of the project, unless
            `state` names that of a copied checkpoint, and the sha256 of every part and of itself.

    Raises:
        UserError: The disk is full or cannot be written; the previous checkpoint is untouched.
    """
    digests: dict[str, str] = {}
    try:
        with atomic_folder(folder) as temporary:
            for name, tensors in parts.items():
                # safetensors takes neither channels-last nor shared memory.
                plain = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
                path = temporary / f"{name}.safetensors"
                save_file(plain, path)
                sync(path)  # on the disk before the folder gets its name
                digests[name] = file_sha256(path)
            values = plain_json(
                {
                    **state,
                    "parts": sorted(parts),
                    "sha256": digests,
                    "version": state.get("version") or __version__,
                }
            )
            values["digest"] = json_digest(values)
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
    """Return the checkpoint of that name, also when a save was killed between its two renames.

    Raises:
        UserError: There is none; the message lists the others.
    """
    for place in (folder, previous_folder(folder)):
        if (place / STATE_FILE).is_file():
            return place
    names = sorted(p.name for p in folder.parent.glob("*") if (p / STATE_FILE).is_file())
    fix = (
        "Choose one of them by --which_epoch." if names else "Train it from the start: --overwrite."
    )
    raise UserError(
        f"{folder} holds no checkpoint. Checkpoints in {folder.parent}: "
        f"{', '.join(names) or 'none'}. {fix}"
    )


def load_state(folder: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the plain values of a checkpoint.

    Args:
        folder: Folder of the checkpoint.
        needed: Entries that must be there, beside `step` and `parts`.

    Raises:
        UserError: The file is damaged: an entry is missing or has another type, or the content is
            not that of its digest.
    """
    path = folder / STATE_FILE
    state = check_record(read_json(path), STATE_TYPES, path, REMEDY)
    if missing := [name for name in needed if state.get(name) is None]:
        raise UserError(f"{path} is damaged: {missing[0]} is missing. {REMEDY}")
    digest = state.pop("digest", None)  # lacking in checkpoints of 0.1
    if digest is not None and digest != json_digest(state):
        raise UserError(
            f"{path} is damaged: its content has changed since it was written. {REMEDY}"
        )
    if state["step"] < 0:
        raise UserError(f"{path} is damaged: step is {state['step']}. {REMEDY}")
    return state


def load_part(folder: Path, part: str) -> dict[str, Tensor]:
    """Return the tensors of one part.

    Raises:
        UserError: The file is missing or damaged; one flipped bit is found by its sha256.
    """
    path = folder / f"{part}.safetensors"
    expected = (load_state(folder).get("sha256") or {}).get(part)
    try:
        if expected is not None and file_sha256(path) != expected:
            raise UserError(
                f"{path} is damaged: its content has changed since it was written. {REMEDY}"
            )
        return load_file(path)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing, so the checkpoint is incomplete. Use another one (--which_epoch)."
        ) from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}). {REMEDY}") from None


def load_network(network: nn.Module, folder: Path, part: str, prefix: str = "") -> None:
    """Load weights that must fit exactly.

    Args:
        network: Network to fill.
        folder: Folder of the checkpoint.
        part: Part that holds the weights.
        prefix: Load only tensors whose names begin with this, without it.

    Raises:
        UserError: The weights belong to another architecture; the message names the differences.
    """
    tensors = {}
    for name, tensor in load_part(folder, part).items():
        if name.startswith(prefix):
            tensors[name.removeprefix(prefix)] = tensor
    problems = weight_differences(network.state_dict(), tensors)
    if problems:
        raise UserError(
            f"{folder / part}.safetensors is of another architecture ({'; '.join(problems)}). Use "
            "the options of the run that wrote it: they are in its options.json. Where they are "
            f"the same, a version with another network wrote it (this is {__version__}): use that "
            "one, or train the run again."
        )
    network.load_state_dict(tensors)


def weight_differences(expected: Tensors, tensors: Tensors) -> list[str]:
    """Return what is missing, not known, or of another shape, in words; empty where all fits."""
    missing = sorted(set(expected) - set(tensors))
    surplus = sorted(set(tensors) - set(expected))
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("not known", surplus), ("other shape", shapes))
    return [f"{kind} {names[0]} and {len(names) - 1} more" for kind, names in kinds if names]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as tensors named `<parameter index>.<name>`."""
    tensors = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"{index}.{name}"] = torch.as_tensor(value)
    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, source: Path) -> None:
    """Restore what `optimizer_tensors` returned; raise `UserError` for other parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    problem = UserError(
        f"{source}: the optimiser's state belongs to another architecture. Start a new run."
    )
    expected = {f"{i}.{name}" for i in range(len(parameters)) for name in ADAM_STATE}
    if tensors and set(tensors) != expected:
        raise problem
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".")
        parameter = parameters[int(index)]
        if name == "step" and tensor.numel() == 1:
            aligned = tensor
        elif tensor.shape == parameter.shape:
            # Fused optimisers count on the memory format of the parameter.
            aligned = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False)
            aligned.copy_(tensor)
        else:
            raise problem
        state.setdefault(int(index), {})[name] = aligned
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
