"""Sheets of slices: figures, stacks and animations."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from util.web.figures import Panel, difference_rgb
from util.web.slice_sheet import (
    SliceSheet,
    find_ffmpeg,
    frame_slices,
    save_animation,
    sheet_rows,
    top_slices,
)

SHAPE, SPACING = (20, 16, 12), (2.0, 2.0, 3.0)
MASK = np.zeros(SHAPE, np.uint8)
MASK[4:16, 3:13, 2:10] = 1
CHANGE = np.where(MASK > 0, np.arange(12.0), 0)  # stronger towards the head
HU = np.where(MASK > 0, -850.0, 40.0)
PANELS = [Panel("A", "ct", HU, SPACING), Panel("B minus A", "difference", CHANGE, SPACING)]


def test_slices_of_an_animation_and_the_strongest_ones() -> None:
    assert frame_slices(MASK, "axial") == list(range(2, 10))
    assert frame_slices(MASK, "axial", 3) == [2, 6, 9]
    assert frame_slices(MASK * 0, "sagittal", 100) == list(range(20))
    assert top_slices([CHANGE], MASK, "axial", 1) == [9]
    assert len(top_slices([CHANGE], MASK, "axial", 3)) == 3
    assert top_slices([CHANGE * 0], MASK, "axial", 3) == []


def test_many_volumes_stand_in_two_rows() -> None:
    assert sheet_rows(PANELS) == [PANELS]
    many = [PANELS[0]] * 3 + [PANELS[1]] * 3
    assert [[p.kind for p in row] for row in sheet_rows(many)] == [["ct"] * 3, ["difference"] * 3]


def test_a_figure_shows_the_slice_and_the_bars(tmp_path: Path) -> None:
    sheet = SliceSheet(PANELS, "axial", "case", limit=20)
    for index in (5, 9):
        sheet.show(index)
        sheet.save(tmp_path / f"{index}.png")
        pixels = np.asarray(Image.open(tmp_path / f"{index}.png").convert("RGB")).astype(int)
        colour = difference_rgb(np.array([float(index)]), 20)[0]
        assert (np.abs(pixels - colour).max(-1) <= 2).sum() > 500
    sheet.save(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text.startswith("<?xml") and len(sheet.figure.axes) == 4  # two pictures, two bars
    several = SliceSheet(PANELS, "axial", "case", limit=20, indices=[3, 8])
    assert len(several.figure.axes) == 8


def test_an_animation_has_a_picture_for_each_slice(tmp_path: Path) -> None:
    sheet = SliceSheet(PANELS, "coronal", "case")
    save_animation(sheet, [4, 6, 8], tmp_path / "a.gif", 10)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.info["duration"] == 100
        assert len(ImageSequence.all_frames(animation)) == 3
        frames = []
        for number in range(3):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB")))
    assert not np.array_equal(frames[0], frames[2])


def test_an_animation_as_mp4_has_a_frame_for_each_slice(tmp_path: Path) -> None:
    reader = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    program = find_ffmpeg()
    assert program is not None and (shutil.which("ffmpeg") or "imageio_ffmpeg" in program)
    sheet = SliceSheet(PANELS, "coronal", "case")
    save_animation(sheet, [4, 6, 8], tmp_path / "a.mp4", 10)
    frames, seconds = reader.count_frames_and_secs(str(tmp_path / "a.mp4"))
    assert frames == 3 and seconds == pytest.approx(0.3, abs=0.05)
    film = reader.read_frames(str(tmp_path / "a.mp4"))
    width, height = next(film)["size"]
    pictures = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in film]
    assert np.abs(pictures[0].astype(int) - pictures[2]).max() > 50


def test_without_ffmpeg_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_ffmpeg() is None
