"""Earlier name of benchmarks/effects.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.effects import EffectsBenchmarkCommand
from options.parser import parse_command
from util.cli import run_command


def main() -> None:
    """Check the command line and run the benchmark."""
    parse_command(EffectsBenchmarkCommand, __doc__ or "")
    # Slow to import: --help and mistakes in the command line are answered without it.
    from benchmarks import effects

    effects.main()


if __name__ == "__main__":
    run_command(main)
