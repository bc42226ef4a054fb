"""Anatomy of the phantom chest: one patient's shapes on a voxel grid, in HU, without effects.

Shapes are written once in a template frame (mm, x to the patient's right, y to the front, z to the
head, origin in the middle of the chest) and bent to the patient by scales, a shift and smooth
waves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data.phantom import trees
from util.metrics.regions import bounding_box

Array = NDArray[np.float32]
Axes = tuple[Array, Array, Array]
Points = tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]

LEFT = 1  # labels of the mask
RIGHT = 2
AIRWAY = 3
AIR_HU = -1000.0
FAT_HU = -95.0
SOFT_HU = 45.0
BLOOD_HU = 40.0
LUNG_HU = -860.0
FIELD_MM = (360.0, 270.0, 288.0)  # the default field of view, filled by the chest
BLUR = 0.45  # the scanner's point spread, in voxels (sigma)
MAX_MASKED_ARTERY_MM = 2.2  # thicker arteries are left out of the lung mask, as segmentations do


@dataclass(frozen=True)
class PhantomPatient:
    """Shape of one patient.

    Attributes:
        scale: Factors along x, y, z.
        shift: Along x, y, z, mm.
        phase: (3, 3) phases of the waves, radians.
        bend: Amplitude of the waves, mm.
        heart: Factor of the heart's size.
        domes: Top of the left and right diaphragm, mm.
        fat: Thickness below the skin, mm.
        tree_seed: Seed of the trees' jitter.
        jitter: SD of the trees' nodes, mm.
    """

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    phase: NDArray[np.float64]
    bend: float = 0.0
    heart: float = 1.0
    domes: tuple[float, float] = (-70.0, -60.0)
    fat: float = 15.0
    tree_seed: int = 0
    jitter: float = 0.0

    @classmethod
    def template(cls) -> PhantomPatient:
        """Return the unvaried chest."""
        return cls(np.ones(3), np.zeros(3), np.zeros((3, 3)))

    @classmethod
    def random(cls, rng: np.random.Generator) -> PhantomPatient:
        """Draw a patient."""
        dome = rng.uniform(-79, -65)
        return cls(
            scale=rng.uniform((0.90, 0.88, 0.88), (1.05, 1.06, 1.06)),
            shift=rng.uniform(-5, 5, 3),
            phase=rng.uniform(0, 2 * np.pi, (3, 3)),
            bend=rng.uniform(1.5, 4.0),
            heart=rng.uniform(0.88, 1.12),
            domes=(dome, dome + rng.uniform(1, 8)),
            fat=rng.uniform(7, 19),
            tree_seed=int(rng.integers(2**31)),
            jitter=0.8,
        )

    def waves(self, points: Points) -> Points:
        """Return the bend at points of the patient's frame, mm."""
        x, y, z = points

        def wave(phase: NDArray[np.float64]) -> NDArray[np.floating]:
            total = _wave(x, phase[0]) + _wave(y, phase[1]) + _wave(z, phase[2])
            return self.bend * total / 1.5

        return wave(self.phase[0]), wave(self.phase[1]), wave(self.phase[2])

    def to_template_frame(self, points: Points) -> Points:
        """Map points of the patient's frame to the template frame."""
        x, y, z = (
            (point - shift) / scale + wave
            for point, shift, scale, wave in zip(
                points, self.shift, self.scale, self.waves(points), strict=True
            )
        )
        return x, y, z

    def place(self, tree: trees.Tree, part: int) -> trees.Tree:
        """Map a template tree to the patient's frame, its nodes moved a little at random."""
        jitter = np.random.default_rng([self.tree_seed, part]).normal(
            0, self.jitter, tree.nodes.shape
        )
        template = tree.nodes + jitter
        nodes = tree.nodes.copy()
        for _ in range(4):  # inverts `to_template_frame`, whose waves are gentle
            bend = np.stack(self.waves((nodes[:, 0], nodes[:, 1], nodes[:, 2])), 1)
            nodes = self.shift + self.scale * (template - bend)
        return replace(tree, nodes=nodes)


def _wave(points: NDArray[np.floating], phase: float) -> NDArray[np.floating]:
    return np.asarray(np.sin(2 * np.pi * points / 300 + phase))


@dataclass(frozen=True)
class Anatomy:
    """One patient on one grid; every array is (X, Y, Z).

    Attributes:
        labels: 0 background, 1 left lung, 2 right lung, 3 airway.
        hu: CT without effects, offset and noise.
        share: Share of lung parenchyma in each voxel, 0 outside labels 1 and 2.
        height: 0 to 1 from the bottom to the top of the lungs.
        front: 0 to 1 from the back to the front of the lungs.
        depth: Distance to the pleura, mm.
    """

    labels: NDArray[np.uint8]
    hu: Array
    share: Array
    height: Array
    front: Array
    depth: Array


