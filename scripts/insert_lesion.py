"""Put a nodule or a ground-glass opacity into a mask of the lungs, and name it for the text.

A run that was trained on masks with such labels then generates the lesion at this place. See
docs/howto/lesions.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.lesion_options import LesionOptions
from options.parser import parse_command
from util.cli import run_command


def main() -> None:
    """Parse the command line and write the mask."""
    options = parse_command(LesionOptions, (__doc__ or "").splitlines()[0])
    # Slow to import: --help and mistakes in the command line are answered without it.
    from data.lesions import write_lesion

    write_lesion(options)


if __name__ == "__main__":
    run_command(main)
