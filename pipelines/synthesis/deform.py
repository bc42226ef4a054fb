"""Smooth random deformations of masks (affine map and B-spline), with checks of plausibility."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from data.geometry import Volume
from options.expand_options import DeformOptions
from util.cli import UserError

MAX_TRIES = 20
# A uniform cubic B-spline folds nowhere if no node moves by more than this share of their distance
# (Choi and Lee 2000).
MAX_NODE_SHIFT = 0.4
BORDER_TOLERANCE = 0.01  # share of a label's voxels that may newly lie at the border
PIECES_TOLERANCE = 0.05  # share that may newly lie away from its largest piece


@dataclass(frozen=True)
class DeformedMask:
    """Deformed labels `(X, Y, Z)` and the map that deformed them."""

    labels: np.ndarray
    deformation: sitk.Transform


def _to_image(volume: Volume) -> sitk.Image:
    """Return a volume in its own frame of mm, whatever its orientation in the world."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
    image.SetSpacing(volume.spacing)
    return image


def random_deformation(
    mask: Volume, options: DeformOptions, rng: np.random.Generator
) -> sitk.Transform:
    """Return a random smooth map over a volume's extent, in mm, that folds nowhere."""
    image = _to_image(mask)
    extent = np.array(mask.shape) * mask.spacing
    mesh = np.maximum(1, extent // options.node_mm).astype(int)
    elastic = sitk.BSplineTransformInitializer(image, mesh.tolist())
    reach = np.minimum(options.elastic_mm, MAX_NODE_SHIFT * extent / mesh)
    nodes = int(np.prod(mesh + 3))
    elastic.SetParameters(np.concatenate([rng.uniform(-r, r, nodes) for r in reach]).tolist())
    affine = sitk.AffineTransform(3)
    angles = rng.uniform(-options.turn, options.turn, 3)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    scales = 1 + rng.uniform(-options.scale, options.scale, 3)
    affine.SetMatrix((rotation * scales).ravel().tolist())
    centre = [(n - 1) / 2 for n in mask.shape]
    affine.SetCenter(image.TransformContinuousIndexToPhysicalPoint(centre))
    return sitk.CompositeTransform([elastic, affine])


def apply_deformation(volume: Volume, deformation: sitk.Transform, order: int = 0) -> np.ndarray:
    """Return a deformed volume `(X, Y, Z)`; beyond its border its last voxel is repeated.

    Args:
        volume: Labels or CT.
        deformation: A map of `random_deformation`.
        order: 0 for labels (nearest neighbour, so that no new label arises), 1 for CT (linear).
    """
    image = _to_image(volume)
    interpolator = sitk.sitkLinear if order else sitk.sitkNearestNeighbor
    moved = sitk.Resample(image, image, deformation, interpolator, 0, image.GetPixelID(), True)
    return np.ascontiguousarray(sitk.GetArrayFromImage(moved).T)


def plausibility_problems(before: np.ndarray, after: np.ndarray, volume_change: float) -> list[str]:
    """Return what is implausible about a deformed mask.

    Labels may be lost, of another volume, in pieces, or cut by the border.

    Args:
        before: Labels `(X, Y, Z)` of the source.
        after: Labels `(X, Y, Z)` deformed.
        volume_change: Largest change of a label's volume, as a share.
    """
    problems = []
    for label in np.unique(before[before != 0]):
        old = before == label
        new = after == label
        if not new.any():
            problems.append(f"label {label} is gone")
            continue
        change = new.sum() / old.sum() - 1
        if abs(change) > volume_change:
            problems.append(f"label {label} changes its volume by {change:+.0%}")
        if _share_at_border(new) > _share_at_border(old) + BORDER_TOLERANCE:
            problems.append(f"label {label} is cut by the border of the volume")
        if _share_of_largest_piece(new) < _share_of_largest_piece(old) - PIECES_TOLERANCE:
            problems.append(f"label {label} falls into pieces")
    return problems


def _share_at_border(region: np.ndarray) -> float:
    """Return the share of a region's voxels that lie at the border of the volume."""
    return 1 - region[1:-1, 1:-1, 1:-1].sum() / region.sum()


def _share_of_largest_piece(region: np.ndarray) -> float:
    """Return the share of a region's voxels in its largest piece (26 neighbours)."""
    pieces, _ = ndimage.label(region, np.ones((3, 3, 3)))
    return float(np.bincount(pieces.ravel())[1:].max() / region.sum())


def deform_plausibly(
    mask: Volume, options: DeformOptions, seed: Sequence[int], source: object
) -> DeformedMask:
    """Deform a mask so that it stays plausible.

    Args:
        mask: Labels.
        options: Size of the deformation, and limits of plausibility.
        seed: Decides the deformation.
        source: The mask's file, for messages.

    Raises:
        UserError: The mask is empty, or none of `MAX_TRIES` deformations is plausible.
    """
    if not mask.array.any():
        raise UserError(
            f"{source} holds nothing but background, so there is nothing to deform. Remove the "
            "case or mend it."
        )
    problems: list[str] = []
    for number in range(MAX_TRIES):
        deformation = random_deformation(mask, options, np.random.default_rng([*seed, number]))
        labels = apply_deformation(mask, deformation)
        problems = plausibility_problems(mask.array, labels, options.volume_change)
        if not problems:
            return DeformedMask(labels, deformation)
    raise UserError(
        f"{source}: none of {MAX_TRIES} deformations is plausible (the last: "
        f"{'; '.join(problems)}). Use a smaller --elastic_mm, --turn or --scale, or a larger "
        "--volume_change."
    )
