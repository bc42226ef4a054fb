"""Progress of a generation, and its end where the user cancels it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

OnTile = Callable[[int, int], None]  # called before a tile with its number and that of all


class CancelledError(Exception):
    """The user cancelled the generation."""


def _ignore(share: float, text: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class GenerationProgress:
    """Progress of one generation.

    Attributes:
        report: Called with the share that is done and a text.
        cancelled: Set by the user to end the generation.
    """

    report: Callable[[float, str], None] = _ignore
    cancelled: threading.Event = field(default_factory=threading.Event)

    def tile_counter(self) -> OnTile:
        """Return what reports each tile, and raises `CancelledError` where it was cancelled."""
        passes = 0

        def on_tile(number: int, steps: int) -> None:
            nonlocal passes
            if self.cancelled.is_set():
                raise CancelledError
            passes += number == 0
            text = f"Pass {passes}, tile {number + 1} of {steps}"
            self.report(0.9 * number / max(steps, 1), text)

        return on_tile
