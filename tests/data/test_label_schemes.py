"""Lungs are found in masks of many labels, by numberings that are known."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data.label_schemes import recognise_labels
from data.load_cohort import load_cohort
from options.base_options import DataOptions
from util.metrics.regions import chest_regions

SHAPE = (24, 16, 12)


def write_chest(root: Path, lobes: tuple[int, ...], airway: int) -> DataOptions:
    """A chest whose five lobes have these labels, amid organs of other labels."""
    rng = np.random.default_rng(0)
    labels = np.zeros(SHAPE, np.int16)
    labels[1:23, 1:15] = 100 + np.arange(22)[:, None, None]
    labels[1:23, 1:3] = np.arange(1, 7).repeat(4)[:22, None, None]
    places = [(2, 0), (2, 6), (14, 0), (14, 4), (14, 8)]  # left ones first: x runs to the right
    for lobe, (x, z) in zip(lobes, places, strict=True):
        labels[x : x + 8, 4:12, z : z + (6 if x == 2 else 4)] = lobe
    labels[11:13, 6:9] = airway
    scan = np.select(
        [labels == 0, np.isin(labels, lobes), labels == airway], [-1000, -850, -990], 40
    )
    scan = scan + rng.integers(-9, 10, SHAPE)
    for folder, array in (("img", scan.astype(np.int16)), ("gtlung", labels.astype(np.uint8))):
        (root / folder).mkdir(parents=True)
        nib.save(nib.Nifti1Image(array, np.diag([4.0, 4, 4, 1])), root / folder / "case.nii.gz")
    return DataOptions(dataroot=str(root))


@pytest.mark.parametrize(
    ("lobes", "airway"), [((10, 11, 12, 13, 14), 16), ((28, 29, 30, 31, 32), 132)]
)
def test_known_numberings(tmp_path: Path, lobes: tuple[int, ...], airway: int) -> None:
    options = write_chest(tmp_path, lobes, airway)
    found = recognise_labels(options)
    assert (found.lung_labels, found.airway_label) == (lobes, airway)
    cohort = load_cohort(found)
    assert len(cohort.labels) > 16
    labels = np.asarray(nib.load(cohort.cases[0].mask).dataobj)  # type: ignore[attr-defined]
    regions = chest_regions(labels, (4, 4, 4), found.lung_labels, found.airway_label)
    assert np.array_equal(regions["left_lung"], np.isin(labels, lobes[:2]))
    assert np.array_equal(regions["right_lung"], np.isin(labels, lobes[2:]))


def test_labels_that_a_user_gave_stay(tmp_path: Path) -> None:
    root = write_chest(tmp_path, (10, 11, 12, 13, 14), 16).dataroot
    given = DataOptions(dataroot=root, lung_labels=(10, 11))
    assert recognise_labels(given) is given


def test_few_labels_and_missing_folders_stay(cohort_dir: Path) -> None:
    for root in (str(cohort_dir), "nowhere", ""):
        options = DataOptions(dataroot=root)
        assert recognise_labels(options) is options
