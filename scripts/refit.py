"""Retrain a run on resampled patients, permuted rows or folds, for intervals and null distribution.

Every refit is a run of train.py in checkpoints/RUN/refits/. Finished refits are kept, and stopped
ones resume. See docs/howto/atlas.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.atlas_options import RefitCommand
from options.parser import parse_command
from util.cli import run_command


def main() -> None:
    """Parse the command line and train the refits."""
    options = parse_command(RefitCommand, (__doc__ or "").splitlines()[0])
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.refits.run import refit_run

    refit_run(options)


if __name__ == "__main__":
    run_command(main)
