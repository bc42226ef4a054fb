"""Build the counterfactual atlas of a run: the effect of each attribute, with its uncertainty.

See docs/howto/atlas.md for its use, and docs/reference/atlas_tables.md for every file.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.atlas_options import AtlasCommand
from options.parser import parse_command
from util.cli import run_command


def main() -> None:
    """Parse the command line and build the atlas."""
    options = parse_command(AtlasCommand, (__doc__ or "").splitlines()[0])
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.atlas.run import build_atlas

    build_atlas(options)


if __name__ == "__main__":
    run_command(main)
