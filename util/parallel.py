"""Work in threads, for functions that wait for the disk or release the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from util.cli import is_main_process, threads_abandoned

MIN_ITEMS_FOR_PROGRESS = 20  # fewer are done before a progress bar is of use

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    max_threads: int = 4,
) -> list[Result]:
    """Return `function` of every item in order, with a progress bar for many items.

    Ctrl-C does not wait for the threads.
    """
    hidden = not is_main_process() or len(items) < MIN_ITEMS_FOR_PROGRESS
    pool = ThreadPoolExecutor(min(max_threads, os.cpu_count() or 1))
    try:
        results = pool.map(function, items)
        return list(tqdm(results, description, len(items), disable=hidden))
    except KeyboardInterrupt:
        threads_abandoned.set()
        raise
    finally:
        pool.shutdown(wait=not threads_abandoned.is_set(), cancel_futures=True)
