"""Make a phantom cohort: chest CTs, masks and a clinical table with effects of known size."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.parser import parse_command
from options.phantom_options import PhantomOptions
from util.cli import run_command

log = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line and make the cohort."""
    options = parse_command(PhantomOptions, __doc__ or "")
    # Slow to import: --help and mistakes in the command line are answered without it.
    from data.phantom.write import make_phantom_cohort

    out = make_phantom_cohort(options)
    log.info("Phantom cohort in %s; train with:", out)
    folder = shlex.quote(str(out))
    log.info("python train.py --dataroot %s --template aiib23 --name phantoms --preset cpu", folder)


if __name__ == "__main__":
    run_command(main)
