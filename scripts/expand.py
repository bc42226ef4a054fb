"""Makes a synthetic cohort in the layout of --dataroot, balanced over a column, or with the rows of
a table.

Masks are those of real cases, varied smoothly; rows follow what the run's template implies; a
volume too close to a training scan is drawn again. A stopped command goes on where it was. Several
GPUs: torchrun --nproc_per_node 4 scripts/expand.py ...
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages


from options.expand_options import ExpandCommand
from options.parser import parse
from pipelines.synthesis.run import synthesise_cohort
from util import cli

log = logging.getLogger(__name__)


def main() -> None:
    synthesise_cohort(parse(ExpandCommand, (__doc__ or "").splitlines()[0]))


if __name__ == "__main__":
    cli.run_command(main)
