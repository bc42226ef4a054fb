"""What a synthetic cohort is good for: a classifier of a column trained on real, synthetic and
both, tested on real scans.

All three are trained for the same number of steps, with several seeds; the test scans are the real
cohort's test split, which no training sees. OUT/utility.md, .csv and .json hold the figures with
intervals; finished trainings are kept.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages


from options.parser import parse
from options.utility_options import UtilityCommand
from pipelines.synthesis.utility import measure_utility
from util import cli

log = logging.getLogger(__name__)


def main() -> None:
    measure_utility(parse(UtilityCommand, (__doc__ or "").splitlines()[0]))


if __name__ == "__main__":
    cli.run_command(main)
