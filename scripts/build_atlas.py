"""The counterfactual atlas of a run: what each attribute does to the picture, how sure that is, and
what cannot be told.

See docs/atlas.md for what is measured and for every file that is written.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages


from options.atlas_options import AtlasCommand
from options.parser import parse
from pipelines.atlas.run import build_atlas
from util import cli

log = logging.getLogger(__name__)


def main() -> None:
    """Parses the command line and makes the atlas."""
    build_atlas(parse(AtlasCommand, (__doc__ or "").splitlines()[0]))


if __name__ == "__main__":
    cli.run_command(main)
