"""Compare runs on one cohort: effects, fidelity, diversity, time, size and memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.compare_options import CompareCommand
from options.parser import parse_command
from util.cli import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and compare the runs."""
    options = parse_command(CompareCommand, __doc__ or "", argv)
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.evaluation.compare_models import compare_models
    from test import generate_cohort

    compare_models(options, generate_cohort)


if __name__ == "__main__":
    run_command(main)
