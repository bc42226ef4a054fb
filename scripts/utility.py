"""Measure the utility of a synthetic cohort by a classifier trained on real, synthetic and both.

All three are trained for the same number of steps with several seeds. The test scans are the real
cohort's test split, which no training sees. OUT/utility.md, .csv and .json hold the results with
intervals. Finished trainings are not repeated.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.parser import parse_command
from options.utility_options import UtilityCommand
from util.cli import run_command


def main() -> None:
    """Parse the command line and measure the utility."""
    options = parse_command(UtilityCommand, (__doc__ or "").splitlines()[0])
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.synthesis.utility import measure_utility

    measure_utility(options)


if __name__ == "__main__":
    run_command(main)
