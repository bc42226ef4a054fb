"""Anatomy of the phantom chest: one patient's shapes on a voxel grid, in HU, before effects, offset
and noise.

Shapes are written once in a frame of their own (mm, x to the patient's right, y to the front, z to
the head, origin in the middle of the chest) and bent to the patient by scales, a shift and smooth
waves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data.phantom import trees

Array = NDArray[np.float32]
Grid = tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]

LEFT, RIGHT, AIRWAY = 1, 2, 3
AIR_HU, FAT_HU, SOFT_HU, BLOOD_HU, LUNG_HU = -1000.0, -95.0, 45.0, 40.0, -860.0
FIELD_MM = (360.0, 270.0, 288.0)  # the default field of view, filled by the chest
BLUR = 0.45  # the scanner's point spread, in voxels (sigma)
LARGE_MM = 2.2  # arteries thicker than this are left out of the lung mask, as segmentations do


@dataclass(frozen=True)
class PhantomPatient:
    """What differs in shape between patients; the defaults are the unvaried chest."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    phase: NDArray[np.float64]
    bend: float = 0.0
    heart: float = 1.0
    domes: tuple[float, float] = (-70.0, -60.0)  # top of the left and right diaphragm, mm
    fat: float = 15.0
    nodes: int = 0  # seed of the trees' jitter
    jitter: float = 0.0

    @staticmethod
    def random(rng: np.random.Generator) -> PhantomPatient:
        """A patient drawn at random."""
        dome = rng.uniform(-79, -65)
        return PhantomPatient(
            scale=rng.uniform((0.90, 0.88, 0.88), (1.05, 1.06, 1.06)),
            shift=rng.uniform(-5, 5, 3),
            phase=rng.uniform(0, 2 * np.pi, (3, 3)),
            bend=rng.uniform(1.5, 4.0),
            heart=rng.uniform(0.88, 1.12),
            domes=(dome, dome + rng.uniform(1, 8)),
            fat=rng.uniform(7, 19),
            nodes=int(rng.integers(2**31)),
            jitter=0.8,
        )

    def waves(self, points: Grid) -> Grid:
        """The bend at points of the world, mm."""
        waves = [
            self.bend
            * sum(np.sin(2 * np.pi * p / 300 + f) for p, f in zip(points, phase, strict=True))
            / 1.5
            for phase in self.phase
        ]
        return waves[0], waves[1], waves[2]

    def to_template_frame(self, world: Grid) -> Grid:
        """Points of the world in the frame of the unvaried chest."""
        parts = [
            (p - s) / c + w
            for p, s, c, w in zip(world, self.shift, self.scale, self.waves(world), strict=True)
        ]
        return parts[0], parts[1], parts[2]

    def place(self, tree: trees.Tree, part: int) -> trees.Tree:
        """A template tree in this patient's world, its nodes moved a little at random."""
        jitter = np.random.default_rng([self.nodes, part]).normal(0, self.jitter, tree.nodes.shape)
        own, world = tree.nodes + jitter, tree.nodes.copy()
        for _ in range(4):  # inverts to_own, whose waves are gentle
            bend = np.stack(self.waves((world[:, 0], world[:, 1], world[:, 2])), 1)
            world = self.shift + self.scale * (own - bend)
        return replace(tree, nodes=world)


@dataclass(frozen=True)
class Anatomy:
    """One patient on one grid, everything of shape (X,Y,Z).

    `hu` is without effects; `share` is the parenchyma's of a voxel, 0 outside labels 1 and 2;
    `height` and `front` go from 0 to 1 over the lungs' own extent; `depth` is the distance to the
    pleura in mm.
    """

    labels: NDArray[np.uint8]
    hu: Array
    share: Array
    height: Array
    front: Array
    depth: Array


