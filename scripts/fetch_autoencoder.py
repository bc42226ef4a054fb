"""Take an autoencoder such as MAISI's from the model hub or a file, and check it on your scans.

The weights are saved as train.py --model latent_diffusion --autoencoder takes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.autoencoder_options import FetchCommand
from options.parser import parse_command
from util.cli import run_command


def main() -> None:
    """Parse the command line and fetch the autoencoder."""
    options = parse_command(FetchCommand, (__doc__ or "").splitlines()[0])
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.autoencoder.fetch import fetch_autoencoder

    fetch_autoencoder(options)


if __name__ == "__main__":
    run_command(main)
