"""Airway and artery trees of the phantom chest: one template, and its drawing onto a voxel grid
with partial volume.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

Array = NDArray[np.float32]
Points = NDArray[np.float64]

TRACHEA_TOP, CARINA = (0.0, 2.0, 160.0), (1.0, -12.0, 38.0)
HILUM = {"left": (-37.0, -14.0, 14.0), "right": (33.0, -12.0, 16.0)}
ENDS = 96  # end points of the tree in each lung
GROUP = 14  # bronchi are drawn as long as they serve at least this many end points
ARTERY_MM, BRONCHUS_MM = 3.7, 5.0  # radius at the hilum
BESIDE_MM = 3.5  # an artery runs this far above its bronchus


@dataclass(frozen=True)
class Tree:
    """Straight tubes between nodes. `nodes` (N,3) in mm, `pairs` (S,2) indices of nodes, `radius`
    (S,) in mm.
    """

    nodes: Points
    pairs: NDArray[np.int64]
    radius: Points


def _split(points: Points) -> tuple[Points, Points]:
    """The points on both sides of the median along their longest axis."""
    centred = points - points.mean(0)
    order = np.argsort(centred @ np.linalg.svd(centred, full_matrices=False)[2][0])
    return points[order[: len(order) // 2]], points[order[len(order) // 2 :]]


def _grow(start: Points, ends: Points) -> list[tuple[Points, Points, int]]:
    """Branches from `start` to every end point, each as (from, to, end points it serves)."""
    if len(ends) == 1:
        return [(start, ends[0], 1)]
    fork = start + 0.42 * (ends.mean(0) - start)
    return [
        (start, fork, len(ends)),
        *(branch for half in _split(ends) for branch in _grow(fork, half)),
    ]


def _tree(branches: list[tuple[Points, Points, float]]) -> Tree:
    nodes, index = np.unique(
        np.array([p for a, b, _ in branches for p in (a, b)]), axis=0, return_inverse=True
    )
    return Tree(nodes, index.reshape(-1, 2), np.array([r for _, _, r in branches]))


@lru_cache(maxsize=1)
def template_trees(inside: Callable[[Points, str], NDArray[np.bool_]]) -> tuple[Tree, Tree]:
    """The airway tree and the artery tree of the unvaried chest, the same in every run.

    Args:
        inside: Whether points (N,3) in mm lie well inside the lung of a side.
    """
    cloud = qmc.scale(
        qmc.Halton(3, rng=np.random.default_rng(5)).random(6000),
        (-140, -110, -130),
        (140, 110, 130),
    )
    carina = np.array(CARINA)
    airways: list[tuple[Points, Points, float]] = [(np.array(TRACHEA_TOP), carina, 9.0)]
    arteries: list[tuple[Points, Points, float]] = []
    for side, place in HILUM.items():
        hilum = np.array(place)
        airways.append((carina, hilum, 6.5))
        for a, b, served in _grow(hilum, cloud[inside(cloud, side)][:ENDS]):
            size = (served / ENDS) ** 0.4
            if served >= GROUP:
                airways.append((a, b, BRONCHUS_MM * size))
            aside = (0.0, 0.0, BESIDE_MM)
            arteries.append((a + aside, b + aside, ARTERY_MM * size))
    return _tree(airways), _tree(arteries)


def draw_tree(tree: Tree, axes: tuple[Array, Array, Array], extra: float = 0.0) -> Array:
    """Share of each voxel that the tubes fill, 0 to 1, shape of the grid.

    A thin tube's cross-section is spread as a Gaussian as wide as a voxel, keeping its area
    (partial volume).

    Args:
        tree: Nodes in mm of the grid's world.
        axes: Voxel centres along x, y, z in mm, ascending.
        extra: Added to every radius, mm (a wall).
    """
    filled = np.zeros(tuple(len(a) for a in axes), np.float32)
    voxel = float(np.mean([a[1] - a[0] for a in axes]))
    for (i, j), radius in zip(tree.pairs, tree.radius + extra, strict=True):
        start, end = tree.nodes[i], tree.nodes[j]
        spread = (0.42 * voxel) ** 2 + radius**2 / 4
        reach = radius + 2.5 * np.sqrt(spread)
        low, high = np.minimum(start, end) - reach, np.maximum(start, end) + reach
        box = tuple(
            slice(*np.searchsorted(a, (lo, hi))) for a, lo, hi in zip(axes, low, high, strict=True)
        )
        from_start = (a[s] - o for a, s, o in zip(axes, box, start, strict=True))
        dx, dy, dz = np.meshgrid(*from_start, indexing="ij", sparse=True)
        along = end - start
        t = np.clip(
            (dx * along[0] + dy * along[1] + dz * along[2]) / max(float(along @ along), 1e-6), 0, 1
        )
        squared = (dx - t * along[0]) ** 2 + (dy - t * along[1]) ** 2 + (dz - t * along[2]) ** 2
        share = np.minimum(radius**2 / (2 * spread) * np.exp(-squared / (2 * spread)), 1)
        np.maximum(filled[box], share, out=filled[box])
    return filled
