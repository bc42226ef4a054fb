"""Slices as pictures: the right way round, in the right colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from util.web.figures import (
    LABEL_COLOURS,
    LUNG,
    Panel,
    ct_gray,
    difference_rgb,
    fullest_slices,
    inner_labels,
    mask_rgb,
    nice_limit,
    radiological_slice,
    save_slices_png,
)

SPACING = (2.0, 2.0, 4.0)
MASK = np.zeros((24, 20, 16), np.uint8)
MASK[3:10, 4:16, 2:14] = 1  # the left lung lies at low x
MASK[14:21, 4:16, 2:14] = 2
HU = np.where(MASK > 0, -850.0, 40.0)
CHANGE = np.where(MASK == 1, 12.34, -0.3)


@pytest.mark.parametrize(("plane", "through"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_picture_is_the_radiological_way_round(plane: str, through: int) -> None:
    shape = (5, 4, 3)
    x, y, z = np.indices(shape)
    place = np.stack([x, y, z], -1)
    index = 1
    shown = [radiological_slice(place[..., axis], plane, index) for axis in range(3)]
    assert np.all(shown[through] == index)
    across, down = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[plane]
    # Left edge: the patient's right (high x) or front (high y); top: front (high y) or head (high
    # z).
    assert shown[across].shape == (shape[down], shape[across])
    assert shown[across][0, 0] == shape[across] - 1 and shown[across][0, -1] == 0
    assert shown[down][0, 0] == shape[down] - 1 and shown[down][-1, 0] == 0


def test_colours() -> None:
    assert ct_gray(np.array([-2000.0, LUNG[0], -600.0, LUNG[1], 3000.0]), LUNG).tolist() == [
        0,
        0,
        128,
        255,
        255,
    ]
    blue, white, red = difference_rgb(np.array([-50.0, 0.0, 50.0]), 50).astype(int)
    assert blue[2] > blue[0] + 50 and red[0] > red[2] + 50 and white.min() > 230
    left, right, airway = mask_rgb(np.array([1, 2, 3])).tolist()
    assert left == [int(LABEL_COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)]
    assert len({tuple(left), tuple(right), tuple(airway)}) == 3


@pytest.mark.parametrize(
    ("value", "limit"), [(0, 1), (0.3, 1), (1, 1), (3, 5), (41, 50), (99.9, 100), (101, 200)]
)
def test_nice_limit(value: float, limit: float) -> None:
    assert nice_limit(value) == limit


def test_fullest_slices() -> None:
    mask = np.zeros((6, 7, 8))
    assert fullest_slices(mask) == (3, 3, 4)
    mask[1:3, 5, 2], mask[1, 5, 3] = 1, 1
    assert fullest_slices(mask) == (1, 5, 2)


def test_a_label_around_all_others_is_not_looked_for() -> None:
    mask = np.zeros((10, 10, 10), np.uint8)
    mask[1:9, 1:9, 1:9] = 4  # the body
    mask[2:4, 3, 6], mask[6:8, 3, 6] = 1, 2  # lungs
    assert fullest_slices(mask) == (2, 3, 6)
    assert np.array_equal(inner_labels(mask), (mask == 1) | (mask == 2))
    mask[0, 0, 0] = 3  # outside the body
    assert np.array_equal(inner_labels(mask), mask > 0)
    assert not inner_labels(np.zeros((3, 3, 3), np.uint8)).any()


def test_save_slices_png(tmp_path: Path) -> None:
    panels = [Panel("mask", "mask", MASK, SPACING), Panel("diff", "difference", CHANGE, SPACING)]
    save_slices_png(tmp_path / "a.png", panels)
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    red = difference_rgb(np.array([12.34]), 20)[0]
    assert (pixels == mask_rgb(np.array([2]))[0]).all(-1).any()
    assert (
        np.abs(pixels.astype(int) - red).max(-1) <= 2
    ).sum() > 500  # 12.34 HU on a bar of ±20 HU


def test_differences_differ_for_the_colour_blind() -> None:
    """The ends of the range stay apart for deuteranopia and protanopia (Machado et al. 2009)."""
    ends = difference_rgb(np.array([-20.0, 0.0, 20.0]), 20) / 255
    linear = np.where(ends <= 0.04045, ends / 12.92, ((ends + 0.055) / 1.055) ** 2.4)
    deuteranopia = (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.01182, 0.04294, 0.968881),
    )
    protanopia = (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    )
    for matrix in (deuteranopia, protanopia):
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.4)
        low, middle, high = rgb2lab(seen)
        for one, two in ((low, middle), (middle, high), (low, high)):
            assert deltaE_ciede2000(one, two) > 20  # 1 is just seen
