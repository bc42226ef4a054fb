"""Masks of scans: threshold segmentation, quality flags, outside tools."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label

from data.geometry import Volume
from data.preparation import lungs, tools
from data.preparation.masks import MaskPlan, make_mask, threshold_lungs
from data.preparation.quality import measure_case, quality_warnings
from data.volumes import load_volume
from tests.chests import SPACING, chest
from util.cli import UserError

REAL = Path(__file__).resolve().parents[4] / "shared" / "realct"
COARSE = "voxels of up to 6 mm: small structures are lost"
AFFINE = np.diag([*SPACING, 1.0])


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def scan(hu: NDArray[np.int16]) -> Volume:
    return Volume(hu, AFFINE)


def test_threshold_masks_of_a_drawn_chest() -> None:
    hu, labels = chest()
    mask = threshold_lungs(scan(hu))
    assert [dice(mask == side, labels == side) > 0.97 for side in (1, 2)] == [True, True]
    assert dice(mask == 3, labels == 3) > 0.6
    assert mask.dtype == np.uint8 and quality_warnings(measure_case(scan(hu), mask)) == [COARSE]


def test_masks_of_fine_voxels_are_made_on_coarser_ones() -> None:
    hu, labels = (np.repeat(np.repeat(a, 2, 0), 2, 1)[20:, :, ::2][:, :, 5:] for a in chest())
    fine = Volume(
        hu, np.diag([0.8, 0.8, 9.0, 1.0])
    )  # as if a small animal: what counts is the grid
    mask = threshold_lungs(fine)
    assert mask.shape == hu.shape and mask.max() <= 3
    assert labels.shape == mask.shape


def test_touching_lungs_are_split() -> None:
    hu, labels = chest()[0].copy(), chest()[1]
    front = slice(32, 36)  # a bridge of lung before the heart
    middle = [int(np.nonzero((labels == side).any((1, 2)))[0].mean()) for side in (1, 2)]
    hu[middle[0] : middle[1], front, 36:44] = -860
    mask = threshold_lungs(scan(hu))
    assert all(dice(mask == side, labels == side) > 0.93 for side in (1, 2))
    parts = label((hu < -400) & lungs.body_mask(hu), connectivity=1)
    assert parts[middle[0], 33, 40] == parts[middle[1] - 1, 33, 40] != 0


def test_consolidated_rim_and_nodule_at_the_pleura_are_closed() -> None:
    hu, labels = chest()[0].copy(), chest()[1]
    lung = labels == 2
    depth = ndimage.distance_transform_edt(lung, SPACING)
    at = np.argwhere(lung & (depth < 7))
    centre = at[np.argmax(at[:, 0])]  # the outermost voxel
    near = (
        np.linalg.norm(
            (np.indices(hu.shape).T - centre).T * np.array(SPACING)[:, None, None, None], axis=0
        )
        < 14
    )
    patch = near & lung
    hu[patch] = 40
    open_ = (hu < lungs.MAX_LUNG_HU)[patch].mean()
    assert open_ == 0 and (threshold_lungs(scan(hu)) == 2)[patch].mean() > 0.6
    assert (
        lungs.close_lung((labels == 2) & ~patch, SPACING)[patch].mean() < 0.4
    )  # a ball alone does not reach it


def test_no_lungs() -> None:
    hu = np.full((40, 40, 30), -1000, np.int16)
    hu[8:32, 8:32] = 40
    assert not threshold_lungs(scan(hu)).any()
    assert not threshold_lungs(scan(np.full((20, 20, 10), 40, np.int16))).any()


def test_one_lung_is_named_by_its_side() -> None:
    hu, labels = chest()[0].copy(), chest()[1]
    hu[labels == 1] = 40
    mask = threshold_lungs(scan(hu))
    assert dice(mask == 2, labels == 2) > 0.95 and not (mask == 1).any()
    assert "there is no left lung" in quality_warnings(measure_case(scan(hu), mask))


def test_quality_flags() -> None:
    hu, labels = chest()
    swapped = np.where(labels == 1, 0, labels).astype(np.uint8)
    swapped[:8, :8, :8] = 1
    text = " ".join(quality_warnings(measure_case(scan(hu), swapped)))
    assert "the left lung has" in text and "times the left one's volume" in text
    leaked = labels.copy()
    leaked[:3] = 1
    text = " ".join(quality_warnings(measure_case(scan(hu), leaked)))
    assert "reach the sides" in text and "in separate parts" in text
    cut = slice(10, 40)
    assert "first or last slice" in " ".join(
        quality_warnings(measure_case(scan(hu[..., cut]), labels[..., cut]))
    )
    assert "airway has 0 ml" in " ".join(
        quality_warnings(measure_case(scan(hu), np.where(labels == 3, 0, labels).astype(np.uint8)))
    )
    assert "median" in " ".join(
        quality_warnings(measure_case(scan((hu + 600).clip(-1024, 3071)), labels))
    )


def test_loaded_masks(tmp_path: Path) -> None:
    hu, labels = chest()
    path = tmp_path / "m.nii.gz"
    nib.save(
        nib.Nifti1Image(
            labels[::-1],
            AFFINE
            @ np.array([[-1, 0, 0, hu.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        ),
        path,
    )  # another orientation
    assert np.array_equal(make_mask(MaskPlan("load", path), scan(hu), scan(hu)), labels)
    nib.save(nib.Nifti1Image(labels, np.diag([5.0, 6.0, 4.5, 1])), path)
    with pytest.raises(UserError, match="does not lie on the grid of its scan"):
        make_mask(MaskPlan("load", path), scan(hu), scan(hu))
    nib.save(nib.Nifti1Image(labels.astype(np.float32) / 2, AFFINE), path)
    with pytest.raises(UserError, match="not integers"):
        make_mask(MaskPlan("load", path), scan(hu), scan(hu))
    with pytest.raises(UserError, match="has no mask of its name"):
        make_mask(MaskPlan("load"), scan(hu), scan(hu))
    nib.save(nib.Nifti1Image((labels == 2).astype(np.uint8), AFFINE), path)
    mask = make_mask(MaskPlan("threshold", airway_file=path), scan(hu), scan(hu))
    assert np.array_equal(mask == 3, labels == 2)


# --- tools that are not installed here: stand-in programs ---

LUNGMASK = """#!{python}
import sys, nibabel as nib, numpy as np
image = nib.load(sys.argv[1])
hu = np.asarray(image.dataobj)
lungs = np.zeros(hu.shape, np.uint8)
lungs[30:40, 10:30, 20:40] = 1
lungs[10:20, 10:30, 20:40] = 2
nib.save(nib.Nifti1Image(lungs, image.affine), sys.argv[2])
"""
TOTAL = """#!{python}
import sys, pathlib, nibabel as nib, numpy as np
words = sys.argv[1:]
image, out = nib.load(words[words.index("-i") + 1]), pathlib.Path(words[words.index("-o") + 1])
for k, name in enumerate(words[words.index("--roi_subset") + 1:]):
    if name.startswith("--"): break
    part = np.zeros(image.shape, np.uint8)
    part[:, :, 5 * k:5 * k + 5] = 1
    nib.save(nib.Nifti1Image(part, image.affine), out / (name + ".nii.gz"))
