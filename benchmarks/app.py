"""Measure the live page: seconds from a question to the page with its answer.

Masks of phantoms of two sizes are dropped on the page of a trained run. Each is asked for volumes
with new noise, and for one counterfactual (two volumes with two noises each). Seconds hold reading,
generation and writing of the page; those of the first question, which warms up, do not count.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.speed import AppBenchmarkCommand
from options.parser import answer_early, parse

answer_early(__name__, AppBenchmarkCommand, __doc__ or "")  # the imports below are slow


from data.phantom.write import make_phantom_cohort
from options.app_options import AppCommand, AppOptions
from options.phantom_options import PhantomOptions
from pipelines.app.answer import AnswerDesk
from pipelines.app.progress import GenerationProgress
from pipelines.app.question import Question
from pipelines.app.session import AppSession
from util.cli import UserError, run_command
from util.files import write_json
from util.training.devices import device_name

log = logging.getLogger(__name__)


def phantom_mask(folder: Path, size: Sequence[int]) -> Path:
    """Write a phantom of a size, and return its mask."""
    x, y, z = size
    root = folder / "x".join(map(str, size))
    if not root.exists():
        make_phantom_cohort(
            PhantomOptions(OUT=str(root), cases=1, size=(x, y, z), test_cases=0, val_cases=0)
        )
    return next((root / "gtlung").iterdir())


def seconds_of(desk: AnswerDesk, question: Question) -> dict[str, float]:
    """Ask a question; return the seconds and the CPU seconds of the answer."""
    start, cpu = time.perf_counter(), time.process_time()
    desk.answer(question, GenerationProgress())
    return {
        "seconds": time.perf_counter() - start,
        "CPU seconds": time.process_time() - cpu,
    }


def known_change(session: AppSession) -> tuple[dict[str, str], dict[str, str]]:
    """Return a column with two known values, as known of the patient and as changed.

    Raises:
        UserError: The run has no such column.
    """
    for column in session.columns.values():
        if len(column.values) > 1 and column.role == "exposure":
            first, second, *_ = column.values
            return {column.name: first}, {column.name: second}
    raise UserError("--name: the run has no exposure with two known values. Choose another run.")


def measure_size(
    session: AppSession, desk: AnswerDesk, mask: Path, repeats: int
) -> dict[str, float]:
    """Return median seconds of one volume and of a counterfactual on a mask."""
    case = session.add_mask(mask)
    seconds_of(desk, Question(case, seed=0))
    row, change = known_change(session)
    questions = {
        "one volume": [Question(case, seed=k) for k in range(1, repeats + 1)],
        "counterfactual": [Question(case, row, change, seed=k) for k in range(1, repeats + 1)],
    }
    results = {}
    for name, asked in questions.items():
        measured = [seconds_of(desk, question) for question in asked]
        for quantity in measured[0]:
            results[f"{name}: {quantity}"] = round(median(m[quantity] for m in measured), 2)
    return results


def main() -> None:
    """Parse the command line and measure."""
    options = parse(AppBenchmarkCommand, __doc__ or "")
    out = Path(options.benchmark.OUT)
    work = out / "page"
    work.mkdir(parents=True, exist_ok=True)
    command = AppCommand(AppOptions(), options.model, options.sampling)
    session = AppSession.from_options(command, work)
    desk = AnswerDesk(session, work / "answers")
    results = {}
    for size in (options.benchmark.size, options.benchmark.large):
        mask = phantom_mask(out, size)
        measured = measure_size(session, desk, mask, options.benchmark.repeats)
        results["x".join(map(str, size))] = measured
        for name, value in measured.items():
            log.info("%s, %s: %.2f", mask.parents[1].name, name, value)
    device = device_name(session.run.generator.device)
    write_json(out / "app.json", {"device": device, "run": options.model.name, **results})


if __name__ == "__main__":
    run_command(main)
