"""Prepare a dataroot from real scans: DICOM folders, volume files, AIIB23 or OSIC.

It has masks, a table, splits and a report. Exit code 0: all cases are ready; 2: nothing was done;
3: some cases failed, the others are ready. An interrupted run resumes when it is started again, and
a finished one repeats only what changed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.parser import parse_command
from options.prepare_options import PrepareCommand
from util.cli import run_command

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and prepare the dataroot."""
    options = parse_command(PrepareCommand, __doc__ or "", argv)
    # Slow to import: --help and mistakes in the command line are answered without it.
    from data.preparation.run import prepare_dataroot, training_command

    out = prepare_dataroot(options)
    log.info(
        "Train with: %s (--template aiib23, osic, auto or a file; --preset cpu, 24gb or 80gb)",
        training_command(out, options.source.modality),
    )


if __name__ == "__main__":
    run_command(main)
