"""Makes control volumes of a trained run for scripts/evaluate.py: other cases' prompts, empty
prompts, and other noise.

OUT/shuffled, OUT/empty and OUT/noise hold the volumes of the same cases in the layout of test.py; a
volume that is there is kept, so that a stopped command goes on where it was.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages


from options.control_options import ControlCommand
from options.parser import parse
from pipelines.evaluation.controls import make_controls
from util.cli import run_command

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and makes the controls."""
    make_controls(parse(ControlCommand, __doc__ or "", argv))


if __name__ == "__main__":
    run_command(main)
