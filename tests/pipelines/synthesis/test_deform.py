"""Deformed masks: smooth, whole and plausible, or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from data.geometry import Volume
from options.expand_options import DeformOptions
from pipelines.synthesis.deform import (
    apply_deformation,
    deform_plausibly,
    plausibility_problems,
    random_deformation,
)
from util.cli import UserError

SPACING = (2.0, 2.0, 5.0)


def chest(spacing: tuple[float, float, float] = SPACING) -> Volume:
    """Two ellipsoid lungs and a tube, 120 mm across."""
    shape = tuple(round(120 / s) for s in spacing)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    labels = np.zeros(shape, np.uint8)
    for label, centre in ((1, -0.4), (2, 0.4)):
        labels[((x - centre) / 0.3) ** 2 + (y / 0.6) ** 2 + (z / 0.7) ** 2 < 1] = label
    labels[(np.abs(x) < 0.08) & (np.abs(y) < 0.1) & (z > 0.1) & (z < 0.8)] = 3
    return Volume(labels, np.diag([*spacing, 1.0]))


def test_labels_stay_whole_and_the_mask_differs() -> None:
    mask = chest()
    masks = [deform_plausibly(mask, DeformOptions(), [7, k], "mask").labels for k in range(3)]
    for labels in masks:
        assert labels.dtype == np.uint8 and set(np.unique(labels)) == {0, 1, 2, 3}
        assert plausibility_problems(mask.array, labels, 0.25) == []
        assert 0.6 < ((labels == 1) & (mask.array == 1)).sum() / (mask.array == 1).sum() < 1
    assert not np.array_equal(masks[0], masks[1])
    again = deform_plausibly(mask, DeformOptions(), [7, 0], "mask")
    assert np.array_equal(masks[0], again.labels)


def test_nothing_moves_without_deformation() -> None:
    mask = chest()
    still = DeformOptions(elastic_mm=0, turn=0, scale=0)
    assert np.array_equal(deform_plausibly(mask, still, [1], "mask").labels, mask.array)


def test_it_is_measured_in_mm_whatever_the_voxels() -> None:
    """The same draw on voxels of other shape gives the same lungs, up to a voxel."""
    options = replace(DeformOptions(), turn=8.0)
    fine, coarse = (
        apply_deformation(m, random_deformation(m, options, np.random.default_rng(3)))
        for m in (chest((2, 2, 2)), chest((2, 2, 4)))
    )
    same = fine[:, :, ::2] == coarse
    edge = ndimage.morphological_gradient(coarse, size=(3, 3, 3)) > 0
    assert same[~edge].mean() > 0.99


def test_the_map_folds_nowhere() -> None:
    """However large the shifts asked for: a ramp that is moved stays a ramp."""
    mask = chest((2, 2, 2))
    wild = DeformOptions(elastic_mm=100, node_mm=30, turn=0, scale=0)
    ramp = np.broadcast_to(np.arange(60.0)[:, None, None] * 2, (60, 60, 60)).astype(np.float32)
    for seed in range(2):
        deformation = random_deformation(mask, wild, np.random.default_rng(seed))
        moved = apply_deformation(Volume(ramp, mask.affine), deformation, order=1)
        assert np.diff(moved[10:-10], axis=0).min() > -1e-3


def test_the_scan_moves_with_its_mask() -> None:
    mask = chest()
    deformed = deform_plausibly(mask, DeformOptions(), [5], "mask")
    hu = np.where(mask.array == 1, -800, 0).astype(np.int16)
    moved = apply_deformation(Volume(hu, mask.affine), deformed.deformation, order=1)
    inside = ndimage.binary_erosion(deformed.labels == 1)
    assert moved.dtype == np.int16 and moved[inside].mean() < -780


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: np.where(m == 3, 0, m), "label 3 is gone"),
        (
            lambda m: np.where(ndimage.binary_dilation(m == 1, iterations=3) & (m == 0), 1, m),
            "label 1 changes its volume",
        ),
        (lambda m: np.roll(m, 12, axis=0), "label 2 is cut by the border"),
        (
            lambda m: np.where((m == 2) & (np.arange(m.shape[2]) == 12), 0, m),
            "label 2 falls into pieces",
        ),
    ],
)
def test_what_is_implausible(change: object, problem: str) -> None:
    mask = chest().array
    assert callable(change)
    assert any(problem in text for text in plausibility_problems(mask, change(mask), 0.25))


def test_empty_masks_and_hopeless_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = chest()
    with pytest.raises(UserError, match=r"empty\.nii holds nothing but background"):
        empty = Volume(np.zeros_like(mask.array), mask.affine)
        deform_plausibly(empty, DeformOptions(), [1], "empty.nii")
    with pytest.raises(
        UserError,
        match=r"m\.nii: none of 20 deformations is plausible .*changes its volume.*--elastic_mm",
    ):
        deform_plausibly(mask, DeformOptions(volume_change=0.0), [1], "m.nii")
    monkeypatch.setattr(
        "pipelines.synthesis.deform.apply_deformation",
        lambda volume, deformation: np.zeros_like(volume.array),
    )
    with pytest.raises(
        UserError,
        match=r"m\.nii: none of 20 deformations is plausible .*label 1 is gone; label 2 is gone",
    ):
        deform_plausibly(mask, DeformOptions(), [1], "m.nii")
