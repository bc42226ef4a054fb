"""Work in threads, for functions that wait for the disk or release the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from tqdm.contrib.concurrent import thread_map

from util.cli import is_main_process

MIN_ITEMS_FOR_PROGRESS = 20  # fewer are done before a progress bar is of use

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    max_threads: int = 4,
) -> list[Result]:
    """Return `function` of every item in order, with a progress bar for many items."""
    results: list[Result] = thread_map(
        function,
        items,
        max_workers=min(max_threads, os.cpu_count() or 1),
        desc=description,
        disable=not is_main_process() or len(items) < MIN_ITEMS_FOR_PROGRESS,
    )
    return results