def voxel_axes(size: tuple[int, int, int], spacing: tuple[float, float, float]) -> Axes:
    """Return voxel centres along each axis in mm, the origin in the middle of the field of view."""
    x, y, z = (
        ((np.arange(n) - (n - 1) / 2) * side).astype(np.float32)
        for n, side in zip(size, spacing, strict=True)
    )
    return x, y, z


def _radial(x: Array, y: Array, a: Array | float, b: Array | float, power: float = 2.0) -> Array:
    """Return the distance along the ray from the origin to a superellipse with half axes a, b.

    In mm, negative inside.
    """
    norm = (np.abs(x / a) ** power + np.abs(y / b) ** power) ** (1 / power)
    return np.hypot(x, y) * (1 - 1 / np.maximum(norm, 1e-3))


def _thorax(x: Array, y: Array, z: Array) -> Array:
    """Return the distance to the inner wall of the rib cage, mm, negative inside."""
    width = np.sqrt(np.clip(1 - ((z + 48) / 170) ** 2, 0.004, 1))
    return _radial(x, y + 4, 128 * width, np.asarray(94 * width**0.8, np.float32), 2.2)


def _ellipsoid(
    points: Axes, centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> Array:
    """Return the approximate distance to an ellipsoid, mm, negative inside."""
    squares = (((p - c) / r) ** 2 for p, c, r in zip(points, centre, radii, strict=True))
    return np.asarray((np.sqrt(sum(squares)) - 1) * min(radii))


def _organs(patient: PhantomPatient, points: Axes) -> dict[str, Array]:
    """Return the distance to each organ that the lungs leave free, mm, negative inside."""
    x, y, z = points
    size = patient.heart
    left, right = patient.domes
    top = np.where(x > 0, right, left)
    fall = ((np.abs(x) - 66) / 75) ** 2 + ((y - 12) / 95) ** 2
    arch = _ellipsoid(points, (-12, -16, 62), (20, 40, 15))
    descending = np.where(z < 62, np.hypot(x + 20, y + 46) - 13, 99)
    return {
        "heart": _ellipsoid(points, (-31, 24, -50), (62 * size, 50 * size, 58 * size)),
        "aorta": np.minimum(arch, descending),
        "middle": _radial(x, y, 23 + 6 * np.exp(-(((z - 15) / 45) ** 2)), 112),
        "spine": _radial(x, y + 76, 25, 30),
        "belly": z - np.maximum(top - 60 * fall, -128),
    }


def _lungs(patient: PhantomPatient, points: Axes) -> NDArray[np.bool_]:
    free = np.minimum.reduce(list(_organs(patient, points).values()))
    return (_thorax(*points) < 0) & (free > 2)


def _well_inside(points: NDArray[np.float64], side: str) -> NDArray[np.bool_]:
    """Return whether points (N, 3) lie some mm inside a lung of the unvaried chest."""
    chest = PhantomPatient.template()
    inside = (points[:, 0] < 0) == (side == "left")
    for step in np.concatenate([np.eye(3), -np.eye(3)]) * 9:
        x, y, z = (points + step).T
        inside &= _lungs(chest, (x, y, z))
    return inside


def _body(patient: PhantomPatient, points: Axes, organs: dict[str, Array], voxel: float) -> Array:
    """Return the chest without lungs, HU.

    Args:
        points: Voxel centres in the template frame.
        organs: Distances of `_organs`.
        voxel: Mean voxel side in mm, over which edges are spread.
    """
    x, y, z = points
    wall = _thorax(x, y, z)
    hu = np.full(np.broadcast_shapes(x.shape, y.shape), AIR_HU, np.float32)

    def paint(distance: Array, value: Array | float) -> None:
        share = np.clip(0.5 - distance / voxel, 0, 1).astype(np.float32)
        np.copyto(hu, hu + share * (value - hu))

    skin = _radial(x, y + 4, 134 + 0.06 * np.clip(z, -99, 99) + patient.fat, 100 + patient.fat, 2.4)
    paint(skin, 10)
    paint(skin + 3, FAT_HU)
    paint(skin + patient.fat, SOFT_HU)
    paint(np.maximum(np.abs(wall - 9) - 4, _ribs(x, y, z)), np.where(y > 45, 150, 380))
    paint(np.maximum(wall, np.abs(organs["middle"]) - 5), -40)  # fat of the mediastinum
    paint(organs["heart"], BLOOD_HU)
    paint(organs["aorta"], BLOOD_HU)
    paint(np.maximum(organs["belly"] + 3, wall + 2), np.where(x > -15, 60, 48))  # liver, spleen
    discs = np.where(np.mod(z, 27) < 5, 90, 230)
    paint(_radial(x, y + 74, 19, 15), discs)
    paint(_radial(x, y + 97, 9, 8), 30)  # spinal canal
    paint(np.maximum(_radial(x, y + 112, 22, 6), np.abs(np.mod(z, 27) - 16) - 8), 250)
    paint(np.maximum(_radial(x, y - 98, 17, 6), np.abs(z - 20) - 75), 180)  # sternum
    return hu


def _ribs(x: Array, y: Array, z: Array) -> Array:
    """Return the distance to the slanted bands in which the ribs run, mm, negative inside."""
    return np.where(np.abs(x) > 18, np.abs(np.mod(z + 0.5 * y, 27) - 13.5) - 5, 99)


def _relative_position(centres: Array, lungs: NDArray[np.bool_], axis: int) -> Array:
    """Return voxel centres along an axis as 0 to 1 over the extent of the lungs.

    The result can be broadcast to the grid.
    """
    extent = bounding_box(lungs)[axis]
    low = centres[extent.start]
    high = centres[extent.stop - 1]
    position = np.clip((centres - low) / max(float(high - low), 1.0), 0, 1)
    shape = [1, 1, 1]
    shape[axis] = -1
    return np.asarray(position, np.float32).reshape(shape)


def _parenchyma(labels: NDArray[np.uint8], height: Array, front: Array, axes: Axes) -> Array:
    """Return HU of lung tissue: gravity, the haze round the hila, and differences of zones."""
    hu = np.zeros(labels.shape, np.float32)
    for label, sign in ((LEFT, -1), (RIGHT, 1)):
        lung = labels == label
        if not lung.any():
            continue
        # 0 beside the heart, 1 at the chest wall
        across = _relative_position(axes[0] * sign, lung, 0)
        wave = np.sin(2 * np.pi * (1.6 * height + 0.5 * across)) * np.cos(
            2 * np.pi * (1.3 * front - 0.4 * across)
        )
        haze = 60 * np.exp(
            -((across / 0.3) ** 2) - ((height - 0.52) / 0.2) ** 2 - ((front - 0.45) / 0.25) ** 2
        )
        hu = np.where(lung, 14 * wave + haze, hu)
    return np.asarray(LUNG_HU + 70 * (0.5 - front) - 16 * (height - 0.5) + hu, np.float32)


def build_anatomy(
    patient: PhantomPatient, size: tuple[int, int, int], spacing: tuple[float, float, float]
) -> Anatomy:
    """Return one patient's chest on a grid.

    The lungs may be empty, where the field of view misses them.
    """
    axes = voxel_axes(size, spacing)
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    points = patient.to_template_frame((x, y, z))
    organs = _organs(patient, points)
    template_airways, template_arteries = trees.template_trees(_well_inside)
    airways = patient.place(template_airways, 0)
    arteries = patient.place(template_arteries, 1)
    lumen = trees.draw_tree(airways, axes)
    trunk = trees.draw_tree(arteries.thicker_than(MAX_MASKED_ARTERY_MM), axes)
    lungs = _lungs(patient, points)
    side = np.where(points[0] < 0, LEFT, RIGHT)
    labels = np.where(lungs & (trunk < 0.5), side, 0).astype(np.uint8)
    labels[lumen > 0.5] = AIRWAY
    tissue = (labels == LEFT) | (labels == RIGHT)
    if not tissue.any():
        nothing = np.zeros(labels.shape, np.float32)
        return Anatomy(labels, nothing, nothing, nothing, nothing, nothing)
    height = _relative_position(axes[2], tissue, 2)
    front = _relative_position(axes[1], tissue, 1)

    bronchial_walls = trees.draw_tree(airways, axes, wall=0.7) - lumen
    fine = np.clip(np.maximum(trees.draw_tree(arteries, axes), bronchial_walls), 0, 1)
    lung_hu = _parenchyma(labels, height, front, axes)
    lung_hu = lung_hu + fine * (BLOOD_HU - lung_hu)
    filled = ndimage.gaussian_filter((tissue | (lumen > 0.5)).astype(np.float32), BLUR)
    hu = _body(patient, points, organs, float(np.mean(spacing)))
    hu += filled * (lung_hu - hu)
    hu += np.where(tissue, np.minimum(lumen, 0.5), lumen) * (AIR_HU - hu)
    share = np.where(tissue, filled * (1 - fine) * (1 - lumen), 0)
    depth = ndimage.distance_transform_edt(lungs, spacing)
    maps = (
        np.ascontiguousarray(np.broadcast_to(values, size), np.float32)
        for values in (hu, share, height, front, depth)
    )
    return Anatomy(labels, *maps)
