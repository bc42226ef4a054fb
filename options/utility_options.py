"""Flags of scripts/utility.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.base_options import DataOptions
from options.parser import check_window, flag, group, path_flag


@dataclass(frozen=True)
class UtilityOptions:
    """Cohorts to compare."""

    synthetic: str = path_flag(
        "",
        "Folder of the synthetic cohort (see expand.py); all of its cases are trained on.",
        kind="folder",
    )
    column: str = flag("", "Column that the classifier predicts from the volume.")
    out: str = flag("", "Folder of the results.")
    seeds: tuple[int, ...] = flag((1, 2, 3), "Seeds of the classifiers.", low=0)
    grid: tuple[int, int, int] = flag(
        (16, 16, 16), "Cells of the box around the lungs that the classifier gets.", low=4
    )
    lung_window: tuple[float, float] = flag(
        (-1000.0, -600.0), "HU at -1 and 1 for the classifier.", low=-4000, high=8000
    )
    gpu_ids: str = flag("", "GPU to use, such as 0; -1 for the CPU; default: a GPU if available.")
    overwrite: bool = flag(False, "Replace results made with other flags.")

    def __post_init__(self) -> None:
        """Raise `UserError` where the ends of the window are exchanged."""
        check_window("lung_window", self.lung_window)


@dataclass(frozen=True)
class ClassifierOptions:
    """Training of the classifier; every cohort gets the same number of steps."""

    steps: int = flag(300, "Steps of training.", low=1)
    batch: int = flag(16, "Volumes per step.", low=2)
    lr: float = flag(2e-3, "Largest learning rate.", low=0)
    width: int = flag(8, "Channels of the first layer.", low=2)
    finish: float = flag(
        0.5,
        "Share of the steps, at the end, on real scans alone, if real and synthetic ones are "
        "trained on.",
        low=0,
        high=1,
    )
    class_weights: bool = flag(True, "Weight the classes equally, however few volumes they have.")
    oversample: bool = flag(
        False, "Draw the classes equally often, so that volumes of a rare one are repeated."
    )
    augment: bool = flag(
        False, "Turn, scale and shift volumes and add noise at random, instead of shifts alone."
    )


@dataclass(frozen=True)
class UtilityCommand:
    """All flags of scripts/utility.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("synthetic", "column", "out", "dataroot")
    EXAMPLE: ClassVar[str] = (
        "python scripts/utility.py --dataroot phantoms --synthetic synthetic --column DIAGNOSIS "
        "--out utility"
    )

    utility: UtilityOptions = group(UtilityOptions, "Comparison")
    data: DataOptions = group(DataOptions, "Cohort")
    classifier: ClassifierOptions = group(ClassifierOptions, "Classifier")
