"""Regions of a case, by the modality of its cohort."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

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
        Those of `chest_regions` for chest CT, else those of `label_regions`. Lungs, sides, thirds
        and depths hold their lesions, which are regions of their own, too (`label_<k>`).
    """
    if options.terms.is_ct:
        lungs = options.lung_labels
        whole = fill_lesions(labels, options.lesion_labels, lungs)
        regions = chest_regions(whole, spacing, lungs, options.airway_label)
        if whole is not labels:
            for label in np.unique(labels):
                regions[f"label_{label}"] = labels == label
        return regions
    return label_regions(labels, options.lung_labels)


def fill_lesions(
    labels: NDArray[np.integer], lesions: Sequence[int], lungs: Sequence[int]
) -> NDArray[np.integer]:
    """Return a mask whose lesions have the label of the nearest lung; the same where it has none.

    Args:
        labels: `(X, Y, Z)`.
        lesions: Labels of lesions.
        lungs: Labels of the lungs.
    """
    inside = np.isin(labels, lesions)
    lung = np.isin(labels, lungs)
    if not inside.any() or not lung.any():
        return labels
    nearest = ndimage.distance_transform_edt(~lung, return_distances=False, return_indices=True)
    x, y, z = nearest[:, inside]
    filled = labels.copy()
    filled[inside] = labels[x, y, z]
    return filled
