"""Compare synthetic volumes with real scans: realism, HU, mask, text, diversity and copies.

Every metric has an interval and a baseline. An interrupted evaluation resumes. See
docs/howto/evaluate.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.evaluate_options import EvaluateOptions
from options.parser import parse_command
from util.cli import run_command


def main() -> None:
    """Parse the command line and evaluate."""
    options = parse_command(EvaluateOptions, (__doc__ or "").splitlines()[0])
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.evaluation.run import evaluate

    evaluate(options)


if __name__ == "__main__":
    run_command(main)
