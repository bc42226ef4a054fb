"""Known numberings of masks with many labels, whose lungs are not labels 1 and 2."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.checks.intensities import LUNG_MEDIAN_HU
from data.cohort import IMAGES
from data.load_cohort import files_by_case
from data.volumes import load_volume
from options.base_options import AIRWAY_LABEL, LUNG_LABELS, DataOptions
from util.cli import UserError
from util.volume_inputs import MAX_ONE_HOT

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelScheme:
    """Labels of lungs and airways in a numbering.

    Attributes:
        name: Where masks with it come from.
        lungs: Labels of the lungs' lobes, the left ones first.
        airway: Label of the airways, or of the trachea.
    """

    name: str
    lungs: tuple[int, ...]
    airway: int


SCHEMES = (
    LabelScheme("TotalSegmentator", (10, 11, 12, 13, 14), 16),
    LabelScheme("MAISI or VISTA3D", (28, 29, 30, 31, 32), 132),
)


def recognise_labels(options: DataOptions) -> DataOptions:
    """Return the options with the lungs of masks of many labels, where a scan shows which they are.

    With more than 16 labels, labels 1 and 2 are rarely lungs. Unless the first scan has lungs
    there, it is searched with the numberings that are known: lungs have the density of lungs in it.
    Labels that a user gave stay, as does everything that cannot be read, which is checked later.
    """
    given = (options.lung_labels, options.airway_label) != (LUNG_LABELS, AIRWAY_LABEL)
    if given or not options.terms.is_ct or not options.dataroot:
        return options
    root = Path(options.dataroot)
    try:
        masks = files_by_case(root / options.mask_folder)
        images = files_by_case(root / IMAGES)
        case = next(iter(masks))
        labels = load_volume(masks[case]).array
        if len(np.unique(labels)) <= MAX_ONE_HOT or case not in images:
            return options
        scan = load_volume(images[case]).array
    except (OSError, UserError):
        return options
    own = LabelScheme("", options.lung_labels, options.airway_label)
    if scan.shape != labels.shape or _fits(own, scan, labels):
        return options
    for scheme in SCHEMES:
        if _fits(scheme, scan, labels):
            log.info(
                "The masks are numbered as those of %s: labels %s are the lungs and %d the airways "
                "(--lung_labels, --airway_label).",
                scheme.name,
                ", ".join(map(str, scheme.lungs)),
                scheme.airway,
            )
            return replace(options, lung_labels=scheme.lungs, airway_label=scheme.airway)
    return options


def _fits(scheme: LabelScheme, scan: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether the lungs of a numbering have the density of lungs."""
    lungs = scan[np.isin(labels, scheme.lungs)]
    low, high = LUNG_MEDIAN_HU
    return bool(lungs.size) and low <= float(np.median(lungs)) <= high
