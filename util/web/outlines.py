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

from util.web.figures import LUNG, PLANES, Window, ct_gray, fullest_slices, label_colour, picture

HEIGHT = 190  # pixels
GAP = 6


def outlined(
    hu: NDArray[Any], mask: NDArray[Any], spacing: Sequence[float], window: Window = LUNG
) -> bytes:
    """Axial, coronal and sagittal slices through the fullest part of the mask, as a PNG file's
    bytes.

    Args:
        hu: (X, Y, Z) in RAS.
        mask: Labels on the same grid; each is outlined in its colour of `util.web.figures`.
        spacing: Voxel size in mm.
        window: Lowest and highest HU shown.
    """
    at = fullest_slices(mask)
    tiles = [_tile(hu, mask, spacing, plane, at[PLANES[plane][2]], window) for plane in PLANES]
    sheet = Image.new(
        "RGB", (sum(t.width for t in tiles) + GAP * (len(tiles) - 1), HEIGHT), "#0b0d11"
    )
    x = 0
    for tile in tiles:
        sheet.paste(tile, (x, 0))
        x += tile.width + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _tile(
    hu: NDArray[Any],
    mask: NDArray[Any],
    spacing: Sequence[float],
    plane: str,
    index: int,
    window: Window,
) -> Image.Image:
    across, down, *_ = PLANES[plane]
    wide, high = hu.shape[across] * spacing[across], hu.shape[down] * spacing[down]
    size = (max(1, round(HEIGHT * wide / high)), HEIGHT)
    gray = Image.fromarray(ct_gray(picture(hu, plane, index), window)).resize(
        size, Image.Resampling.BILINEAR
    )
    labels = np.asarray(
        Image.fromarray(picture(mask, plane, index).astype(np.uint8)).resize(
            size, Image.Resampling.NEAREST
        )
    )
    rgb = np.repeat(np.asarray(gray)[..., None], 3, axis=-1)
    # Where two labels meet, one line: that of the higher one, so that an airway within a lung keeps
    # its colour.
    edges = find_boundaries(labels, mode="inner") & (ndimage.maximum_filter(labels, 3) == labels)
    for label in np.unique(labels[edges]):
        rgb[edges & (labels == label)] = np.round(np.array(to_rgb(label_colour(int(label)))) * 255)
    return Image.fromarray(rgb)
