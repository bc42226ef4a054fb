"""Plants an effect of known size in a copy of a cohort: a random yes/no column, and HU added to the scans of those with Yes.

Train on the copy and run scripts/discover.py: it reports how much of the effect came back, where, and what leaked elsewhere.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from data.plant import PlantOptions, plant
from options.base_options import DataOptions
from options.parser import group, parse
from util.cli import run


@dataclass(frozen=True)
class Options:
    """Everything the command takes."""

    plant: PlantOptions = group(PlantOptions, "What is planted")
    data: DataOptions = group(DataOptions, "Cohort")


def main() -> None:
    """Parses the command line and plants."""
    o = parse(Options, (__doc__ or "").splitlines()[0])
    plant(o.data, o.plant)


if __name__ == "__main__":
    run(main)
