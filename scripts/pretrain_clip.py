"""Train a small CLIP on the training split, and save its text side for --text_encoder."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.clip_options import ClipCommand
from options.parser import parse_command
from util.cli import run_command


def main() -> None:
    """Parse the command line and train."""
    options = parse_command(ClipCommand, __doc__ or "")
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.clip_pretraining import pretrain_clip

    pretrain_clip(options)


if __name__ == "__main__":
    run_command(main)
