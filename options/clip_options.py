"""Flags of scripts/pretrain_clip.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.base_options import DataOptions
from options.parser import flag, group


@dataclass(frozen=True)
class ClipOptions:
    """Training of the CLIP."""

    out: str = flag(
        "", "Output folder; a CLIP of the same cohort and settings in it is used again."
    )
    clip_steps: int = flag(200, "Training steps.", low=1)
    clip_batch: int = flag(32, "Pairs per step.", low=2)
    clip_size: tuple[int, int, int] = flag(
        (32, 32, 24), "Size in voxels to which volumes are averaged down.", low=8
    )
    clip_lr: float = flag(
        2e-3,
        "Highest learning rate; it rises for a tenth of the steps and falls to zero.",
        low=1e-7,
    )
    seed: int = flag(
        0,
        "Seed of weights, order and split (use the same for train.py if there is no splits.json).",
        low=0,
    )
    overwrite: bool = flag(False, "Replace a CLIP of another cohort or with other settings.")


@dataclass(frozen=True)
class ClipCommand:
    """All flags of the command."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("out", "dataroot")
    EXAMPLE: ClassVar[str] = (
        "python scripts/pretrain_clip.py --dataroot phantoms --template aiib23 --out clip"
    )

    clip: ClipOptions = group(ClipOptions, "CLIP")
    data: DataOptions = group(DataOptions, "Cohort")
