"""Flags of diffusion models that train in seconds, and edits by them."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.commands import TrainedRun
from tests.generated_volumes import generate

QUICK = ("--model", "diffusion", "--sampling_steps", "3", "--val_cases", "0")
LATENT = tuple(
    shlex.split(
        "--model latent_diffusion --sampling_steps 3 --val_cases 0 --n_downsample_global 1 "
        "--patch_size 16,16,16"
    )
)
SMOKING = "SMOKING HISTORY=Never smoker,Current smoker"


def edit(run: TrainedRun, results: Path, *words: str) -> Path:
    """The folder of edits of a real scan by `test.py`, which must succeed."""
    flags = ("--edit_real", "--how_many", "1", "--edit_cycles", "2", "--sampling_steps", "6")
    return generate(run, results, "--vary", SMOKING, *flags, *words)
