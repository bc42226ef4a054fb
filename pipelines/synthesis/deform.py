"""Masks varied smoothly, by an affine map and a B-spline in mm, and checks that what comes out is
still a chest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from data.geometry import Volume, voxel_sizes
from options.expand_options import DeformOptions
from util.cli import UserError

MAX_TRIES = 20
# A uniform cubic B-spline folds nowhere if no node moves by more than this share of their distance
# (Choi and Lee 2000).
INJECTIVE = 0.4
BORDER, PIECES = (
    0.01,
    0.05,
)  # shares of a label's voxels that may newly lie at the border, or away from its largest piece


def _image(volume: Volume) -> sitk.Image:
    """A volume in its own frame of mm, whichever way it lies in the world."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
    image.SetSpacing(voxel_sizes(volume.affine).tolist())
    return image


def random_deformation(
    mask: Volume, options: DeformOptions, rng: np.random.Generator
) -> sitk.Transform:
    """A random smooth map over a volume's extent, in mm; its nodes move at most so far that it
    folds nowhere.
    """
    image = _image(mask)
    extent = np.array(mask.shape) * voxel_sizes(mask.affine)
    mesh = np.maximum(1, extent // options.node_mm).astype(int)
    elastic = sitk.BSplineTransformInitializer(image, mesh.tolist())
    reach = np.minimum(options.elastic_mm, INJECTIVE * extent / mesh)
    nodes = int(np.prod(mesh + 3))
    elastic.SetParameters(np.concatenate([rng.uniform(-r, r, nodes) for r in reach]).tolist())
    affine = sitk.AffineTransform(3)
    turned = Rotation.from_euler(
        "xyz", rng.uniform(-options.turn, options.turn, 3), degrees=True
    ).as_matrix()
    affine.SetMatrix(
        (turned * (1 + rng.uniform(-options.scale, options.scale, 3))).ravel().tolist()
    )
    affine.SetCenter(
        image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in mask.shape])
    )
    return sitk.CompositeTransform([elastic, affine])


def apply_deformation(volume: Volume, drawn: sitk.Transform, order: int = 0) -> np.ndarray:
    """A volume (X, Y, Z) moved by a map of `draw`; what lies outside is its border repeated.

    Args:
        volume: Labels or CT.
        drawn: The map.
        order: 0 for labels (nearest neighbour, so that no label is invented), 1 for CT (linear).
    """
    image, how = _image(volume), sitk.sitkLinear if order else sitk.sitkNearestNeighbor
    moved = sitk.Resample(image, image, drawn, how, 0, image.GetPixelID(), True)
    return np.ascontiguousarray(sitk.GetArrayFromImage(moved).T)


def plausibility_problems(before: np.ndarray, after: np.ndarray, volume_change: float) -> list[str]:
    """What makes a deformed mask unlike a chest: labels lost, of another volume, in pieces, or cut
    by the border.

    Args:
        before: Labels (X, Y, Z) of the source.
        after: Labels (X, Y, Z) deformed.
        volume_change: Largest change of a label's volume, as a share.
    """
    found = []
    for label in (int(v) for v in np.unique(before) if v):
        old, new = before == label, after == label
        if not new.any():
            found.append(f"label {label} is gone")
            continue
        change = new.sum() / old.sum() - 1
        if abs(change) > volume_change:
            found.append(f"label {label} changes its volume by {change:+.0%}")
        if _at_border(new) > _at_border(old) + BORDER:
            found.append(f"label {label} is cut by the border of the volume")
        if _largest(new) < _largest(old) - PIECES:
            found.append(f"label {label} falls into pieces")
    return found


def _at_border(region: np.ndarray) -> float:
    """Share of a region's voxels that lie at the border of the volume."""
    return 1 - region[1:-1, 1:-1, 1:-1].sum() / region.sum()


def _largest(region: np.ndarray) -> float:
    """Share of a region's voxels that belong to its largest piece (neighbours by faces, edges or
    corners).
    """
    pieces, _ = ndimage.label(region, np.ones((3, 3, 3)))
    return float(np.bincount(pieces.ravel())[1:].max() / region.sum())


def deform_plausibly(
    mask: Volume, options: DeformOptions, seed: Sequence[int], source: object
) -> tuple[np.ndarray, sitk.Transform]:
    """A mask deformed plausibly, and the map that did it.

    Args:
        mask: Labels.
        options: Size of the deformation, and what is plausible.
        seed: Decides the draws.
        source: The mask's file, for messages.

    Raises:
        UserError: The mask is empty, or none of `TRIES` draws is plausible.
    """
    if not mask.array.any():
        raise UserError(
            f"{source} holds nothing but background, so there is nothing to deform. Remove the "
            "case or mend it."
        )
    problems: list[str] = []
    for number in range(MAX_TRIES):
        drawn = random_deformation(mask, options, np.random.default_rng([*seed, number]))
        moved = apply_deformation(mask, drawn)
        problems = plausibility_problems(mask.array, moved, options.volume_change)
        if not problems:
            return moved, drawn
    raise UserError(
        f"{source}: none of {MAX_TRIES} deformations is plausible (the last: {'; '.join(problems)}). "
        "Use a smaller --elastic_mm, --turn or --scale, or a larger --volume_change."
    )
