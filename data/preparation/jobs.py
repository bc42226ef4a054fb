"""Many tasks in processes of their own: one that dies takes no other with it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from util.cli import UserError

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

DIED = "Its process died: out of memory, most likely, or killed. Try fewer --jobs or a coarser --spacing."


def _start(parent: int) -> None:
    """Ends a worker whose parent was killed; else it would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _pool(jobs: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(os.getpid(),))


def each(
    function: Callable[[T], R], tasks: Sequence[T], jobs: int
) -> Iterator[tuple[T, R | Exception]]:
    """Runs `function` on every task and yields task and result, or what was raised, as they come.

    Only as many tasks as workers are handed out at a time. When a worker dies, those are tried
    again one by one, so that the one to blame fails alone.

    Args:
        function: A function at the top of a module.
        tasks: What can be pickled.
        jobs: Worker processes; 0 runs everything in this process.
    """
    if jobs == 0:
        for task in tasks:
            yield task, _tried(function, task)
        return
    queue = deque(tasks)
    while queue:
        suspects: list[T] = []
        with _pool(min(jobs, len(queue))) as pool:
            yield from _drain(pool, function, queue, suspects, jobs)
        for task in suspects:
            with _pool(1) as pool:
                outcome = _result(pool.submit(function, task))
            yield task, UserError(DIED) if isinstance(outcome, BrokenProcessPool) else outcome


def _drain(
    pool: ProcessPoolExecutor,
    function: Callable[[T], R],
    queue: deque[T],
    suspects: list[T],
    jobs: int,
) -> Iterator[tuple[T, R | Exception]]:
    flying: dict[Future[R], T] = {}
    try:
        while flying or (queue and not suspects):
            while queue and len(flying) < jobs and not suspects:
                try:
                    flying[pool.submit(function, queue[0])] = queue[0]
                except BrokenProcessPool:
                    break
                queue.popleft()
            if not flying:
                return
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                task, outcome = flying.pop(future), _result(future)
                if isinstance(outcome, BrokenProcessPool):
                    suspects.append(task)
                else:
                    yield task, outcome
    except BaseException:  # such as Ctrl-C, or a caller that stops: what has not begun is not begun
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _result(future: Future[R]) -> R | Exception:
    try:
        return future.result()
    except Exception as error:
        return error


def _tried(function: Callable[[T], R], task: T) -> R | Exception:
    try:
        return function(task)
    except Exception as error:
        return error
