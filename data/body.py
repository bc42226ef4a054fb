"""The body as a label: found in a scan, or drawn around the lungs by the training cases' shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import ndimage
from skimage.measure import label

from data.geometry import Volume, shrink
from options.base_options import DataOptions
from util.cli import UserError, counted
from util.files import atomic_path
from util.metrics.regions import Mask, bounding_box

VERSION = 1  # part of the keys of prepared volumes: raise it when the body comes out differently
BODY_FILE = "body.safetensors"  # of a run: the shape of its training cases

WORKING_MM = 2.0  # smaller voxels are averaged to about this size
MIN_BODY_HU = -500.0  # about halfway between air and fat
OPENING_MM = 7.0  # removes what is thinner than twice this: table, blanket, tubes
WALL_MM = 8.0  # least tissue around the lungs
MIN_BODY_SHARE = 0.1  # voxels of a labelled body over those of the lungs
MIN_TOUCHING_SHARE = 0.5  # of the voxels around the lungs: a label with more is the body

SHAPE_SIZE = 32  # points along each axis of a shape
SHAPE_RANGE = (-0.5, 1.5)  # that they span, where the box of the lungs runs from 0 to 1
SHAPE_MM = 3.0  # voxels closer together are skipped: a mean shape does not need them
MAX_DISTANCE_MM = 60.0
MAX_SHAPE_CASES = 64


@dataclass(frozen=True)
class BodyLabel:
    """How masks without a body get one when they are read.

    Attributes:
        label: Label of the body; masks that hold it stay as they are.
        shape_file: The run's mean shape, for masks without a scan; None in training.
    """

    label: int
    lung_labels: tuple[int, ...]
    shape_file: Path | None = None

    @classmethod
    def from_options(cls, options: DataOptions, run_folder: Path) -> BodyLabel | None:
        """Return how a run reads masks; None where it knows no body."""
        number = options.body_number
        if number is None:
            return None
        return cls(number, options.lung_labels, run_folder / BODY_FILE)


def add_body(mask: Volume, scan: Volume | None, body: BodyLabel, source: object) -> Volume:
    """Return a mask with the body as a label, where it had no label before.

    A mask that holds the label stays as it is. Without a scan, the body is drawn around the lungs;
    a mask without lungs then stays as it is.

    Args:
        mask: Labels, uint8.
        scan: HU on the grid of the mask.
        body: The label, and the shape for masks without a scan.
        source: File of the mask, for the message.

    Raises:
        UserError: There is neither a body, nor a scan, nor a shape, or the label is hardly there.
    """
    labels = mask.array
    count = int((labels == body.label).sum())
    if count:
        if count < MIN_BODY_SHARE * np.isin(labels, body.lung_labels).sum():
            raise UserError(
                f"{source}: label {body.label} is the body, and here it has "
                f"{counted(count, 'voxel')}, hardly any beside the lungs. Give what it labels, "
                "such as a lesion, another number."
            )
        return mask
    spacing = mask.spacing
    if scan is not None:
        inside = find_body(scan.array, labels > 0, spacing)
    else:
        lungs = np.isin(labels, body.lung_labels)
        if not lungs.any():
            return mask
        inside = BodyShape.load(body.shape_file, source, body.label).draw(lungs, spacing)
    return Volume(np.where(inside & (labels == 0), np.uint8(body.label), labels), mask.affine)


def find_body(hu: NDArray[np.number], labelled: Mask, spacing: Sequence[float]) -> Mask:
    """Return the patient (X, Y, Z), without table, blanket and the air around.

    Everything denser than `MIN_BODY_HU` is opened together with the lungs, so that a thin chest
    wall stays. Of the largest part, all is filled that the air beside the patient does not reach.

    Args:
        hu: (X, Y, Z) in RAS, HU.
        labelled: Lungs and airways on the same grid.
        spacing: Voxel size in mm.
    """
    factors = [max(1, int(WORKING_MM / side + 0.01)) for side in spacing]
    sides = np.multiply(spacing, factors)
    solid = shrink(hu, factors, average=True) > MIN_BODY_HU
    solid |= _dilate(shrink(labelled, factors, average=False), WALL_MM / 2, sides)
    opened = _dilate(_erode(solid, OPENING_MM, sides), OPENING_MM, sides)
    parts = label(opened, connectivity=1)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    body = (parts == sizes.argmax()) & opened
    # The frame joins the air on all four sides; the ends are open where a scan cuts the patient.
    air = np.pad(~body, ((1, 1), (1, 1), (0, 0)), constant_values=True)
    regions = label(air, connectivity=1)
    filled = (regions != regions[0, 0, 0])[1:-1, 1:-1]
    return _enlarge(filled, factors, hu.shape) | labelled


def _erode(mask: Mask, by_mm: float, spacing: NDArray[np.floating]) -> Mask:
    if mask.all():
        return mask
    return np.asarray(ndimage.distance_transform_edt(mask, spacing) > by_mm)


def _dilate(mask: Mask, by_mm: float, spacing: NDArray[np.floating]) -> Mask:
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask, spacing) <= by_mm)


def _enlarge(mask: Mask, factors: Sequence[int], shape: Sequence[int]) -> Mask:
    """Return a mask of `shrink` on the fine grid; its outline is interpolated."""
    if max(factors) == 1:
        return mask
    share = np.where(mask, np.uint8(200), np.uint8(0))
    zoomed = ndimage.zoom(share, factors, order=1, mode="nearest", grid_mode=True)
    x, y, z = shape
    return np.asarray(zoomed[:x, :y, :z] >= 100)


def surrounding_label(labels: NDArray[np.integer], lung_labels: Sequence[int]) -> int | None:
    """Return the label that most voxels around the lungs have, None where most have none.

    Such a label is the body; an organ, a lobe or a nodule touches less of the lungs.
    """
    lungs = np.isin(labels, lung_labels)
    counts = np.bincount(labels[ndimage.binary_dilation(lungs) & ~lungs].astype(np.int64))
    if not counts.any() or counts.argmax() == 0:
        return None
    most = int(counts.argmax())
    return most if counts[most] >= MIN_TOUCHING_SHARE * counts.sum() else None


@dataclass(frozen=True)
class BodyShape:
    """Mean body of many cases, around lungs of any size.

    Attributes:
        distance: Distance to the skin in mm, positive inside, float32 `(N, N, N)`. Its points span
            `SHAPE_RANGE`, in which the box of the lungs runs from 0 to 1 along each axis.
    """

    distance: NDArray[np.float32]

    @classmethod
    def from_masks(cls, masks: Sequence[Volume], lung_labels: Sequence[int]) -> BodyShape | None:
        """Average the bodies of masks whose labels mark the whole body; None without lungs.

        At most `MAX_SHAPE_CASES` of the masks are used, spread evenly.
        """
        distances = []
        for index in np.unique(np.linspace(0, len(masks) - 1, MAX_SHAPE_CASES).astype(int)):
            distance = _distance_around_lungs(masks[index], lung_labels)
            if distance is not None:
                distances.append(distance)
        return cls(np.mean(distances, axis=0, dtype=np.float32)) if distances else None

    @classmethod
    def load(cls, path: Path | None, source: object, number: int) -> BodyShape:
        """Read a run's shape; `source` and `number` name mask and label in the message.

        Raises:
            UserError: The file is missing or damaged.
        """
        try:
            distance = load_file(path or BODY_FILE)["distance"]
            if distance.shape != (SHAPE_SIZE,) * 3 or not np.isfinite(distance).all():
                raise ValueError("its shape or its values are wrong")
        except (OSError, SafetensorError, LookupError, ValueError) as error:
            raise UserError(
                f"{source} has no body (label {number}) and no scan to find it in, and the run's "
                f"mean body {path} cannot be read ({error}). Restore that file, or put the scan "
                "beside the mask."
            ) from None
        return cls(distance.astype(np.float32))

    def save(self, path: Path) -> None:
        """Write the shape as safetensors."""
        with atomic_path(path) as temporary:
            save_file({"distance": self.distance}, temporary)

    def draw(self, lungs: Mask, spacing: Sequence[float]) -> Mask:
        """Return the body (X, Y, Z) around lungs, with at least `WALL_MM` of tissue around them.

        Args:
            lungs: (X, Y, Z) in RAS, not empty.
            spacing: Voxel size in mm.
        """
        factors = [max(1, int(WORKING_MM / side + 0.01)) for side in spacing]
        coarse = shrink(lungs, factors, average=False)
        coarse = coarse if coarse.any() else shrink(lungs, factors, average=True) > 0
        low, high = SHAPE_RANGE
        weights = []
        for first, last, length in zip(*_box(coarse), coarse.shape, strict=True):
            position = (np.arange(length) + 0.5 - first) / (last - first)
            weights.append(_linear_weights((position - low) / (high - low), SHAPE_SIZE))
        distance = np.einsum("xi,yj,zk,ijk->xyz", *weights, self.distance, optimize=True)
        body = (distance > 0) | _dilate(coarse, WALL_MM, np.multiply(spacing, factors))
        return _enlarge(body, factors, lungs.shape) | lungs


def _distance_around_lungs(mask: Volume, lung_labels: Sequence[int]) -> NDArray[np.float32] | None:
    """Return the distances of `BodyShape` of one case, None without lungs."""
    sides = mask.spacing
    strides = [max(1, round(SHAPE_MM / side)) for side in sides]
    labels = mask.array[tuple(slice(None, None, stride) for stride in strides)]
    lungs = np.isin(labels, lung_labels)
    if not lungs.any():
        return None
    spacing = np.multiply(sides, strides)
    distance = _signed_distance(labels > 0, spacing)
    points = np.linspace(*SHAPE_RANGE, SHAPE_SIZE)
    weights = []
    for first, last, length in zip(*_box(lungs), lungs.shape, strict=True):
        voxel = first + points * (last - first) - 0.5
        weights.append(_linear_weights(voxel / max(1, length - 1), length))
    sampled = np.einsum("ix,jy,kz,xyz->ijk", *weights, distance, optimize=True)
    return np.asarray(sampled, np.float32)


def _signed_distance(body: Mask, spacing: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the distance to the outline in mm, positive inside, up to `MAX_DISTANCE_MM`."""
    if body.all():
        return np.full(body.shape, MAX_DISTANCE_MM, np.float32)
    inside = ndimage.distance_transform_edt(body, spacing)
    outside = ndimage.distance_transform_edt(~body, spacing)
    distance = np.clip(inside - outside, -MAX_DISTANCE_MM, MAX_DISTANCE_MM)
    return np.asarray(distance, np.float32)


def _box(mask: Mask) -> tuple[list[int], list[int]]:
    """Return the first voxel of a mask's box along each axis, and the one after its last."""
    box = bounding_box(mask)
    return [extent.start for extent in box], [extent.stop for extent in box]


def _linear_weights(position: NDArray[np.floating], count: int) -> NDArray[np.float32]:
    """Return the matrix that interpolates `count` points, spread over 0 to 1, at positions.

    Positions beyond are those of the ends.
    """
    scaled = position.clip(0, 1) * (count - 1)
    return (1 - np.abs(scaled[:, None] - np.arange(count))).clip(0, 1).astype(np.float32)
