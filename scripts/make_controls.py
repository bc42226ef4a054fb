"""Generate control volumes of a run for scripts/evaluate.py.

OUT/shuffled holds the cases with other cases' prompts, OUT/empty with empty prompts, and OUT/noise
with other noise, in the layout of test.py. An interrupted command resumes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.control_options import ControlCommand
from options.parser import parse_command
from util.cli import run_command


def main() -> None:
    """Parse the command line and make the controls."""
    options = parse_command(ControlCommand, (__doc__ or "").splitlines()[0])
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.evaluation.controls import make_controls

    make_controls(options)


if __name__ == "__main__":
    run_command(main)
