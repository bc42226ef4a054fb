"""Train the autoencoder of --model latent_diffusion (MONAI's AutoencoderKL) on training patches."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.autoencoder_options import AutoencoderCommand
from options.parser import parse_command
from util.cli import run_command


def main() -> None:
    """Parse the command line and train."""
    options = parse_command(AutoencoderCommand, __doc__ or "")
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.autoencoder.training import train_autoencoder

    train_autoencoder(options)


if __name__ == "__main__":
    run_command(main)