def voxel_axes(
    size: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[Array, Array, Array]:
    """Voxel centres in mm, the origin in the middle of the field of view."""
    x, y, z = (
        ((np.arange(n) - (n - 1) / 2) * s).astype(np.float32)
        for n, s in zip(size, spacing, strict=True)
    )
    return x, y, z


def _radial(x: Array, y: Array, a: Array | float, b: Array | float, power: float = 2.0) -> Array:
    """Distance in mm, along the ray from the middle, to a superellipse with half axes a, b;
    negative inside.
    """
    norm = (np.abs(x / a) ** power + np.abs(y / b) ** power) ** (1 / power)
    return np.hypot(x, y) * (1 - 1 / np.maximum(norm, 1e-3))


def _thorax(x: Array, y: Array, z: Array) -> Array:
    """Distance to the inner wall of the rib cage."""
    wide = np.sqrt(np.clip(1 - ((z + 48) / 170) ** 2, 0.004, 1))
    return _radial(x, y + 4, 128 * wide, np.asarray(94 * wide**0.8, np.float32), 2.2)


def _ball(
    x: Array, y: Array, z: Array, centre: tuple[float, ...], radii: tuple[float, ...]
) -> Array:
    """Distance to an ellipsoid, approximately, mm; negative inside."""
    norm = np.sqrt(
        sum(((p - c) / r) ** 2 for p, c, r in zip((x, y, z), centre, radii, strict=True))
    )
    return np.asarray((norm - 1) * min(radii))


def _organs(patient: PhantomPatient, x: Array, y: Array, z: Array) -> dict[str, Array]:
    """Distances to what the lungs leave free, mm; negative inside."""
    h = patient.heart
    left, right = patient.domes
    top = np.where(x > 0, right, left)
    fall = ((np.abs(x) - 66) / 75) ** 2 + ((y - 12) / 95) ** 2
    arch = _ball(x, y, z, (-12, -16, 62), (20, 40, 15))
    aorta = np.where(z < 62, np.hypot(x + 20, y + 46) - 13, 99)
    return {
        "heart": _ball(x, y, z, (-31, 24, -50), (62 * h, 50 * h, 58 * h)),
        "aorta": np.minimum(arch, aorta),
        "middle": _radial(x, y, 23 + 6 * np.exp(-(((z - 15) / 45) ** 2)), 112),
        "spine": _radial(x, y + 76, 25, 30),
        "belly": z - np.maximum(top - 60 * fall, -128),
    }


def _lungs(patient: PhantomPatient, x: Array, y: Array, z: Array) -> NDArray[np.bool_]:
    free = np.minimum.reduce(list(_organs(patient, x, y, z).values()))
    return (_thorax(x, y, z) < 0) & (free > 2)


def _well_inside(points: NDArray[np.float64], side: str) -> NDArray[np.bool_]:
    """Whether points (N,3) lie some mm inside a lung of the unvaried chest."""
    chest = PhantomPatient(np.ones(3), np.zeros(3), np.zeros((3, 3)))
    inside = (points[:, 0] < 0) == (side == "left")
    for step in np.concatenate([np.eye(3), -np.eye(3)]) * 9:
        x, y, z = (points + step).T
        inside &= _lungs(chest, x, y, z)
    return inside


def _body(
    patient: PhantomPatient, own: tuple[Array, Array, Array], organs: dict[str, Array], voxel: float
) -> Array:
    """The chest without lungs, HU."""
    x, y, z = own
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
    """Distance to the slanted bands in which the ribs run, mm."""
    return np.where(np.abs(x) > 18, np.abs(np.mod(z + 0.5 * y, 27) - 13.5) - 5, 99)


def _unit(axis: Array, lungs: NDArray[np.bool_], number: int) -> Array:
    """Voxel centres along an axis as 0 to 1 over the lungs' own extent, broadcastable to the
    grid.
    """
    found = np.flatnonzero(lungs.any(tuple(i for i in range(3) if i != number)))
    low, high = axis[found[0]], axis[found[-1]]
    shape = [1, 1, 1]
    shape[number] = -1
    return np.asarray(
        np.clip((axis - low) / max(float(high - low), 1.0), 0, 1), np.float32
    ).reshape(shape)


def _parenchyma(
    labels: NDArray[np.uint8], height: Array, front: Array, axes: tuple[Array, Array, Array]
) -> Array:
    """HU of lung tissue at every place: gravity, the haze round the hila, and broad differences
    between zones.
    """
    hu = np.zeros(labels.shape, np.float32)
    for label, sign in ((LEFT, -1), (RIGHT, 1)):
        lung = labels == label
        if not lung.any():
            continue
        across = _unit(axes[0] * sign, lung, 0)  # 0 beside the heart, 1 at the chest wall
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
    """One patient's chest on a grid; the lungs may be empty where the field of view misses them."""
    axes = voxel_axes(size, spacing)
    own = patient.to_template_frame(np.meshgrid(*axes, indexing="ij", sparse=True))
    organs = _organs(patient, *own)
    airways, arteries = (
        patient.place(t, i) for i, t in enumerate(trees.template_trees(_well_inside))
    )
    lumen = trees.draw_tree(airways, axes)
    thick = arteries.radius > LARGE_MM
    trunk = trees.draw_tree(
        replace(arteries, pairs=arteries.pairs[thick], radius=arteries.radius[thick]), axes
    )
    lungs = _lungs(patient, *own)
    labels = np.where(lungs & (trunk < 0.5), np.where(own[0] < 0, LEFT, RIGHT), 0).astype(np.uint8)
    labels[lumen > 0.5] = AIRWAY
    tissue = (labels == LEFT) | (labels == RIGHT)
    if not tissue.any():
        return _empty(labels)
    height, front = _unit(axes[2], tissue, 2), _unit(axes[1], tissue, 1)

    fine = np.maximum(
        trees.draw_tree(arteries, axes), trees.draw_tree(airways, axes, extra=0.7) - lumen
    )
    fine = np.clip(fine, 0, 1)
    lung_hu = _parenchyma(labels, height, front, axes)
    lung_hu = lung_hu + fine * (BLOOD_HU - lung_hu)
    filled = ndimage.gaussian_filter((tissue | (lumen > 0.5)).astype(np.float32), BLUR)
    voxel = float(np.mean(spacing))
    hu = _body(patient, own, organs, voxel)
    hu += filled * (lung_hu - hu)
    hu += np.where(tissue, np.minimum(lumen, 0.5), lumen) * (AIR_HU - hu)
    share = np.where(tissue, filled * (1 - fine) * (1 - lumen), 0)
    depth = ndimage.distance_transform_edt(lungs, spacing)
    full = [
        np.ascontiguousarray(np.broadcast_to(a, size), np.float32)
        for a in (hu, share, height, front, depth)
    ]
    return Anatomy(labels, *full)


def _empty(labels: NDArray[np.uint8]) -> Anatomy:
    nothing = np.zeros(labels.shape, np.float32)
    return Anatomy(labels, nothing, nothing, nothing, nothing, nothing)
