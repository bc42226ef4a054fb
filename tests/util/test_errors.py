"""Errors that a person can do something about are messages, and exit with code 2."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from util.cli import file_problem, is_out_of_memory, run_command


def raises(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def exit_code(command: Callable[[], object]) -> object:
    with pytest.raises(SystemExit) as raised:
        run_command(command)  # type: ignore[arg-type]
    return raised.value.code


def too_large_for_numpy() -> object:
    return np.zeros((2**20, 2**20, 2**15), np.uint8)


def too_large_for_torch() -> object:
    return torch.empty(2**45)


def too_large_network() -> object:
    return nn.Conv3d(2**31, 2**31, 3)


@pytest.mark.parametrize(
    "command",
    [
        too_large_for_numpy,
        too_large_for_torch,
        too_large_network,
        raises(MemoryError()),
        raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
        raises(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")),
    ],
)
def test_memory_that_runs_out_is_a_message(
    command: Callable[[], object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(command) == 2
    said = capsys.readouterr().err
    assert "There is not enough memory" in said and "smaller sizes" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/file"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        Exception("No space left on device (os error 28)"),
        RuntimeError("[enforce fail] PytorchStreamWriter failed: No space left on device"),
    ],
)
def test_a_full_disk_is_a_message_whoever_finds_it(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(raises(error)) == 2
    said = capsys.readouterr().err
    assert "No space left on device; make room, and run the command again" in said
    assert ("/disk/file cannot be used" in said) == isinstance(error, OSError)


def test_other_errors_are_not_hidden() -> None:
    for error in (ValueError("x"), RuntimeError("shapes differ"), OSError(errno.EIO, "broken")):
        assert not is_out_of_memory(error) and not file_problem(error)
        with pytest.raises(type(error)):
            run_command(raises(error))
    assert exit_code(raises(KeyboardInterrupt())) == 130
