"""Files of network weights: one reader, in which nothing can run code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from util.cli import UserError, format_list

# Keys under which training programs store the weights; MAISI's call an autoencoder's by the last.
WRAPPERS = ("state_dict", "model", "net", "unet_state_dict")


def read_weights(file: Path, source: str) -> dict[str, Tensor]:
    """Read the tensors of a state dict by name, on the CPU.

    Args:
        file: A `.safetensors` file, or a file of `torch.save` with a state dict. The state dict
            may lie under one of `WRAPPERS`.
        source: The option and its value, which begin the messages.

    Raises:
        UserError: The file is missing, is damaged, or holds no tensors by name.
    """
    if not file.is_file():
        raise UserError(f"{source}: {file} is not there. Give the path of a file of weights.")
    try:
        if file.suffix == ".safetensors":
            content = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zipfile and safetensors each raise errors of theirs
        raise UserError(
            f"{source}: {file} cannot be read as weights ({_explain(error)}). Copy the file again, "
            "or save a plain state dictionary."
        ) from None
    return _unwrap(content, f"{source}: {file}")


def _explain(error: Exception) -> str:
    """Return why a file cannot be read, without torch's advice to read it as code."""
    text = " ".join(str(error).split())
    if match := re.search(r"Unsupported global: GLOBAL (\S+)", text):
        return f"beside tensors it holds objects that could run code, such as {match[1]}"
    if isinstance(error, pickle.UnpicklingError) or "zip archive" in text:
        return "it is damaged, or torch.save did not write it"
    return text[:160] or type(error).__name__


def _unwrap(content: object, source: str) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        wrapped = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if tensors and not wrapped:
            return tensors
        if not wrapped:
            keys = format_list([str(key) for key in content])
            raise UserError(
                f"{source} holds no weights by name; it holds: {keys}. Save the network's "
                "state_dict()."
            )
        content = wrapped[0]
    raise UserError(f"{source} holds no weights by name. Save the network's state_dict().")
