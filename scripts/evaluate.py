"""Judges synthetic volumes against real scans: realism, HU, mask, text, diversity, copies; every
figure beside its floor.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages


from options.evaluate_options import EvaluateOptions
from options.parser import parse
from pipelines.evaluation.run import evaluate
from util.cli import run_command

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and evaluates."""
    evaluate(parse(EvaluateOptions, __doc__ or "", argv))


if __name__ == "__main__":
    run_command(main)
