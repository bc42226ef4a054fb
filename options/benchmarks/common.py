"""Flags that several benchmarks have."""

from __future__ import annotations

from typing import Any

from options.parser import flag

Size = tuple[int, int, int]
GROUPS = ("texture", "sparse", "interaction", "rare", "fat")  # of planted columns


def phantom_size(default: Size) -> Any:
    """Declare the size of the phantoms of a cohort."""
    return flag(default, "Voxels of a phantom.", low=16)


def patient_sd(default: float) -> Any:
    """Declare the SD between patients that no column explains."""
    return flag(default, "SD in HU between patients for reasons outside the table.", low=0)


def text_encoder() -> Any:
    """Declare the text encoder of the runs that are trained."""
    return flag("minilm", "As in train.py; minilm is MiniLM.")


def max_steps() -> Any:
    """Declare the length of the trainings."""
    return flag(0, "Steps of training (0: those of the preset).", low=0)


def train_flags() -> Any:
    """Declare further flags of the trainings."""
    return flag("", "More flags for train.py, in one text.")


def groups() -> Any:
    """Declare the groups of planted columns that are measured."""
    return flag((), "A group of planted columns; may be repeated (default: all).", choices=GROUPS)


def refit_gpus() -> Any:
    """Declare the GPUs that refits share."""
    return flag(
        "", "GPUs that refits are trained on side by side, such as 0,1; -1,-1: two on the CPU."
    )


def gpu_ids() -> Any:
    """Declare the device of a measurement of speed."""
    return flag("", "GPU to use; -1 for the CPU; default: a GPU if available.")


def figures_file() -> Any:
    """Declare the file of the figures of a measurement that writes nothing else."""
    return flag("", "JSON file for the figures.")
