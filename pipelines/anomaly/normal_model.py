"""Normal differences between a scan and the volumes generated from its mask and row.

Noise alone underestimates their spread: it leaves out what the generator cannot know (vessels,
fissures) and gets wrong. The difference from the generated mean is therefore compared with such
differences on other scans at similar voxels. Their mean (the generator's bias) and their size are
regressed on features of a voxel that are known without the scan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingRegressor

from util.cli import UserError

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

K = TypeVar("K")

FOLDS = 5
MAX_VOXELS = 150_000  # of all calibration scans together; more change nothing
MIN_SPREAD_HU = 2.0
MIN_CALIBRATION_SCANS = 20  # with fewer a false-alarm rate is a guess
ABSOLUTE_TO_SD = float(np.sqrt(np.pi / 2))  # of a normal distribution


@dataclass(frozen=True)
class VoxelSample:
    """Features `(N, 8)` and differences `(N,)` of voxels; see `ScanComparison`."""

    features: NDArray[np.float32]
    differences: NDArray[np.float32]


@dataclass(frozen=True)
class ScanComparison:
    """A scan and the volumes generated from its mask and row, `(X, Y, Z)` each, RAS.

    Attributes:
        case: Name of the case.
        real: The scan, HU, clipped to the generator's window.
        mean: Mean of the generated volumes, HU.
        sd: Their SD, HU.
        lungs: The lungs, whose voxels are judged.
        spacing: Voxel size in mm.
        annotated: Voxels of known findings, which never count as normal, or None.
    """

    case: str
    real: Array
    mean: Array
    sd: Array
    lungs: Mask
    spacing: tuple[float, float, float]
    annotated: Mask | None = None

    def difference(self, size_mm: float) -> Array:
        """Return scan minus generated mean in HU, averaged in the lungs over about `size_mm`."""
        sigma = size_mm / 4 / np.asarray(self.spacing)
        weight = ndimage.gaussian_filter(self.lungs.astype(np.float32), sigma)
        inside = np.where(self.lungs, self.real - self.mean, 0).astype(np.float32)
        smooth = ndimage.gaussian_filter(inside, sigma)
        return np.where(self.lungs, smooth / np.maximum(weight, 1e-3), 0).astype(np.float32)

    def sample_voxels(self, size_mm: float, count: int) -> VoxelSample:
        """Draw at most `count` lung voxels at random, without annotated ones."""
        usable = np.ones(int(self.lungs.sum()), bool)
        if self.annotated is not None:
            usable = ~self.annotated[self.lungs]
        chosen = np.random.default_rng(0).permutation(np.flatnonzero(usable))[:count]
        differences = self.difference(size_mm)[self.lungs]
        return VoxelSample(self.features()[chosen], differences[chosen])

    def features(self) -> NDArray[np.float32]:
        """Return features `(N, 8)` of each lung voxel that are known without the scan.

        They are the generated mean, the same smoothed, its gradient, the generated SD, the distance
        to the pleura in mm, and the position within the lungs' extent.
        """
        smooth = ndimage.gaussian_filter(self.mean, 1.5)
        edge = ndimage.gaussian_gradient_magnitude(self.mean, 1.0)
        depth = ndimage.distance_transform_edt(self.lungs, sampling=self.spacing)
        index = np.argwhere(self.lungs)
        low = index.min(0)
        high = index.max(0)
        position = (index - low) / np.maximum(high - low, 1)
        columns = [v[self.lungs] for v in (self.mean, smooth, edge, self.sd, depth)]
        return np.column_stack([*columns, position]).astype(np.float32)


class LazyScans(Sequence[ScanComparison]):
    """Scans that are read on access, so that only one is in memory."""

    def __init__(self, keys: Sequence[K], read: Callable[[K], ScanComparison]) -> None:
        self.keys = keys
        self.read = read

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        return self.read(self.keys[index])


@dataclass(frozen=True)
class NormalModel:
    """Normal differences from the generated mean, by the features of a voxel.

    Attributes:
        bias: Regression of the difference.
        spread: Regression of the absolute difference from the bias.
        size_mm: Diameter of the findings searched for.
    """

    bias: HistGradientBoostingRegressor
    spread: HistGradientBoostingRegressor
    size_mm: float

    @classmethod
    def from_samples(cls, samples: Sequence[VoxelSample], size_mm: float) -> NormalModel:
        """Fit to voxels of scans without findings."""
        x = np.concatenate([sample.features for sample in samples])
        y = np.concatenate([sample.differences for sample in samples])
        bias = _make_regressor().fit(x, y)
        spread = _make_regressor().fit(x, np.abs(y - bias.predict(x)))
        return cls(bias, spread, size_mm)

    def deviation_map(self, scan: ScanComparison) -> Array:
        """Return the deviation of each lung voxel from normal, in normal spreads (SD).

        It is positive above normal, and 0 outside the lungs.
        """
        features = scan.features()
        spread = np.maximum(self.spread.predict(features) * ABSOLUTE_TO_SD, MIN_SPREAD_HU)
        difference = scan.difference(self.size_mm)[scan.lungs]
        deviation = np.zeros(scan.real.shape, np.float32)
        deviation[scan.lungs] = (difference - self.bias.predict(features)) / spread
        return deviation


def _make_regressor() -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(max_iter=80, min_samples_leaf=100, random_state=0)


@dataclass(frozen=True)
class Calibration:
    """A normal model of scans without findings, and its false alarms on them.

    Attributes:
        normal_model: Fitted to all scans.
        held_out: For each scan the model fitted to scans of other folds.
        highest: For each scan the largest absolute value of its map by that model, outside
            annotated voxels.
        threshold: A region whose peak exceeds it is strong.
        false_alarms: Share of scans that may have a strong region.
    """

    normal_model: NormalModel
    held_out: Mapping[str, NormalModel]
    highest: Mapping[str, float]
    threshold: float
    false_alarms: float

    @classmethod
    def from_scans(
        cls, scans: Sequence[ScanComparison], size_mm: float, false_alarms: float
    ) -> Calibration:
        """Fit the model, and set the threshold that the share `false_alarms` of scans exceeds.

        Each scan is judged by a model of other scans.

        Args:
            scans: Scans without findings.
            size_mm: Diameter of the findings searched for.
            false_alarms: Share of scans that may have a strong region.

        Raises:
            UserError: Fewer than two scans.
        """
        if len(scans) < 2:
            raise UserError(
                f"The map is calibrated on {len(scans)} scan; it takes two at least, and "
                f"{MIN_CALIBRATION_SCANS} for a meaningful rate of false alarms. Give more with "
                "--clean."
            )
        folds = min(FOLDS, len(scans))
        samples = [scan.sample_voxels(size_mm, MAX_VOXELS // len(scans)) for scan in scans]
        held_out: dict[str, NormalModel] = {}
        highest: dict[str, float] = {}
        for fold in range(folds):
            others = [sample for i, sample in enumerate(samples) if i % folds != fold]
            model = NormalModel.from_samples(others, size_mm)
            for i in range(fold, len(scans), folds):
                scan = scans[i]
                deviation = np.abs(model.deviation_map(scan))
                if scan.annotated is not None:
                    deviation = deviation[~scan.annotated]
                held_out[scan.case] = model
                highest[scan.case] = float(deviation.max())
        threshold = conformal_threshold(list(highest.values()), false_alarms)
        model = NormalModel.from_samples(samples, size_mm)
        return cls(model, held_out, highest, threshold, false_alarms)

    def deviation_map(self, scan: ScanComparison) -> Array:
        """Return the map of a scan by a model that was not fitted to it."""
        return self.held_out.get(scan.case, self.normal_model).deviation_map(scan)

    def false_alarm_rate(self) -> float:
        """Return the share of scans with a strong region, each by a threshold of the others."""
        values = list(self.highest.values())
        alarms = []
        for i, value in enumerate(values):
            others = values[:i] + values[i + 1 :]
            alarms.append(value > conformal_threshold(others, self.false_alarms))
        return float(np.mean(alarms))


def conformal_threshold(highest: Sequence[float], false_alarms: float) -> float:
    """Return the value that a new scan exceeds with at most this probability.

    It is the order statistic of split conformal prediction.
    """
    ranked = np.sort(highest)
    rank = int(np.ceil((1 - false_alarms) * (len(ranked) + 1)))
    return float(ranked[min(len(ranked), rank) - 1])
