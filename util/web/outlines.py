"""A CT with its mask's outline, in three planes, as one small picture."""

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
    fullest_slices,
    label_colour,
    radiological_slice,
)

HEIGHT = 190  # pixels
GAP = 6


def outlined_slices(
    hu: NDArray[Any], mask: NDArray[Any], spacing: Sequence[float], window: Window = LUNG
) -> bytes:
    """Return a PNG file: slices in three planes through the fullest part of the mask.

    Args:
        hu: (X, Y, Z) in RAS.
        mask: Labels on the same grid; each is outlined in its colour of `util.web.figures`.
        spacing: Voxel size in mm.
        window: Lowest and highest HU shown.
    """
    at = fullest_slices(mask)
    tiles = []
    for plane, (across, down, through, _) in PLANES.items():
        width = hu.shape[across] * spacing[across]
        height = hu.shape[down] * spacing[down]
        size = (max(1, round(HEIGHT * width / height)), HEIGHT)
        gray = ct_gray(radiological_slice(hu, plane, at[through]), window)
        labels = radiological_slice(mask, plane, at[through]).astype(np.uint8)
        tiles.append(_tile(gray, labels, size))
    sheet_width = sum(tile.width for tile in tiles) + GAP * (len(tiles) - 1)
    sheet = Image.new("RGB", (sheet_width, HEIGHT), BACKGROUND)
    x = 0
    for tile in tiles:
        sheet.paste(tile, (x, 0))
        x += tile.width + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _tile(gray: NDArray[np.uint8], labels: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """Return a slice of this size (width and height in pixels) with outlines of its labels."""
    picture = Image.fromarray(gray).resize(size, Image.Resampling.BILINEAR)
    rgb = np.repeat(np.asarray(picture)[..., None], 3, axis=-1)
    large = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    # Where two labels meet, one line: that of the higher one, so that an airway within a lung keeps
    # its colour.
    edges = find_boundaries(large, mode="inner") & (ndimage.maximum_filter(large, 3) == large)
    for label in np.unique(large[edges]):
        rgb[edges & (large == label)] = np.round(np.array(to_rgb(label_colour(int(label)))) * 255)
    return Image.fromarray(rgb)
