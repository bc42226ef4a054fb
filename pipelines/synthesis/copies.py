"""Whether a volume made from a deformed mask repeats a training scan, as it is or deformed along
with the mask.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from tqdm import tqdm

from data.cohort import Case
from data.geometry import Volume, resample
from data.volumes import load_volume
from pipelines.evaluation.detail import detail_vector
from pipelines.evaluation.memorisation import MIN_REFERENCES, CopyCheck, copy_threshold
from pipelines.synthesis.deform import apply_deformation
from util.cli import main_rank

log = logging.getLogger(__name__)


class Nearest(NamedTuple):
    """The training scan nearest to a volume, its distance, and the distance below which the volume
    is a copy.
    """

    case: str = ""
    distance: float = 0.0
    threshold: float = 0.0

    @property
    def copied(self) -> bool:
        return self.distance < self.threshold


@dataclass(frozen=True)
class CopySearch:
    """Compares volumes with training scans.

    A volume is held against every training scan as `CopyCheck` does, and against the scan of the
    case whose mask it was made from, as it is and deformed with that mask. A mask tells much of its
    scan's detail by itself, so that this scan needs a threshold of its own: from cases that the
    generator never saw, whose volumes are like their scans for the mask alone.

    Attributes:
        check: The training scans.
        scans: Their cases, by id.
        lungs: Labels of the lungs.
        same_mask: Below this distance to the scan of its mask a volume is a copy; 0 where that
            cannot be told.
    """

    check: CopyCheck
    scans: Mapping[str, Case]
    lungs: Sequence[int]
    same_mask: float = 0.0

    @staticmethod
    def from_cases(cases: Sequence[Case], lungs: Sequence[int]) -> CopySearch:
        """Reads the training scans; raises `UserError` for fewer than two."""
        scans = {case.id: case for case in cases if case.image is not None}
        vectors = []
        for case in tqdm(scans.values(), "training scans", unit="scan", disable=not main_rank()):
            assert case.image is not None
            vectors.append(_detail(load_volume(case.image), load_volume(case.mask).array, lungs))
        return CopySearch(
            CopyCheck.from_scans(list(scans), np.stack(vectors) if vectors else np.empty((0, 1))),
            scans,
            lungs,
        )

    def with_same_mask_threshold(self, distances: Sequence[float]) -> CopySearch:
        """With the threshold that follows from the distances of `to_source` of cases that the
        generator never saw.
        """
        if len(distances) < MIN_REFERENCES:
            log.warning(
                "Only %d cases with scans lie outside the training split; %d are needed to tell a "
                "scan that was deformed along with its mask from what the mask alone explains. "
                "That is not looked for.",
                len(distances),
                MIN_REFERENCES,
            )
            return self
        return replace(self, same_mask=copy_threshold(np.asarray(distances, float)))

    def distance_to_source(
        self, made: Volume, labels: Volume, source: Case, drawn: sitk.Transform
    ) -> float:
        """Distance of a volume to the scan of its mask's case, deformed by the map that deformed
        the mask.

        Args:
            made: The volume, HU.
            labels: The deformed mask, on the grid of the case's file.
            source: The case, which has a scan.
            drawn: The map (see `pipelines.synthesis.deform.draw`).
        """
        assert source.image is not None
        moved = Volume(apply_deformation(load_volume(source.image), drawn, order=1), labels.affine)
        warped = _detail(moved, labels.array, self.lungs)[None]
        own = self._vector(made, labels)
        return float(replace(self.check.image, train=warped).distances(own)[0, 0])

    def __call__(
        self, made: Volume, labels: Volume, source: Case, drawn: sitk.Transform
    ) -> Nearest:
        """The training scan that a volume is nearest to, in proportion to what makes a copy; see
        `to_source`.
        """
        distances, usual = (
            self.check.image.distances(self._vector(made, labels))[0],
            self.check.image.threshold,
        )
        found = [
            Nearest(case, float(distance), self.same_mask or usual if case == source.id else usual)
            for case, distance in zip(self.check.cases, distances, strict=True)
        ]
        if self.same_mask and source.id in self.scans:
            found.append(
                Nearest(
                    f"{source.id}, deformed",
                    self.distance_to_source(made, labels, source, drawn),
                    self.same_mask,
                )
            )
        return max(found, key=lambda n: n.threshold / max(n.distance, 1e-9))

    def _vector(self, made: Volume, labels: Volume) -> NDArray[np.float32]:
        # On the mask's grid, which the model's may differ from.
        return _detail(
            resample(made, grid=(labels.shape, labels.affine)), labels.array, self.lungs
        )[None]


def _detail(hu: Volume, labels: NDArray[np.integer], lungs: Sequence[int]) -> NDArray[np.float32]:
    return detail_vector(hu.array, voxel_sizes(hu.affine), np.isin(labels, lungs))
