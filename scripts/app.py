"""Open a run as a local page: ask for volumes, compare texts, export, teach.

The page is served on this computer alone and needs no network. See docs/howto/app.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.app_options import AppCommand
from options.parser import parse_command
from util.cli import run_command


def main() -> None:
    """Parse the command line and serve the page."""
    options = parse_command(AppCommand, (__doc__ or "").splitlines()[0])
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.app.server import run_app

    run_app(options)


if __name__ == "__main__":
    run_command(main)
