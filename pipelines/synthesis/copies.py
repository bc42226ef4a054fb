"""Search for copies of training scans among synthetic volumes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from data.cohort import Case
from data.geometry import Volume, resample
from data.resampling import patient_of
from data.volumes import load_volume
from pipelines.evaluation.detail import detail_vector
from pipelines.evaluation.memorisation import MIN_REFERENCES, CopyCheck, NearestScan, copy_threshold
from pipelines.synthesis.deform import apply_deformation
from util.cli import counted
from util.progress import progress_bar

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SyntheticVolume:
    """A volume and the mask that it was generated from.

    Attributes:
        hu: The volume in HU, on the model's grid.
        labels: The mask, on the grid of the source case's file.
        source: The case whose mask, or row and grid, were used.
        deformation: The map from the source's mask to it; None where the mask is a drawn shape.
    """

    hu: Volume
    labels: Volume
    source: Case
    deformation: sitk.Transform | None


@dataclass(frozen=True)
class CopySearch:
    """Comparison of volumes with training scans.

    A volume is compared with every training scan as `CopyCheck` does, and with the scan of the case
    whose mask it was made from, as it is and deformed with that mask. A mask alone determines much
    of its scan's detail, so this scan needs its own threshold. It comes from cases outside the
    training split: their volumes are like their scans only because of the mask.

    Attributes:
        check: The training scans.
        scans: Their cases, by id.
        lungs: Labels of the lungs.
        same_mask_threshold: Below this distance to the scan of its mask a volume is a copy; 0 where
            the threshold is not known.
    """

    check: CopyCheck
    scans: Mapping[str, Case]
    lungs: Sequence[int]
    same_mask_threshold: float = 0.0

    @classmethod
    def from_cases(
        cls, cases: Sequence[Case], lungs: Sequence[int], patient_column: str = ""
    ) -> CopySearch:
        """Read the training scans.

        Args:
            cases: Their cases.
            lungs: Labels of the lungs.
            patient_column: Column that names the patient; "" where each scan is of another one.

        Raises:
            UserError: Fewer than two scans.
        """
        scans = {case.id: case for case in cases if case.image is not None}
        vectors = []
        for case in progress_bar(scans.values(), "training scans", "scan"):
            assert case.image is not None
            hu = load_volume(case.image)
            vectors.append(_detail(hu, load_volume(case.mask).array, lungs))
        details = np.stack(vectors) if vectors else np.empty((0, 1))
        patients = [patient_of(case, patient_column) for case in scans.values()]
        return cls(CopyCheck.from_scans(list(scans), details, patients=patients), scans, lungs)

    def with_same_mask_threshold(self, distances: Sequence[float]) -> CopySearch:
        """Return the search with the threshold for the scan of a volume's own mask.

        Args:
            distances: `distance_to_source` of cases outside the training split.
        """
        if len(distances) < MIN_REFERENCES:
            log.warning(
                "Outside the training split: %s with scans. %d are needed to "
                "distinguish a scan that was deformed along with its mask from the effect of the "
                "mask alone. Such copies are not searched for.",
                counted(len(distances), "case"),
                MIN_REFERENCES,
            )
            return self
        threshold = copy_threshold(np.asarray(distances, float))
        return replace(self, same_mask_threshold=threshold)

    def distance_to_source(self, volume: SyntheticVolume) -> float:
        """Return the distance to the scan of the mask's case, deformed as the mask was."""
        scan = volume.source.image
        assert scan is not None and volume.deformation is not None
        deformed = apply_deformation(load_volume(scan), volume.deformation, order=1)
        moved = Volume(deformed, volume.labels.affine)
        warped = _detail(moved, volume.labels.array, self.lungs)[None]
        distance = replace(self.check.image, train=warped)
        return float(distance.distances(self._vector(volume))[0, 0])

    def __call__(self, volume: SyntheticVolume) -> NearestScan:
        """Return the training scan nearest to a volume, in proportion to its threshold."""
        source = volume.source.id
        usual = self.check.image.threshold
        same_mask = 0.0 if volume.deformation is None else self.same_mask_threshold
        candidates = []
        distances = self.check.image.distances(self._vector(volume))[0]
        for case, distance in zip(self.check.cases, distances, strict=True):
            threshold = same_mask if same_mask and case == source else usual
            candidates.append(NearestScan(case, float(distance), threshold))
        if same_mask and source in self.scans:
            distance = self.distance_to_source(volume)
            candidates.append(NearestScan(f"{source}, deformed", distance, same_mask))
        return max(candidates, key=lambda scan: scan.threshold / max(scan.distance, 1e-9))

    def _vector(self, volume: SyntheticVolume) -> NDArray[np.float32]:
        """Return `(1, D)` the detail on the mask's grid, which the model's may differ from."""
        labels = volume.labels
        hu = resample(volume.hu, grid=(labels.shape, labels.affine))
        return _detail(hu, labels.array, self.lungs)[None]


def _detail(hu: Volume, labels: NDArray[np.integer], lungs: Sequence[int]) -> NDArray[np.float32]:
    return detail_vector(hu.array, hu.spacing, np.isin(labels, lungs))
