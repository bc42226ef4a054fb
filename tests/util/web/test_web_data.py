"""Voxels as pages read them."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.viewer import SHAPE, SPACING, WINDOW, add_case, volumes
from util.web.results_page import ResultsPage
from util.web.web_data import PageGrid, brick_shape, bricks, halve, write_volume


def stored_values(path: Path, step: float) -> NDArray[Any]:
    """Return the values of a brick's file."""
    key, number, packed = json.loads(f"[{path.read_text().partition('(')[2].rpartition(')')[0]}]")
    assert path.match(f"{key}.{number}.js")
    planes = np.frombuffer(gzip.decompress(base64.b64decode(packed)), np.uint8).reshape(2, -1)
    values = np.ascontiguousarray(planes.T).view("<i2")
    return values.ravel() * step


def test_voxels_come_back(tmp_path: Path) -> None:
    page = ResultsPage(tmp_path, "t", WINDOW)
    v = volumes()
    add_case(page, "a/b c")
    for number, (name, step) in enumerate((("mask", 1.0), ("hu", 1.0), ("diff", 0.1))):
        values = stored_values(tmp_path / "web" / "case-0001-a_b_c" / f"{number}.0.js", step)
        assert np.abs(values.reshape(SHAPE, order="F") - v[name]).max() <= 0.501 * step


def test_large_volumes_are_written_in_bricks_of_full_resolution(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-900, 900, (150, 140, 101)).astype(np.int16)
    array[:, :, 100] = 5
    assert brick_shape(array.shape) == (128, 128, 16) and brick_shape(SHAPE) == SHAPE
    grid = PageGrid.around(array > 0, SPACING)
    assert grid.shape == array.shape and grid.spacing == SPACING
    write_volume(tmp_path, "case/a", array, "ct")
    parts = list(bricks(array))
    assert len(list(tmp_path.rglob("a.*.js"))) == len(parts) == 2 * 2 * 7
    assert np.array_equal(parts[1], array[128:, :128, :16])  # the first axis first
    for number, part in enumerate(parts):
        values = stored_values(tmp_path / "case" / f"a.{number}.js", 1.0)
        assert np.array_equal(values, part.ravel(order="F"))


def test_large_volumes_are_written_in_half_the_resolution_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(-900, 900, (151, 140, 101)).astype(np.int16)
    coarse = PageGrid.around(array > 0, SPACING).halved()
    assert coarse is not None and coarse.shape == (76, 70, 101)
    assert coarse.spacing == pytest.approx((2 * 151 / 76, 4.0, 4.0))
    write_volume(tmp_path, "a", array, "ct")
    means = halve(array, "ct")
    assert means[3, 5, 7] == array[6:8, 10:12, 7].mean() and means.shape == coarse.shape
    assert means[75, 5, 7] == array[150, 10:12, 7].mean()
    for number, part in enumerate(bricks(means)):
        values = stored_values(tmp_path / f"a~.{number}.js", 1.0)
        assert np.array_equal(values, np.rint(part.ravel(order="F")))
    labels = rng.integers(0, 3, (5, 4, 3))
    assert np.array_equal(halve(labels, "mask"), labels[::2, ::2])
    small = PageGrid.around(np.ones(SHAPE), SPACING)
    write_volume(tmp_path, "small", np.zeros(SHAPE), "ct")
    assert small.halved() is None and not list(tmp_path.glob("small~*"))
