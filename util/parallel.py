"""Work in threads or processes, with a progress bar for many items."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

from util.cli import is_main_process, threads_abandoned

MIN_ITEMS_FOR_PROGRESS = 20  # fewer are done before a progress bar is of use
MIN_ITEMS_FOR_PROCESSES = 200  # fewer are done before processes have imported their packages

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def map_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    max_threads: int = 4,
) -> list[Result]:
    """Return `function` of every item in order, for work that waits or releases Python's lock.

    Ctrl-C does not wait for the threads.
    """
    pool = ThreadPoolExecutor(min(max_threads, os.cpu_count() or 1))
    try:
        return _collect(pool.map(function, items), description, len(items))
    except KeyboardInterrupt:
        threads_abandoned.set()
        raise
    finally:
        pool.shutdown(wait=not threads_abandoned.is_set(), cancel_futures=True)


def map_processes(
    function: Callable[[Item], Result], items: Sequence[Item], description: str
) -> list[Result]:
    """Return `function` of every item in order, for many small items that hold Python's lock.

    Few items are done in threads, because processes take seconds to start.

    Args:
        function: A function at the top of a module, or a `partial` of one.
        items: Arguments that can be pickled.
        description: Name of the work, for the progress bar.
    """
    if len(items) < MIN_ITEMS_FOR_PROCESSES or available_cores() == 1:
        return map_threads(function, items, description, max_threads=8)
    from joblib import Parallel, delayed  # slow to import, and needed by few

    pool = Parallel(
        available_cores(),
        return_as="generator",
        initializer=end_with_parent,
        initargs=(os.getpid(),),
    )
    calls: Iterable[Any] = (delayed(function)(item) for item in items)
    return _collect(pool(calls), description, len(items))


def _collect(results: Iterable[Result], description: str, total: int) -> list[Result]:
    hidden = not is_main_process() or total < MIN_ITEMS_FOR_PROGRESS
    return list(tqdm(results, description, total, disable=hidden))


def end_with_parent(parent: int) -> None:
    """End this process when its parent is gone; else it would wait for work for minutes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
