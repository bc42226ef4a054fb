"""Scans that are not in HU: scaled on reading, checked by what they are."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data.cache import cache_cases, load_case
from data.geometry import Volume
from data.intensity import IntensityScale
from data.load_cohort import load_cohort
from data.lung_density import text_statistics
from data.regions import regions_of
from options.base_options import DataOptions
from options.parser import from_dict
from options.train_options import TrainOptions
from tests.mr_cohort import BRAIN, LESION, write_mr_cohort
from util.cli import UserError


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mr_cohort(tmp_path_factory.mktemp("mr") / "heads", 6)


def mr(root: Path, **values: object) -> DataOptions:
    return DataOptions(**{"dataroot": str(root), "modality": "mr", **values})  # type: ignore[arg-type]


def test_percentiles_undo_the_gain_of_a_scan() -> None:
    scan = np.random.default_rng(0).gamma(2, 100, (12, 12, 12)).astype(np.float32)
    scan[:4] = 0  # padding does not count
    scale = IntensityScale(None, (0.5, 99.5))
    first = scale(Volume(scan, np.eye(4))).array
    second = scale(Volume(scan * 7.3, np.eye(4))).array
    assert np.abs(first - second).max() <= 1
    inside = np.percentile(first[4:], (0.5, 99.5))
    assert inside == pytest.approx([0, 1000], abs=2)


def test_a_window_is_mapped_linearly() -> None:
    scale = IntensityScale((100.0, 300.0), (0.5, 99.5))
    scaled = scale(Volume(np.array([[[100.0, 200.0, 400.0]]]), np.eye(4))).array
    assert scaled.ravel().tolist() == [0, 500, 1500]


def test_every_reader_sees_arbitrary_units(heads: Path, tmp_path: Path) -> None:
    data = mr(heads)
    case = load_cohort(data).cases[0]
    scan, mask = load_case(case, None)
    assert scan is not None and case.image is not None
    raw = np.asarray(nib.load(case.image).dataobj)  # type: ignore[attr-defined]
    assert raw.max() > 1200 or raw.max() < 900  # a gain of its own
    assert np.percentile(scan.array[mask.array > 0], 99.5) == pytest.approx(1000, abs=30)
    prepared = cache_cases([case], data, tmp_path)[0]
    assert np.array_equal(prepared.scan().array, scan.array)
    window = mr(heads, modality="custom", intensity_window=(0.0, 4000.0))
    other = cache_cases([load_cohort(window).cases[0]], window, tmp_path)[0]
    assert other.folder != prepared.folder


def test_regions_are_the_labels(heads: Path) -> None:
    case = load_cohort(mr(heads)).cases[0]
    mask = load_case(case, None)[1]
    regions = regions_of(mask.array, (2, 2, 4), mr(heads, lung_labels=(LESION, BRAIN)))
    assert list(regions) == ["lungs", "outside", "label_0", "label_1", "label_5"]
    assert np.array_equal(regions["lungs"], mask.array > 0)


def test_every_label_is_measured_whole(heads: Path) -> None:
    """The lesion is chosen, and the brain reaches beyond it."""
    case = load_cohort(mr(heads)).cases[0]
    lesion, both = (
        text_statistics([case], mr(heads, lung_labels=labels))[0]
        for labels in ((LESION,), (LESION, BRAIN))
    )
    brain = [name for name in both if name.startswith(f"label_{BRAIN} ")]
    assert brain and {name: lesion[name] for name in brain} == {name: both[name] for name in brain}


def test_ct_refuses_mr_and_names_the_flag(heads: Path) -> None:
    with pytest.raises(UserError, match=r"is not in HU.*--modality mr"):
        load_cohort(DataOptions(dataroot=str(heads)))


def test_a_window_beside_the_values_is_refused(heads: Path) -> None:
    with pytest.raises(UserError, match="all of them outside --intensity_window"):
        load_cohort(mr(heads, intensity_window=(9e4, 1e5)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modality": "custom"}, "needs --intensity_window"),
        ({"intensity_window": (5.0, 5.0)}, "must be below"),
        ({"percentiles": (99.0, 1.0)}, "must be below"),
        ({"hu_window": (0.0, 80.0)}, "--hu_window is given with --modality mr"),
        ({"airway_label": 4}, "--airway_label is given"),
        ({"body_label": "7"}, "bodies are found in chest CT"),
        ({"modality": "ct", "intensity_window": (0.0, 1.0)}, "whose volumes are in HU"),
    ],
)
def test_flags_that_do_not_go_together(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mr(Path("x"), **values)


def test_runs_of_earlier_versions_are_ct() -> None:
    options = from_dict(TrainOptions, {"data": {"lung_labels": [1, 2]}}, "options.json")
    assert options.data.terms.is_ct and options.data.hu_window == (-1000.0, 400.0)


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 1), (1, 64, 64)])
def test_2d_images_are_refused_with_the_reason(tmp_path: Path, shape: tuple[int, ...]) -> None:
    root = write_mr_cohort(tmp_path / "xray", 1)
    picture = np.random.default_rng(0).integers(-1000, 300, shape).astype(np.int16)
    for folder in ("img", "gtlung"):
        nib.save(
            nib.Nifti1Image(picture * (folder == "img"), np.eye(4)), root / folder / "head0.nii.gz"
        )
    with pytest.raises(UserError, match=r"2D image.*X-ray.*three-dimensional"):
        load_cohort(DataOptions(dataroot=str(root)))


def test_pictures_in_place_of_volumes_are_refused(tmp_path: Path) -> None:
    for folder in ("img", "gtlung"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "chest1.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds 2D images \(chest1.png\)"):
        load_cohort(DataOptions(dataroot=str(tmp_path)))


def test_masks_in_another_folder(tmp_path: Path) -> None:
    root = write_mr_cohort(tmp_path / "heads", 2, "tumour")
    with pytest.raises(UserError, match=r"img, tumour\. .*--mask_folder"):
        load_cohort(mr(root))
    assert load_cohort(mr(root, mask_folder="tumour")).labels == (0, LESION, BRAIN)
