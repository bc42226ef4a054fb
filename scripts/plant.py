"""Plant an effect of known size in a copy of a cohort: a random yes/no column and HU in the scans.

Train on the copy and run scripts/build_atlas.py: it reports how much of the effect is recovered,
and where. See docs/howto/plant.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.parser import parse_command
from options.plant_options import PlantCommand
from util.cli import run_command


def main() -> None:
    """Parse the command line and plant the effect."""
    command = parse_command(PlantCommand, (__doc__ or "").splitlines()[0])
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.atlas.planted_effect import plant_effect

    plant_effect(command.data, command.plant)


if __name__ == "__main__":
    run_command(main)
