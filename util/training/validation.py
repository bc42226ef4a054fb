"""Figures and pictures of validation cases while a run trains, so that a user knows when to
stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from util.cli import safe_name
from util.metrics.fidelity import fidelity
from util.web.figures import slice_row
from util.web.training_page import TrainingImage

Array = NDArray[np.floating]


@dataclass(frozen=True)
class ValidationCase:
    """One case to generate again and again.

    Attributes:
        name: The case's id.
        real: `(X, Y, Z)` HU on the model's grid.
        labels: `(X, Y, Z)` mask labels.
        spacing: Voxel size in mm.
        lungs: `(X, Y, Z)` bool.
        sentence: The prompt, for the picture.
        generate: Makes the volume of the case's own row, `(X, Y, Z)` HU.
        arms: The same for the two values of the attribute that is followed; empty for none.
    """

    name: str
    real: Array
    labels: NDArray[np.integer]
    spacing: Sequence[float]
    lungs: NDArray[np.bool_]
    sentence: str
    generate: Callable[[], Array]
    arms: Sequence[Callable[[], Array]] = ()


class Validation:
    """Called with a step: mean figures over the cases, and a picture of each.

    Args:
        cases: The cases.
        window: Lowest and highest HU of the model.
        folder: Where the pictures go.
    """

    def __init__(
        self, cases: Sequence[ValidationCase], window: tuple[float, float], folder: Path
    ) -> None:
        self.cases, self.window, self.folder = cases, window, folder

    def __call__(self, step: int) -> tuple[dict[str, float], list[TrainingImage]]:
        """Lung MAE (HU), lung SSIM, mean lung HU against the real one, and the followed effect (HU
        in the lungs).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, list[float]] = {}
        images = []
        for case in self.cases:
            generated = case.generate()
            figures = fidelity(generated, case.real, {"lungs": case.lungs}, self.window)["lungs"]
            figures["mean_error_hu"] = float((generated - case.real)[case.lungs].mean())
            if case.arms:
                first, second = (arm() for arm in case.arms)
                figures["effect_hu"] = float((second - first)[case.lungs].mean())
            for name, value in figures.items():
                found.setdefault(f"lung_{name}", []).append(value)
            file = f"{step:08d}_{safe_name(case.name)}.png"
            (self.folder / file).write_bytes(
                slice_row(case.labels, generated, case.real, case.spacing)
            )
            images.append(TrainingImage(step, case.name, case.sentence, file))
        return {name: float(np.mean(values)) for name, values in found.items()}, images
