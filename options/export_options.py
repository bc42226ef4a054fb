"""Flags of scripts/export.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.parser import argument, flag

KINDS = ("zip", "hub", "bundle", "onnx")


@dataclass(frozen=True)
class ExportOptions:
    """The run, and what it becomes."""

    EXAMPLE: ClassVar[str] = "python scripts/export.py run1 run1.zip"

    RUN: str = argument("Name of the run, or a run that was exported before.")
    OUT: str = argument("File (.zip, .onnx) or folder to write.")
    to: str = flag(
        "zip",
        "zip: one file; hub: a folder in the layout of the Hugging Face hub; bundle: a MONAI "
        "bundle; onnx: the network of a GAN as ONNX.",
        choices=KINDS,
    )
    checkpoints_dir: str = flag("checkpoints", "Folder of all runs.")
    which_epoch: str = flag("latest", "Checkpoint of the run: latest, or the number of an epoch.")
    text_encoder: str = flag(
        "", "Folder of the run's text encoder, if it was moved since training."
    )
    licence: str = flag(
        "", "Licence of the weights for the model card, such as cc-by-nc-4.0 (empty: not stated)."
    )
    onnx_size: tuple[int, int, int] = flag(
        (64, 64, 48), "Voxels of the volume that the ONNX network takes.", low=8
    )
    overwrite: bool = flag(False, "Replace what an earlier export wrote to OUT.")
