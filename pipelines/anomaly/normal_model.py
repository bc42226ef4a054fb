"""How far a scan lies outside the spread of volumes generated from its own mask and row, voxel by
voxel.

Noise alone underestimates that spread: it leaves out what the generator cannot know (vessels,
fissures) and gets wrong. So the difference from the generated mean is judged by what such
differences are on other scans at voxels like it: their mean (the generator's standing error) and
their size are regressed on what is known of a voxel before the scan is seen.
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
Sample = tuple[NDArray[np.float32], NDArray[np.float32]]  # features (N, 8) and differences (N,)

K = TypeVar("K")

FOLDS = 5
MAX_VOXELS = 150_000  # of all calibration scans together; more change nothing
MIN_SPREAD_HU = 2.0
MIN_CALIBRATION_SCANS = 20  # scans below which a false-alarm rate is a guess
ABSOLUTE_TO_SD = float(np.sqrt(np.pi / 2))  # of a normal distribution


@dataclass(frozen=True)
class ScanComparison:
    """A scan and what was generated from its mask and row, `(X, Y, Z)` each, RAS.

    Attributes:
        case: Its name.
        real: The scan, HU, clipped to the generator's window.
        mean: Mean of the generated volumes, HU.
        sd: Their SD, HU.
        where: The voxels judged (the lungs).
        spacing: Voxel size in mm.
        marked: Voxels of known findings, which never count as usual; None for none.
    """

    case: str
    real: Array
    mean: Array
    sd: Array
    lungs: Mask
    spacing: tuple[float, float, float]
    annotated: Mask | None = None

    def difference(self, size_mm: float) -> Array:
        """Scan minus generated mean in HU, averaged within `where` over about `size_mm`; 0
        elsewhere.
        """
        sigma = size_mm / 4 / np.asarray(self.spacing)
        weight = ndimage.gaussian_filter(self.lungs.astype(np.float32), sigma)
        smooth = ndimage.gaussian_filter(
            np.where(self.lungs, self.real - self.mean, 0).astype(np.float32), sigma
        )
        return np.where(self.lungs, smooth / np.maximum(weight, 1e-3), 0).astype(np.float32)

    def sample_voxels(self, size_mm: float, most: int) -> Sample:
        """Features and difference of at most so many judged voxels, drawn at random; marked ones
        are left out.
        """
        counts = np.flatnonzero(
            np.ones(int(self.lungs.sum()), bool)
            if self.annotated is None
            else ~self.annotated[self.lungs]
        )
        chosen = np.random.default_rng(0).permutation(counts)[:most]
        return self.features()[chosen], self.difference(size_mm)[self.lungs][chosen]

    def features(self) -> NDArray[np.float32]:
        """What is known of each judged voxel without the scan, `(N, 8)`: generated mean, the same
        smoothed, its gradient, the generated SD, the distance to the pleura in mm, and the place
        within the lungs' extent.
        """
        smooth = ndimage.gaussian_filter(self.mean, 1.5)
        edge = ndimage.gaussian_gradient_magnitude(self.mean, 1.0)
        depth = ndimage.distance_transform_edt(self.lungs, sampling=self.spacing)
        index = np.argwhere(self.lungs)
        low, high = index.min(0), index.max(0)
        place = (index - low) / np.maximum(high - low, 1)
        columns = [v[self.lungs] for v in (self.mean, smooth, edge, self.sd, depth)]
        return np.column_stack([*columns, place]).astype(np.float32)


class LazyScans(Sequence[ScanComparison]):
    """Scans that are read when they are looked at, so that only one is in memory.

    Args:
        keys: What they are read by.
        read: Gives the scan of a key.
    """

    def __init__(self, keys: Sequence[K], read: Callable[[K], ScanComparison]) -> None:
        self.keys, self.read = keys, read

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        return self.read(self.keys[index])


@dataclass(frozen=True)
class NormalModel:
    """What differences from the generated mean are usual, by the features of a voxel; see
    `Compared`.
    """

    bias: HistGradientBoostingRegressor
    spread: HistGradientBoostingRegressor
    size_mm: float

    @staticmethod
    def from_samples(samples: Sequence[Sample], size_mm: float) -> NormalModel:
        """Learns from voxels of scans without findings.

        Args:
            samples: Of each scan, see `Compared.sample`.
            size_mm: Diameter of the findings looked for.
        """
        x, y = (np.concatenate(part) for part in zip(*samples, strict=True))
        bias, spread = (
            HistGradientBoostingRegressor(max_iter=80, min_samples_leaf=100, random_state=0)
            for _ in range(2)
        )
        bias.fit(x, y)
        return NormalModel(bias, spread.fit(x, np.abs(y - bias.predict(x))), size_mm)

    def deviation_map(self, scan: ScanComparison) -> Array:
        """How many usual spreads (SD) each voxel lies above (+) or below (-) what is usual; 0 where
        nothing is judged.
        """
        known = scan.features()
        spread = np.maximum(self.spread.predict(known) * ABSOLUTE_TO_SD, MIN_SPREAD_HU)
        found = np.zeros(scan.real.shape, np.float32)
        found[scan.where] = (
            scan.difference(self.size_mm)[scan.where] - self.bias.predict(known)
        ) / spread
        return found


@dataclass(frozen=True)
class Calibration:
    """`Usual` fitted to scans without findings, and how often it raises a false alarm there.

    Attributes:
        usual: Fitted to all scans.
        held_out: For each scan the fit to scans of other folds.
        highest: For each scan the largest absolute value of its map by that fit, outside marked
            voxels.
        threshold: What a strong region exceeds.
    """

    normal_model: NormalModel
    held_out: Mapping[str, NormalModel]
    highest: Mapping[str, float]
    threshold: float
    false_alarms: float

    @staticmethod
    def from_scans(
        scans: Sequence[ScanComparison], size_mm: float, false_alarms: float
    ) -> Calibration:
        """Fits, and sets the threshold that the share `false_alarms` of scans exceeds, each judged
        by a fit to others.

        Raises:
            UserError: Fewer than two scans.
        """
        if len(scans) < 2:
            raise UserError(
                f"The map is calibrated on {len(scans)} scan; it takes two at least, and {MIN_CALIBRATION_SCANS} for "
                "a rate of false alarms that means something. Give more with --clean."
            )
        folds = min(FOLDS, len(scans))
        samples = [scan.sample(size_mm, MAX_VOXELS // len(scans)) for scan in scans]
        held_out: dict[str, NormalModel] = {}
        highest: dict[str, float] = {}
        for fold in range(folds):
            usual = NormalModel.from_samples(
                [s for i, s in enumerate(samples) if i % folds != fold], size_mm
            )
            for scan in (scans[i] for i in range(fold, len(scans), folds)):
                found = np.abs(usual.deviation_map(scan))
                held_out[scan.case] = usual
                highest[scan.case] = float(
                    found.max() if scan.marked is None else found[~scan.marked].max()
                )
        threshold = conformal_threshold(list(highest.values()), false_alarms)
        return Calibration(
            NormalModel.from_samples(samples, size_mm), held_out, highest, threshold, false_alarms
        )

    def deviation_map(self, scan: ScanComparison) -> Array:
        """The map of a scan, by a fit that has not seen it."""
        return self.held_out.get(scan.case, self.normal_model).map(scan)

    def false_alarm_rate(self) -> float:
        """Share of the scans with a strong region, each against a threshold set without it."""
        values = list(self.highest.values())
        others = (values[:i] + values[i + 1 :] for i in range(len(values)))
        return float(
            np.mean(
                [
                    v > conformal_threshold(o, self.false_alarms)
                    for v, o in zip(values, others, strict=True)
                ]
            )
        )


def conformal_threshold(highest: Sequence[float], false_alarms: float) -> float:
    """The value that a new scan exceeds with at most this probability: the order statistic of split
    conformal prediction.
    """
    ranked = np.sort(highest)
    return float(
        ranked[min(len(ranked) - 1, int(np.ceil((1 - false_alarms) * (len(ranked) + 1))) - 1)]
    )
