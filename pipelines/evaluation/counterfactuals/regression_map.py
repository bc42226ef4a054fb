"""A baseline of counterfactuals: the real scan plus a map of regression coefficients.

Every lung is stretched to a coarse grid of cells. In each cell the mean HU of the real scans is
regressed on the attributes; the difference that the coefficients give is added to the scan. It is
what the cohort shows without any generator: smooth, the same for all patients but for the shape of
their lungs, and without texture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold

CELLS = (6, 8, 10)  # of each lung: left-right, back-front, foot-head
FOLDS = 5

Hu = NDArray[np.floating]
Labels = NDArray[np.integer]
Row = Mapping[str, str]


@dataclass(frozen=True)
class LungCells:
    """The cells of one patient's lungs, each lung's bounding box divided into `CELLS`.

    Attributes:
        voxels: Flat indices of each lung's voxels.
        places: Their places `(3, n)` in units of cells.
        shape: Shape of the volume.
    """

    voxels: tuple[NDArray[np.intp], ...]
    places: tuple[NDArray[np.float64], ...]
    shape: tuple[int, ...]

    @classmethod
    def from_labels(cls, labels: Labels, lung_labels: Sequence[int]) -> LungCells | None:
        """Divide the lungs of a mask `(X, Y, Z)`; None without two lungs."""
        voxels, places = [], []
        for label in lung_labels:
            where = np.nonzero(labels == label)
            if not len(where[0]):
                return None
            index = np.array(where, float)
            low, high = index.min(1) - 0.5, index.max(1) + 0.5
            places.append((index - low[:, None]) / (high - low)[:, None] * np.array(CELLS)[:, None])
            voxels.append(np.ravel_multi_index(where, labels.shape))
        return cls(tuple(voxels), tuple(places), labels.shape)

    def means(self, hu: Hu) -> NDArray[np.float64]:
        """Return the mean HU of each cell, `(lungs * cells,)`; NaN where a cell holds no lung."""
        flat, total = hu.ravel(), int(np.prod(CELLS))
        means = []
        for voxels, places in zip(self.voxels, self.places, strict=True):
            inside = np.minimum(places.astype(int), np.array(CELLS)[:, None] - 1)
            cell = np.ravel_multi_index(tuple(inside), CELLS)
            count = np.bincount(cell, minlength=total)
            mass = np.bincount(cell, flat[voxels], minlength=total)
            means.append(np.where(count > 0, mass / np.maximum(count, 1), np.nan))
        return np.concatenate(means)

    def spread(self, change: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return a change of each cell, as of `means`, interpolated to a volume in HU."""
        volume = np.zeros(self.shape, np.float32)
        lungs = change.reshape(len(self.voxels), *CELLS)
        for voxels, places, cells in zip(self.voxels, self.places, lungs, strict=True):
            values = ndimage.map_coordinates(cells, places - 0.5, order=1, mode="nearest")
            volume.ravel()[voxels] = values
        return volume


@dataclass(frozen=True)
class RegressionMap:
    """Coefficients of every cell, from models that have not seen the case that they change.

    Attributes:
        models: A regression per fold.
        design: Turns rows into terms.
        unseen: Number of the model that was not fitted to a case, by case.
    """

    models: Sequence[LinearRegression]
    design: RowDesign
    unseen: Mapping[str, int]

    @classmethod
    def from_scans(
        cls, means: Mapping[str, NDArray[np.float64]], rows: Mapping[str, Row], seed: int
    ) -> RegressionMap:
        """Regress the cells of real scans on the attributes of their rows.

        Args:
            means: `LungCells.means` by case.
            rows: Formatted values by case and attribute; "" where not known.
            seed: Seed of the folds.
        """
        cases = [case for case in means if case in rows]
        design = RowDesign.from_rows([rows[case] for case in cases])
        x = design.terms([rows[case] for case in cases])
        y = np.stack([means[case] for case in cases])
        # A cell without lung in a patient has the mean of the others there.
        filled = np.where(np.isfinite(y), y, np.nan_to_num(np.nanmean(y, axis=0), nan=0.0))
        models, unseen = [], {}
        folds = KFold(min(FOLDS, len(cases)), shuffle=True, random_state=seed)
        for number, (train, held_out) in enumerate(folds.split(x)):
            models.append(LinearRegression().fit(x[train], filled[train]))
            unseen.update({cases[i]: number for i in held_out})
        return cls(models, design, unseen)

    def change(self, case: str, row: Row, column: str, value: str) -> NDArray[np.float64]:
        """Return the change of each cell of a case where one attribute gets another value."""
        before, after = self.design.terms([row, {**row, column: value}])
        model = self.models[self.unseen[case]]
        return np.asarray(model.coef_ @ (after - before))


@dataclass(frozen=True)
class RowDesign:
    """Terms of rows: numbers as they are, categories as indicators.

    Attributes:
        numbers: Mean of each numeric attribute, which stands for unknown values.
        levels: Values of each other attribute.
    """

    numbers: Mapping[str, float]
    levels: Mapping[str, tuple[str, ...]]

    @classmethod
    def from_rows(cls, rows: Sequence[Row]) -> RowDesign:
        """Decide from the values of all rows which attributes are numbers."""
        numbers, levels = {}, {}
        frame = pd.DataFrame(list(rows)).fillna("")
        for column in frame:
            known = frame.loc[frame[column] != "", column]
            as_numbers = pd.to_numeric(known, errors="coerce")
            if len(known) and as_numbers.notna().all() and as_numbers.nunique() > 2:
                numbers[str(column)] = float(as_numbers.mean())
            else:
                levels[str(column)] = tuple(sorted(set(known)))
        return cls(numbers, levels)

    def terms(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """Return the terms of rows `(n, terms)`; an unknown category has no indicator."""
        columns = []
        for name, mean in self.numbers.items():
            columns.append([float(row[name]) if row.get(name) else mean for row in rows])
        for name, values in self.levels.items():
            for value in values[1:]:
                columns.append([float(row.get(name, "") == value) for row in rows])
        return np.array(columns, float).reshape(len(columns), len(rows)).T
