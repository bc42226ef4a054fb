"""Plants an effect of known size in a copy of a cohort: a random yes/no column, and HU added to the
scans of those with Yes.

Train on the copy and run scripts/build_atlas.py: it reports how much of the effect came back,
where, and what leaked elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.parser import parse
from options.plant_options import PlantCommand
from pipelines.atlas.planted_effect import plant_effect
from util.cli import run_command


def main() -> None:
    """Parses the command line and plants."""
    o = parse(PlantCommand, (__doc__ or "").splitlines()[0])
    plant_effect(o.data, o.plant)


if __name__ == "__main__":
    run_command(main)
