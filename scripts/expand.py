"""Generate a synthetic cohort in the layout of --dataroot.

It is balanced over a column or two, or has the rows of a table. Masks are those of real cases,
deformed smoothly, or with --masks shape drawn from a statistical shape model; rows follow what the
run's template implies. A volume that is too close to a training scan is redrawn up to --redraws
times, then dropped. With --how residual or edit, real training scans are changed by one attribute
instead. An interrupted command resumes. Several GPUs:
torchrun --nproc_per_node 4 scripts/expand.py ...
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.expand_options import ExpandCommand
from options.parser import parse_command
from util.cli import run_command


def main() -> None:
    """Parse the command line and generate the cohort."""
    options = parse_command(ExpandCommand, (__doc__ or "").splitlines()[0])
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.synthesis.run import synthesise_cohort

    synthesise_cohort(options)


if __name__ == "__main__":
    run_command(main)
