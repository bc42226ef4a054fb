"""Draw one case of a results folder: mask, real scan, volumes and differences in three planes."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.parser import parse_command
from options.picture_options import PictureOptions
from util.cli import run_command

log = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line and draw the picture."""
    options = parse_command(PictureOptions, __doc__ or "")
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.pictures.figure import draw_case

    log.info("Wrote %s", draw_case(options))


if __name__ == "__main__":
    run_command(main)
