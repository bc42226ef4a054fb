"""Airway and artery trees of the phantom chest: a template, and its drawing onto a voxel grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

Array = NDArray[np.float32]
Points = NDArray[np.float64]
Axes = tuple[Array, Array, Array]

TRACHEA_TOP = (0.0, 2.0, 160.0)
CARINA = (1.0, -12.0, 38.0)
HILUM = {"left": (-37.0, -14.0, 14.0), "right": (33.0, -12.0, 16.0)}
ENDS = 96  # end points of the tree in each lung
MIN_BRONCHUS_ENDS = 14  # a bronchus is drawn where it serves at least this many end points
ARTERY_MM = 3.7  # radius at the hilum
BRONCHUS_MM = 5.0
BESIDE_MM = 3.5  # an artery runs this far above its bronchus


@dataclass(frozen=True)
class Tree:
    """Straight tubes between nodes.

    Attributes:
        nodes: (N, 3) in mm.
        pairs: (S, 2) indices of the nodes that each tube connects.
        radius: (S,) in mm.
    """

    nodes: Points
    pairs: NDArray[np.int64]
    radius: Points

    @classmethod
    def from_branches(cls, branches: list[tuple[Points, Points, float]]) -> Tree:
        """Build a tree of branches given as (start, end, radius)."""
        ends = []
        for start, end, _ in branches:
            ends += [start, end]
        nodes, index = np.unique(np.array(ends), axis=0, return_inverse=True)
        radius = np.array([radius for _, _, radius in branches])
        return cls(nodes, index.reshape(-1, 2), radius)

    def thicker_than(self, radius_mm: float) -> Tree:
        """Return the tubes with a larger radius."""
        thick = self.radius > radius_mm
        return replace(self, pairs=self.pairs[thick], radius=self.radius[thick])


def _split(points: Points) -> tuple[Points, Points]:
    """Return the points on both sides of the median along their longest axis."""
    centred = points - points.mean(0)
    order = np.argsort(centred @ np.linalg.svd(centred, full_matrices=False)[2][0])
    middle = len(order) // 2
    return points[order[:middle]], points[order[middle:]]


def _grow(start: Points, ends: Points) -> list[tuple[Points, Points, int]]:
    """Return branches from `start` to every end point, each as (start, end, end points served)."""
    if len(ends) == 1:
        return [(start, ends[0], 1)]
    fork = start + 0.42 * (ends.mean(0) - start)
    branches = [(start, fork, len(ends))]
    for half in _split(ends):
        branches += _grow(fork, half)
    return branches


@lru_cache(maxsize=1)
def template_trees(inside: Callable[[Points, str], NDArray[np.bool_]]) -> tuple[Tree, Tree]:
    """Return the airway tree and the artery tree of the unvaried chest.

    Args:
        inside: Returns whether points (N, 3) in mm lie well inside the lung of a side.
    """
    halton = qmc.Halton(3, rng=np.random.default_rng(5)).random(6000)
    cloud = qmc.scale(halton, (-140, -110, -130), (140, 110, 130))
    carina = np.array(CARINA)
    airways: list[tuple[Points, Points, float]] = [(np.array(TRACHEA_TOP), carina, 9.0)]
    arteries: list[tuple[Points, Points, float]] = []
    beside = (0.0, 0.0, BESIDE_MM)
    for side, place in HILUM.items():
        hilum = np.array(place)
        airways.append((carina, hilum, 6.5))
        for start, end, served in _grow(hilum, cloud[inside(cloud, side)][:ENDS]):
            size = (served / ENDS) ** 0.4
            if served >= MIN_BRONCHUS_ENDS:
                airways.append((start, end, BRONCHUS_MM * size))
            arteries.append((start + beside, end + beside, ARTERY_MM * size))
    return Tree.from_branches(airways), Tree.from_branches(arteries)


def draw_tree(tree: Tree, axes: Axes, wall: float = 0.0) -> Array:
    """Return the share of each voxel that the tubes fill, 0 to 1, in the shape of the grid.

    A thin tube's cross-section is spread as a Gaussian as wide as a voxel, keeping its area
    (partial volume).

    Args:
        tree: Nodes in mm in the frame of the axes.
        axes: Voxel centres along x, y, z in mm, ascending.
        wall: Added to every radius, mm.
    """
    filled = np.zeros(tuple(map(len, axes)), np.float32)
    voxel = float(np.mean([axis[1] - axis[0] for axis in axes]))
    for (i, j), radius in zip(tree.pairs, tree.radius + wall, strict=True):
        start = tree.nodes[i]
        end = tree.nodes[j]
        variance = (0.42 * voxel) ** 2 + radius**2 / 4
        reach = radius + 2.5 * np.sqrt(variance)
        low = np.minimum(start, end) - reach
        high = np.maximum(start, end) + reach
        box = tuple(
            slice(*np.searchsorted(axis, limits))
            for axis, *limits in zip(axes, low, high, strict=True)
        )
        offsets = (axis[part] - o for axis, part, o in zip(axes, box, start, strict=True))
        dx, dy, dz = np.meshgrid(*offsets, indexing="ij", sparse=True)
        along = end - start
        length = max(float(along @ along), 1e-6)
        t = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / length, 0, 1)
        squared = (dx - t * along[0]) ** 2 + (dy - t * along[1]) ** 2 + (dz - t * along[2]) ** 2
        share = np.minimum(radius**2 / (2 * variance) * np.exp(-squared / (2 * variance)), 1)
        np.maximum(filled[box], share, out=filled[box])
    return filled
