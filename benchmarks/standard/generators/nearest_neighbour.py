"""The scan of the training patient who is most alike in row and mask, moved into the mask."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's packages
from benchmarks.report.kinds_baselines import transfer
from benchmarks.standard.generators.cases import Hu, Request, StandardCase, read_cases
from benchmarks.standard.generators.design import Design
from benchmarks.standard.generators.stages import Predict, run_stage

SHAPE_WEIGHT = 0.05  # of a mask's shape: rows decide, and masks between rows that are alike


def describe_mask(case: StandardCase) -> NDArray[np.float64]:
    """Return logarithms of the volume and of the extents of the lungs."""
    chest = case.chest
    places = np.argwhere(chest.lungs)
    extent = (places.max(0) - places.min(0) + 1) * np.array(chest.spacing)
    volume = len(places) * float(np.prod(chest.spacing))
    return np.log([volume, *extent])


def train(folder: Path, work: Path) -> None:
    """Keep the training cases."""
    shutil.copytree(folder, work / "train", dirs_exist_ok=True)


def load(_: Path, work: Path) -> Predict:
    """Return the generator of the nearest scan; the second draw takes the second nearest."""
    cases = read_cases(work / "train")
    design = Design.from_cases(cases)
    rows = np.stack([design(case.row) for case in cases])
    shapes = np.stack([describe_mask(case) for case in cases])
    spread = shapes.std(0) + 1e-6

    def predict(request: Request) -> Hu:
        of_row = np.abs(rows - design(request.row)).sum(1)
        of_shape = (np.abs(shapes - describe_mask(request.case)) / spread).mean(1)
        order = np.argsort(of_row + SHAPE_WEIGHT * of_shape, kind="stable")
        source = cases[order[request.draw % len(order)]]
        return transfer(source.scan(), source.chest, request.case.chest)

    return predict


def main(argv: Sequence[str] | None = None) -> None:
    """Train or generate."""
    run_stage(argv, __doc__ or "", train, load)


if __name__ == "__main__":
    main()
