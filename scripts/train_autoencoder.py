"""Train the autoencoder of --model latent_diffusion (MONAI's AutoencoderKL) on training patches."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.autoencoder_options import AutoencoderCommand
from options.parser import parse
from pipelines.autoencoder_training import train_autoencoder
from util.cli import run_command


def main() -> None:
    """Parse the command line and train."""
    train_autoencoder(parse(AutoencoderCommand, __doc__ or ""))


if __name__ == "__main__":
    run_command(main)
