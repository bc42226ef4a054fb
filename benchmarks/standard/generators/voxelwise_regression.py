"""Regression of the HU at every place in the lungs on the row: conditional means, no texture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's packages
from benchmarks.report.kinds_baselines import location_means, locations, smooth_in_lungs
from benchmarks.standard.generators.cases import Hu, read_cases
from benchmarks.standard.generators.design import Design
from benchmarks.standard.generators.stages import Predict, run_stage
from data.phantom.kinds.chest import Chest

FILE = "coefficients.npy"


def with_constant(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a design row with a constant in front."""
    return np.concatenate([[1.0], values])


def train(folder: Path, work: Path) -> None:
    """Fit the training cases by least squares at every location, and save the coefficients."""
    cases = read_cases(folder)
    design = Design.from_cases(cases)
    rows = np.stack([with_constant(design(case.row)) for case in cases])
    means = np.stack([location_means(case.chest, case.scan()) for case in cases])
    # A location that a case lacks counts as the mean of the others.
    known = np.isfinite(means)
    average = np.where(known, means, 0).sum(0) / np.maximum(known.sum(0), 1)
    solution = np.linalg.lstsq(rows, np.where(known, means, average), rcond=None)[0]
    np.save(work / FILE, solution)
    design.save(work)


def predict(coefficients: NDArray[np.float64], row: NDArray[np.float64], chest: Chest) -> Hu:
    """Return the mean volume of a mask for a row, in HU."""
    values = with_constant(row) @ coefficients
    return smooth_in_lungs(values[locations(chest)].astype(np.float32), chest)


def load(_: Path, work: Path) -> Predict:
    """Return the generator of the mean of a request; noise draws do not differ."""
    coefficients, design = np.load(work / FILE), Design.load(work)
    return lambda request: predict(coefficients, design(request.row), request.case.chest)


def main(argv: Sequence[str] | None = None) -> None:
    """Train or generate."""
    run_stage(argv, __doc__ or "", train, load)


if __name__ == "__main__":
    main()
