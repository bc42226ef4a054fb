"""Regions of a case, by the modality of its cohort."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from options.base_options import DataOptions
from util.metrics.regions import Mask, chest_regions, label_regions


def regions_of(
    labels: NDArray[np.integer], spacing: Sequence[float], options: DataOptions
) -> dict[str, Mask]:
    """Return the regions that effects and metrics of a case are measured in.

    Args:
        labels: Label mask `(X, Y, Z)` in RAS.
        spacing: Voxel size in mm.
        options: How the cohort is read.

    Returns:
        Those of `chest_regions` for chest CT, else those of `label_regions`.
    """
    if options.terms.is_ct:
        return chest_regions(labels, spacing, options.lung_labels, options.airway_label)
    return label_regions(labels, options.lung_labels)
