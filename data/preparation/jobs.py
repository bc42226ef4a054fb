"""Tasks in processes of their own: one that dies takes no other with it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import BrokenProcessPool

from util.cli import UserError
from util.parallel import end_with_parent

Task = TypeVar("Task")
Result = TypeVar("Result")

DIED = (
    "Its process died: out of memory, most likely, or killed. Try fewer --jobs or a coarser "
    "--spacing."
)


def run_in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], processes: int
) -> Generator[tuple[Task, Result | Exception], None, None]:
    """Run a function on every task and yield task and result, or the error raised, as they come.

    When a process dies, joblib gives up every task that was running. These are tried again one by
    one, so that only the task to blame fails.

    Args:
        function: A function at the top of a module.
        tasks: Arguments that can be pickled.
        processes: Number of processes; 0 runs everything in this one.
    """
    processes = min(processes, len(tasks))
    if processes == 0:
        for task in tasks:
            yield task, _result_or_error(function, task)
        return
    waiting = iter(enumerate(tasks))
    running: dict[int, Task] = {}

    def calls() -> Iterator[Any]:
        for number, task in waiting:
            running[number] = task
            yield delayed(_numbered_result)(function, number, task)

    is_done = False
    while not is_done:
        results = _parallel(processes, return_as="generator_unordered")(calls())
        try:
            for number, result in results:
                yield running.pop(number), result
            is_done = True
        except BrokenProcessPool:
            while running:
                _, task = running.popitem()
                yield task, _run_alone(function, task)
        finally:
            with warnings.catch_warnings():  # of tasks that a caller who stops leaves behind
                warnings.simplefilter("ignore")
                results.close()


def _run_alone(function: Callable[[Task], Result], task: Task) -> Result | Exception:
    try:
        return _parallel(1)([delayed(_result_or_error)(function, task)])[0]
    except BrokenProcessPool:
        return UserError(DIED)


def _parallel(processes: int, **settings: Any) -> Parallel:
    """Return processes that are handed one task at a time, so that few are lost when one dies."""
    return Parallel(
        max(2, processes),  # joblib would run a single one in this process
        "loky",
        pre_dispatch=processes,
        batch_size=1,
        initializer=end_with_parent,
        initargs=(os.getpid(),),
        **settings,
    )


def _numbered_result(
    function: Callable[[Task], Result], number: int, task: Task
) -> tuple[int, Result | Exception]:
    return number, _result_or_error(function, task)


def _result_or_error(function: Callable[[Task], Result], task: Task) -> Result | Exception:
    try:
        return function(task)
    except Exception as error:
        return error
