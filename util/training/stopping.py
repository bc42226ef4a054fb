"""Signals that end a training: Ctrl-C, SIGTERM of a batch system, SIGHUP of a closed terminal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopNow(KeyboardInterrupt):
    """A signal arrived while work was done that may be abandoned."""


class StopSignals:
    """Handlers of the signals that end a training.

    The first signal is noted, and raises `StopNow` inside `interruptible`. A second Ctrl-C raises
    KeyboardInterrupt at once. A signal that is ignored, as SIGHUP is under `nohup`, stays ignored.

    Args:
        received: A signal that was received before.
    """

    def __init__(self, received: int | None = None) -> None:
        self.received = received
        self.may_interrupt = False
        self._before: dict[int, Any] = {}
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = number
        if self.may_interrupt:
            raise StopNow

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end the block with `StopNow`; one that was received before, too.

        The block may end this by `may_interrupt = False`, from where on its work is completed.
        """
        try:
            self.may_interrupt = True
            if self.received is not None:
                raise StopNow
            yield
        finally:
            self.may_interrupt = False

    def restore(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


class StepUndo:
    """State of networks and optimisers, to return to when a step is abandoned.

    Args:
        networks: The networks; a forward pass may change their buffers.
    """

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._optimizers: list[tuple[torch.optim.Optimizer, dict[Tensor, dict[str, Any]]]] = []
        for network in networks.values():
            self._tensors += [(buffer, buffer.clone()) for buffer in network.buffers()]

    def remember(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Copy what the optimiser's next step changes."""
        self._tensors += [(p, p.detach().clone()) for p in network.parameters()]
        state = {p: {k: _copy(v) for k, v in s.items()} for p, s in optimizer.state.items()}
        self._optimizers.append((optimizer, state))

    @torch.no_grad()
    def restore(self) -> None:
        """Return to what was copied."""
        for tensor, before in self._tensors:
            tensor.copy_(before)
        for optimizer, state in self._optimizers:
            optimizer.state.clear()
            optimizer.state.update(state)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def answer_signals(network: nn.Module) -> None:
    """Let Python answer signals within a backward pass on the CPU, which is one call otherwise."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.register_hook(_pause)


def _pause(gradient: Tensor) -> None:
    """Do nothing: Python answers signals whenever it calls a function."""