"""


def stand_in(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / name
    path.write_text(text.replace("{python}", sys.executable))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_lungmask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "lungmask", LUNGMASK, monkeypatch)
    mask = make_mask(MaskPlan("lungmask"), scan(chest()[0]), scan(chest()[0]))
    assert (
        mask[15, 20, 30] == 1 and mask[35, 20, 30] == 2 and (mask == 3).any()
    )  # sides by place; the airway comes from the threshold


def test_totalsegmentator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "TotalSegmentator", TOTAL, monkeypatch)
    mask = make_mask(
        MaskPlan("totalsegmentator", tool_args="--fast"), scan(chest()[0]), scan(chest()[0])
    )
    assert [mask[0, 0, z] for z in (0, 5, 10, 15, 20, 25, 30)] == [1, 1, 2, 2, 2, 3, 0]


def test_tools_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = MaskPlan("lungmask", tool_hours=0.0005)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError,
        match=r"not installed.*pip install lungmask.*fetches its weights.*--masks threshold",
    ):
        tools.check_installed("lungmask")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for text, message in (
        ("#!/bin/sh\necho no weights >&2; exit 7\n", r"exit code 7: no weights"),
        ("#!/bin/sh\nexit 0\n", r"wrote no lungs\.nii\.gz"),
        ("#!/bin/sh\nexec sleep 30\n", r"took longer than --tool_hours 0\.0005"),
    ):
        stand_in(tmp_path, "lungmask", text, monkeypatch)
        with pytest.raises(UserError, match=message):
            make_mask(plan, scan(chest()[0]), scan(chest()[0]))


# --- real scans ---


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real scans at {REAL}")
def test_a_real_chest() -> None:
    image, expected, nodules = (
        load_volume(REAL / name / "LIDC-IDRI-0002.nii.gz") for name in ("img", "gtlung", "nodules")
    )
    mask = threshold_lungs(image)
    assert all(dice(mask == side, expected.array == side) >= 0.95 for side in (1, 2))
    assert np.isin(mask, (1, 2))[nodules.array > 0].mean() >= 0.95
