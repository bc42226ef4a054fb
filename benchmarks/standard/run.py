"""Score any generator that writes NIfTI on the standard set.

RUN_COMMAND is called twice for every set, with words behind it:

    RUN_COMMAND train TRAIN WORK             learn from TRAIN/img, gtlung, clinical.csv
    RUN_COMMAND generate TEST WORK VOLUMES   write VOLUMES/<file> for each row of TEST/requests.csv

A volume is in HU on the grid of TEST/gtlung/<File Name>.nii.gz. Rows of one case and draw should
share their noise. A stopped benchmark resumes. See docs/howto/standard_benchmark.md.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project's packages

from options.benchmarks.effects import StandardBenchmarkOptions
from options.parser import answer_early, parse

answer_early(__name__, StandardBenchmarkOptions, __doc__ or "")  # the imports below are slow

from benchmarks.standard.scores import Cost, differing_sets, score_set, summarise, tables
from benchmarks.standard.standard_set import GROUPS, VERSION, StandardSet
from util.cli import UserError, run_command, safe_name
from util.files import read_json, write_json

log = logging.getLogger(__name__)

EXPECTED = Path(__file__).with_name("expected_scores.json")
TRAINED = "trained.json"  # marks a finished training, with its cost
GENERATED = "generated.json"
LOG_LINES = 5  # of a failed command, in a message


@dataclass(frozen=True)
class Usage:
    """Wall time in seconds and peak memory in GiB of a command."""

    seconds: float
    memory_gib: float


def call(command: Sequence[str], log_file: Path) -> Usage:
    """Run a command, and return its time and memory; its output goes to a file.

    Raises:
        UserError: It fails.
    """
    start = time.perf_counter()
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = log_file.read_text(errors="replace").splitlines()[-LOG_LINES:]
        raise UserError(
            f"RUN_COMMAND ended with code {process.returncode}; {log_file} ends with:\n"
            + "\n".join(lines)
        )
    return Usage(time.perf_counter() - start, usage.ru_maxrss / 2**20)


def run_set(command: Sequence[str], standard: StandardSet, folder: Path) -> dict[str, Any]:
    """Train, generate and score on one set; parts that are finished are kept.

    Args:
        command: The generator's command.
        folder: Folder of the generator's work, volumes and logs.
    """
    work, volumes = folder / "work", folder / "volumes"
    if not (folder / TRAINED).is_file():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        words = [*command, "train", str(standard.train), str(work)]
        usage = call(words, folder / "train.log")
        write_json(folder / TRAINED, {"seconds": usage.seconds, "memory_gib": usage.memory_gib})
    if not (folder / GENERATED).is_file():
        volumes.mkdir(exist_ok=True)
        words = [*command, "generate", str(standard.test), str(work), str(volumes)]
        usage = call(words, folder / "generate.log")
        if missing := standard.missing(volumes):
            raise UserError(
                f"RUN_COMMAND generate did not write {missing[0]} and {len(missing) - 1} more of "
                f"the {len(standard.requests)} files of {standard.test / 'requests.csv'}."
            )
        write_json(folder / GENERATED, {"seconds": usage.seconds, "memory_gib": usage.memory_gib})
    trained, generated = read_json(folder / TRAINED), read_json(folder / GENERATED)
    cost = Cost(
        trained["seconds"],
        generated["seconds"] / len(standard.requests),
        max(trained["memory_gib"], generated["memory_gib"]),
    )
    return score_set(standard, volumes, cost)


def chosen_sets(o: StandardBenchmarkOptions) -> list[tuple[str, tuple[str, ...]]]:
    """Return groups and folders of chests of the sets to run."""
    chosen = o.groups or GROUPS["phantom"]
    sets: list[tuple[str, tuple[str, ...]]] = [(g, ()) for g in GROUPS["phantom"] if g in chosen]
    if o.chests:
        sets += [(g, o.chests) for g in GROUPS["real"] if g in chosen]
    return sets


def run_benchmark(o: StandardBenchmarkOptions, expected: Path = EXPECTED) -> dict[str, Any]:
    """Run a generator on all sets; write scores.json and scores.md; return the scores by set."""
    command = shlex.split(o.RUN_COMMAND)
    if not command:
        raise UserError('RUN_COMMAND is empty; give one, such as "python generator.py".')
    if shutil.which(command[0]) is None:
        raise UserError(
            f"RUN_COMMAND begins with {command[0]!r}, which is not a program here. Give a program "
            'and its words in one text, such as "python generator.py".'
        )
    if o.save_expected and o.tiny:
        raise UserError("--save_expected keeps scores of the standard, and --tiny makes none.")
    sets = chosen_sets(o)
    name = o.name or o.RUN_COMMAND
    folder = Path(o.OUT) / "generators" / safe_name(name)[:80]
    known = read_json(expected)
    scores: dict[str, Any] = {}
    for group, chests in sets:
        standard = StandardSet.make(Path(o.OUT) / "sets", group, chests, o.tiny)
        finished = folder / standard.name / "scores.json"
        if not finished.is_file():
            write_json(finished, run_set(command, standard, folder / standard.name))
        scores[standard.name] = read_json(finished)
        log.info("%s: %s", standard.name, summarise(scores[standard.name]))
        record = {"version": VERSION, "generator": name, "tiny": o.tiny, "sets": scores}
        write_json(folder / "scores.json", record)
        (folder / "scores.md").write_text(tables(name, scores, known) + "\n")
    if not o.tiny:
        for title in differing_sets(scores, known):
            log.warning(
                "The set %s has other rows than that of the expected scores (another version of "
                "NumPy?), so that they cannot be compared.",
                title,
            )
    if o.save_expected:
        known["generators"].setdefault(name, {}).update(
            {t: {"digest": s["digest"], "summary": summarise(s)} for t, s in scores.items()}
        )
        write_json(expected, known)
    log.info("Scores: %s", folder / "scores.md")
    return scores


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and run the benchmark."""
    run_benchmark(parse(StandardBenchmarkOptions, __doc__ or "", argv))


if __name__ == "__main__":
    run_command(main)
