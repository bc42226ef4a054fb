"""Masks of new cases: those of training cases, deformed or as they stand, or drawn shapes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from data.cache import load_mask
from data.checks.masks import load_labels
from data.cohort import Case
from data.geometry import Volume
from data.regions import fill_lesions
from options.expand_options import DeformOptions
from pipelines.evaluation.memorisation import NearestScan
from pipelines.synthesis.deform import deform_plausibly
from pipelines.synthesis.planning.planned_case import PlannedCase
from pipelines.synthesis.planning.source_texts import SourceTexts
from pipelines.synthesis.random_streams import SHAPE_STREAM
from pipelines.synthesis.shape_model import MAX_MASKS, MaskLabels, ShapeModel
from util.cli import counted
from util.progress import progress_bar

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewMask:
    """The mask of a new case, on the grid of its source's mask.

    Attributes:
        labels: `(X, Y, Z)`.
        deformation: How the source's mask and scan are mapped to it; None for a drawn shape, which
            no scan has.
        nearest: The training mask nearest to a drawn shape.
        problems: Why a drawn shape cannot be used; empty for a good mask.
    """

    labels: NDArray[np.integer]
    deformation: sitk.Transform | None
    nearest: NearestScan = field(default_factory=NearestScan)
    problems: Sequence[str] = ()


# Returns the mask of a case; the number of the draw decides it, beside the case's seed.
MaskMaker = Callable[[PlannedCase, int], NewMask]


def given_mask(planned: PlannedCase, number: int) -> NewMask:
    """Return the source's mask as it stands."""
    return NewMask(load_mask(planned.source).array, sitk.Transform(3, sitk.sitkIdentity))


@dataclass(frozen=True)
class DeformedMasks:
    """The sources' masks, deformed smoothly."""

    options: DeformOptions

    def __call__(self, planned: PlannedCase, number: int) -> NewMask:
        """Return the deformed mask of the source."""
        source = load_mask(planned.source)
        seed = [planned.seed, number]
        deformed = deform_plausibly(source, self.options, seed, planned.source.mask)
        return NewMask(deformed.labels, deformed.deformation)


@dataclass(frozen=True)
class ShapeMasks:
    """Masks drawn from a statistical shape model for the rows of the new cases."""

    model: ShapeModel

    @classmethod
    def from_cases(
        cls,
        texts: SourceTexts,
        patients: dict[str, str],
        labels: MaskLabels,
        planned: Sequence[PlannedCase] = (),
        seed: int = 0,
    ) -> ShapeMasks:
        """Learn shapes from the masks of cases.

        Args:
            texts: The cases, with the template of their rows.
            patients: Patient by case.
            planned: New cases: rows beyond the range of training are warned of.
            seed: Decides which masks are learned from, where there are more than `MAX_MASKS`.

        Raises:
            UserError: See `ShapeModel.from_masks`.
        """
        cases = list({case.id: case for case in texts.cases}.values())
        if len(cases) > MAX_MASKS:
            log.info("The shapes are learned from %d of %d masks.", MAX_MASKS, len(cases))
            chosen = np.random.default_rng([seed, SHAPE_STREAM]).permutation(len(cases))
            cases = [cases[k] for k in sorted(chosen[:MAX_MASKS])]
        template = texts.reader.template
        progress = progress_bar(cases, "training masks", "mask")
        masks = [_anatomy(case, labels) for case in progress]
        rows = [template.consistent(case.row).row for case in cases]
        ids = [case.id for case in cases]
        people = [patients[case] for case in ids]
        model = ShapeModel.from_masks(ids, masks, rows, people, labels, template)
        log.info(
            "Shapes of %s: %s; conditioned on %s.",
            counted(len(cases), "mask"),
            counted(model.components.n_components_, "component"),
            ", ".join(model.features.columns) or "nothing, because no column varies",
        )
        for column, limits in model.features.out_of_range([case.row for case in planned]).items():
            log.warning(
                "--masks shape: %s of some new rows lies beyond that of the training cases (%s); "
                "their masks are drawn for the nearest value of that range.",
                column,
                limits,
            )
        return cls(model)

    def __call__(self, planned: PlannedCase, number: int) -> NewMask:
        """Return a mask drawn for the row, on the grid of the source's mask."""
        source = _anatomy(planned.source, self.model.labels)
        drawn = self.model.draw_plausibly(planned.row, source, [planned.seed, number])
        return NewMask(drawn.labels, None, drawn.nearest, drawn.problems)


def _anatomy(case: Case, labels: MaskLabels) -> Volume:
    """Return a mask without lesions, and without the body that is drawn on reading."""
    mask = load_labels(case.mask)
    return Volume(fill_lesions(mask.array, labels.lesions, labels.lungs), mask.affine)
