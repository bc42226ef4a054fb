"""Lesions in masks: place, size, shape and names, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from data.lesions import Lesion, insert_lesion, lesion_name
from data.load_cohort import load_cohort
from data.regions import regions_of
from data.volumes import load_volume
from options.base_options import DataOptions
from options.lesion_options import LesionOptions
from tests.commands import command, refused
from util.cli import UserError

SIDE = 3.0  # mm
AFFINE = np.diag([SIDE, SIDE, SIDE, 1.0])


@pytest.fixture(scope="module")
def lungs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two boxes of lung, 60 x 90 x 90 mm, with the airways between them and into the right one."""
    labels = np.zeros((56, 40, 40), np.uint8)
    labels[5:25, 5:35, 5:35] = 1
    labels[31:51, 5:35, 5:35] = 2
    labels[27:36, 18:22, 18:30] = 3
    image = nib.Nifti1Image(labels, AFFINE)
    path = tmp_path_factory.mktemp("lungs") / "lungs.nii.gz"
    nib.save(image, path)
    return path


@pytest.fixture()
def insert(lungs: Path) -> Callable[..., Lesion]:
    def run(**flags: Any) -> Lesion:
        options = LesionOptions(MASK=str(lungs), OUT="x.nii.gz", **flags)
        return insert_lesion(load_volume(lungs), options, "lungs.nii.gz")

    return run


def test_a_nodule_has_its_place_and_size(insert: Callable[..., Lesion]) -> None:
    at = (14 * SIDE, 20 * SIDE, 28 * SIDE)
    lesion = insert(at=at, diameter=24.0)
    assert lesion.centre_mm == at and lesion.place == "left upper central"
    volume = lesion.voxels.sum() * SIDE**3
    assert volume == pytest.approx(np.pi / 6 * 24**3, rel=0.01)
    middle = ndimage.center_of_mass(lesion.voxels)
    assert np.allclose(np.array(middle) * SIDE, at, atol=SIDE)
    assert ndimage.label(lesion.voxels, np.ones((3, 3, 3)))[1] == 1
    assert set(np.unique(lesion.labels)) == {0, 1, 2, 3, 4}
    assert (lesion.labels == 4).sum() == lesion.voxels.sum()
    assert lesion.row == {
        "LESION": "solid nodule",
        "LESION SIZE": "24",
        "LESION PLACE": "left upper central",
    }


def test_seeds_change_the_border_not_the_size(insert: Callable[..., Lesion]) -> None:
    at = (14 * SIDE, 20 * SIDE, 20 * SIDE)
    one, again, other = (insert(at=at, diameter=30.0, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.voxels, again.voxels)
    assert not np.array_equal(one.voxels, other.voxels)
    assert one.voxels.sum() == pytest.approx(other.voxels.sum(), rel=0.01)


def test_ground_glass_is_irregular_and_ends_at_the_pleura(insert: Callable[..., Lesion]) -> None:
    at = (14 * SIDE, 6 * SIDE, 20 * SIDE)  # one voxel from the pleura
    lesion = insert(at=at, diameter=30.0, kind="ground_glass")
    assert lesion.row["LESION"] == "ground-glass opacity"
    assert lesion.place == "left middle subpleural"
    assert (lesion.labels == 6).sum() == lesion.voxels.sum()
    assert lesion.voxels.sum() * SIDE**3 == pytest.approx(np.pi / 6 * 30**3, rel=0.05)
    with pytest.raises(UserError, match="of a nodule of 30 mm at this place lie outside the lung"):
        insert(at=at, diameter=30.0)


def test_a_place_in_words(insert: Callable[..., Lesion], lungs: Path) -> None:
    mask = load_volume(lungs).array
    for seed in range(4):
        lesion = insert(place="right lower", diameter=18.0, density="part_solid", seed=seed)
        assert lesion.place.startswith("right lower") and (mask[lesion.voxels] == 2).all()
        assert lesion.row["LESION"] == "part-solid nodule" and (lesion.labels == 5).any()


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"at": (28 * SIDE, 2 * SIDE, 20 * SIDE)}, "is not in a lung .* has the label 0. Nearest"),
        ({"at": (500.0, 0.0, 0.0)}, "lies outside of lungs.nii.gz, whose middle is at 82,58,58"),
        ({"at": (36 * SIDE, 20 * SIDE, 24 * SIDE), "diameter": 15.0}, "overlaps the airways"),
        ({"at": (14 * SIDE, 20 * SIDE, 20 * SIDE), "diameter": 1.0}, "less than a voxel"),
        ({"at": (14 * SIDE, 20 * SIDE, 20 * SIDE), "diameter": 99.0}, "more than half of the lung"),
        ({"place": "left central", "diameter": 70.0}, "no room for 70 mm: the largest ball"),
        ({"place": "upper"}, "must name one side"),
        ({"place": "left apical"}, "'apical' is not one of: left, right"),
        ({"place": "left", "label": 2}, "--label is 2, which is a lung"),
        ({"place": "left", "lung_labels": (7, 8)}, "holds no lung .* labels are 0, 1, 2, 3. Name"),
    ],
)
def test_places_and_sizes_that_cannot_be_are_refused(
    flags: dict[str, Any], message: str, insert: Callable[..., Lesion]
) -> None:
    with pytest.raises(UserError, match=message):
        insert(**flags)


