"""Trains the autoencoder of --model latent_diffusion on the training scans: MONAI's AutoencoderKL,
on patches.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages


from options.autoencoder_options import AutoencoderCommand
from options.parser import parse
from pipelines.autoencoder_training import train_autoencoder
from util.cli import run_command

log = logging.getLogger(__name__)


def main() -> None:
    """Parses the command line and trains."""
    train_autoencoder(parse(AutoencoderCommand, __doc__ or ""))


if __name__ == "__main__":
    run_command(main)
