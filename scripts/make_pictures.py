"""Draw pictures to take away: animations through slices, stacks, figures and strongest slices."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.parser import parse_command
from options.picture_options import PictureSetOptions
from util.cli import run_command


def main() -> None:
    """Parse the command line and draw the pictures."""
    options = parse_command(PictureSetOptions, __doc__ or "")
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.pictures.picture_set import draw_picture_set

    draw_picture_set(options)


if __name__ == "__main__":
    run_command(main)