def test_a_second_lesion_must_not_overlap_the_first(
    insert: Callable[..., Lesion], lungs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "one.nii.gz"
    at = "42,60,60"
    done = command("scripts/insert_lesion.py", lungs, out, "--at", at, "--diameter", "20")
    assert done.code == 0, done.text
    sentence = "Lesion: solid nodule. Lesion size: 20 mm. Lesion place: left middle central."
    assert sentence in done.text
    assert '--set "LESION=solid nodule" --set "LESION SIZE=20"' in done.text
    row = pd.read_csv(tmp_path / "one.csv").iloc[0]
    assert row["File Name"] == "one.nii.gz" and row["LESION SIZE"] == 20
    written = nib.load(out)
    assert np.array_equal(written.affine, AFFINE) and written.get_data_dtype() == np.uint8
    two = tmp_path / "two.nii.gz"
    words = ("--at", "42,75,60", "--diameter", "14", "--density", "part_solid")
    refused(command("scripts/insert_lesion.py", out, two, *words), "overlaps label 4")
    refused(command("scripts/insert_lesion.py", lungs, out, "--at", at), "one.nii.gz exists")
    refused(command("scripts/insert_lesion.py", lungs, two), "either --at", "--place")
    words = ("--at", at, "--kind", "ground_glass", "--density", "solid")
    refused(command("scripts/insert_lesion.py", lungs, two, *words), "--density solid belongs to")
    refused(
        command("scripts/insert_lesion.py", lungs, tmp_path / "a.txt", "--at", at), "a.txt", "nii"
    )
    (tmp_path / "bad.nii.gz").write_bytes(b"bad")
    bad = command("scripts/insert_lesion.py", tmp_path / "bad.nii.gz", two, "--at", at)
    refused(bad, "bad.nii.gz")
    assert not two.exists() and not (tmp_path / "two.csv").exists()


def test_two_lesions_and_a_body_in_one_mask(lungs: Path, tmp_path: Path) -> None:
    labels = np.asarray(nib.load(lungs).dataobj).astype(np.uint8)
    labels[labels == 0] = 4
    in_body = tmp_path / "in_body.nii.gz"
    nib.save(nib.Nifti1Image(labels, AFFINE), in_body)
    one, two = tmp_path / "one.nii.gz", tmp_path / "two.nii.gz"
    glass = ("--kind", "ground_glass", "--diameter", "24", "--at", "15,60,60")  # at the pleura
    script = "scripts/insert_lesion.py"
    refused(command(script, in_body, one, "--at", "42,60,60"), "Label 4 surrounds", "--label")
    first = command(script, in_body, one, *glass)
    assert first.code == 0 and "already holds" not in first.text, first.text
    nodule = ("--at", "42,60,60", "--diameter", "14", "--label", "7")
    second = command(script, one, two, *nodule)
    assert second.code == 0 and "already holds lesions (label 6)" in second.text, second.text
    assert set(np.unique(nib.load(two).dataobj)) == {1, 2, 3, 4, 6, 7}


def test_lesions_count_as_lung_and_have_a_region(
    insert: Callable[..., Lesion], lungs: Path
) -> None:
    labels = insert(at=(14 * SIDE, 20 * SIDE, 28 * SIDE), diameter=24.0).labels
    sides = [SIDE] * 3
    plain = regions_of(load_volume(lungs).array, sides, DataOptions())
    with_lesion = regions_of(labels, sides, DataOptions(lesion_labels=(4,)))
    for region in ("lungs", "left_lung", "upper", "core", "rim", "outside"):
        assert np.array_equal(plain[region], with_lesion[region])
    assert np.array_equal(with_lesion["label_4"], labels == 4)
    assert np.array_equal(with_lesion["label_1"], labels == 1)
    assert (regions_of(labels, sides, DataOptions())["outside"] & (labels == 4)).any()
    assert DataOptions(lesion_labels=(4,)).terms.label_names[4] == "lesion (label 4)"
    with pytest.raises(UserError, match="--lesion_labels holds 2"):
        DataOptions(lesion_labels=(2, 4))


def test_a_single_label_of_lungs_tells_no_sides(insert: Callable[..., Lesion]) -> None:
    assert insert(at=(42.0, 60.0, 84.0), lung_labels=(1,)).place == "upper central"
    with pytest.raises(UserError, match=r"has no left lung. A single label .* give --at"):
        insert(place="left upper", lung_labels=(1,))


def test_the_body_is_no_lesion(cohort_copy: Path) -> None:
    """Label 4 is the body of prepared masks, and that of a solid nodule unless told otherwise."""
    paths = sorted((cohort_copy / "gtlung").iterdir())
    for path in paths:
        mask = nib.load(path)
        labels = np.where(np.asarray(mask.dataobj) == 0, 4, np.asarray(mask.dataobj))
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), mask.affine), path)
    with pytest.raises(UserError, match="--lesion_labels holds 4, which surrounds the lungs in"):
        load_cohort(DataOptions(dataroot=str(cohort_copy), lesion_labels=(4, 5)))
    cohort = load_cohort(DataOptions(dataroot=str(cohort_copy), lesion_labels=(5,)))
    assert cohort.body_label == 4


def test_names_follow_the_density() -> None:
    assert lesion_name("nodule", "ground_glass") == "ground-glass nodule"
    assert lesion_name("ground_glass", "ground_glass") == "ground-glass opacity"
