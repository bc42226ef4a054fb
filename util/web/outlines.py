"""A CT with its mask's outline, as a montage of slices in three planes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.segmentation import find_boundaries

from util.web.figures import (
    BACKGROUND,
    LUNG,
    PLANES,
    Window,
    ct_gray,
    filled_range,
    label_colour,
    radiological_slice,
)

AXIAL_SLICES = 8  # of the first row; the second has half as many of each other plane
TILE_WIDTH = 150  # pixels of an axial slice
GAP = 4


def outlined_montage(
    hu: NDArray[Any],
    mask: NDArray[Any],
    content: NDArray[Any],
    spacing: Sequence[float],
    window: Window = LUNG,
) -> bytes:
    """Return a PNG file: axial slices in a row, coronal and sagittal ones below, evenly spread.

    Args:
        hu: (X, Y, Z) in RAS.
        mask: Labels on the same grid; each is outlined in its colour of `util.web.figures`.
        content: Above 0 where the slices are taken, such as the lungs.
        spacing: Voxel size in mm.
        window: Lowest and highest HU shown.
    """
    rank = _ranks(mask)
    millimetres = TILE_WIDTH / (hu.shape[0] * spacing[0])  # pixels per mm
    rows = []
    for planes in (("axial",), ("coronal", "sagittal")):
        row = []
        for plane in planes:
            across, down, through, _ = PLANES[plane]
            sides = (hu.shape[across] * spacing[across], hu.shape[down] * spacing[down])
            size = tuple(max(1, round(side * millimetres)) for side in sides)
            for index in spread_slices(content, through, AXIAL_SLICES // len(planes)):
                gray = ct_gray(radiological_slice(hu, plane, index), window)
                labels = radiological_slice(mask, plane, index).astype(np.int16)
                row.append(_tile(gray, labels, rank, (size[0], size[1])))
        rows.append(_join(row, down=False))
    buffer = io.BytesIO()
    _join(rows, down=True).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def spread_slices(content: NDArray[Any], axis: int, count: int) -> list[int]:
    """Return slices along an axis, evenly spread over those that hold something."""
    first, last = filled_range(content > 0, axis)
    places = first + (np.arange(count) + 0.5) / count * (last - first)
    return [int(place) for place in np.rint(places)]


def _ranks(mask: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rank of each label, the largest structure lowest; that of the background is 0."""
    counts = np.bincount(np.asarray(mask, np.int64).ravel())
    counts[0] = 0
    order = np.argsort(-counts, kind="stable")
    ranks = np.zeros(len(counts), np.int64)
    ranks[order] = np.arange(1, len(counts) + 1)
    ranks[counts == 0] = 0
    return ranks


def _join(tiles: Sequence[Image.Image], down: bool) -> Image.Image:
    """Return pictures side by side, or below one another."""
    along = [tile.height if down else tile.width for tile in tiles]
    other = max(tile.width if down else tile.height for tile in tiles)
    length = sum(along) + GAP * (len(tiles) - 1)
    sheet = Image.new("RGB", (other, length) if down else (length, other), BACKGROUND)
    at = 0
    for tile, size in zip(tiles, along, strict=True):
        sheet.paste(tile, (0, at) if down else (at, 0))
        at += size + GAP
    return sheet


def _tile(
    gray: NDArray[np.uint8],
    labels: NDArray[np.int16],
    rank: NDArray[np.int64],
    size: tuple[int, int],
) -> Image.Image:
    """Return a slice of this size (width and height in pixels) with outlines of its labels."""
    picture = Image.fromarray(gray).resize(size, Image.Resampling.BILINEAR)
    rgb = np.repeat(np.asarray(picture)[..., None], 3, axis=-1)
    large = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    # Where two labels meet, one line: that of the smaller structure, so that an airway within a
    # lung keeps its colour, and a lung within the body.
    ranks = rank[large]
    edges = find_boundaries(large, mode="inner") & (ndimage.maximum_filter(ranks, 3) == ranks)
    for label in np.unique(large[edges]):
        rgb[edges & (large == label)] = np.round(np.array(to_rgb(label_colour(int(label)))) * 255)
    return Image.fromarray(rgb)
