"""Progress of a long command: bars, and estimates of its end in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TypeVar

from tqdm import tqdm

from util.cli import is_main_process

log = logging.getLogger(__name__)

MIN_S = 60.0  # between two messages
SHORT_S = 120.0  # a command that ends sooner needs no estimate

Item = TypeVar("Item")


def progress_bar(items: Iterable[Item], title: str, unit: str = "case") -> tqdm[Item]:
    """Return the items with a progress bar, which the main process alone shows."""
    return tqdm(items, title, unit=unit, disable=not is_main_process())


def format_duration(seconds: float) -> str:
    """Return a duration as `3 h 20 min`, `12 min` or `40 s`; it is never below 1 s."""
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class RemainingTime:
    """Log how long a number of equal pieces will take, from those that are done."""

    def __init__(self, total: int, name: str) -> None:
        self.total = total
        self.name = name
        self.done = 0
        self.start = self.last = time.monotonic()

    def step(self) -> None:
        """Count a piece; log the estimate after the first one, then at most once a minute."""
        self.done += 1
        now = time.monotonic()
        remaining = (now - self.start) / self.done * (self.total - self.done)
        is_due = self.done == 1 or now - self.last >= MIN_S
        if remaining < SHORT_S or not is_due:
            return
        self.last = now
        end = datetime.now() + timedelta(seconds=remaining)
        log.info(
            "%d of %d %s are done; about %s left, until %s.",
            self.done,
            self.total,
            self.name,
            format_duration(remaining),
            end.strftime("%Y-%m-%d %H:%M"),
        )
