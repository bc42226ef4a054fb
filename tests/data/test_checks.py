"""HU are recognised by lungs and air, and cases are compared with one another."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data.checks import case as case_checks
from data.checks.cohort import check_volumes
from data.checks.intensities import constant_air_problems, hu_fact_problems, hu_facts
from data.fact_store import FactStore
from util.cli import UserError

SHARED = Path(__file__).resolve().parents[3] / "shared"
SHAPE = (20, 18, 16)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the shared inputs (../shared) are not here"
)


def labels() -> np.ndarray:
    """Return a mask of two lungs."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:9, 5:13, 3:13] = 1
    mask[11:16, 5:13, 3:13] = 2
    return mask


def chest(seed: int = 0, lungs: float = -830.0, air: float = -1000.0) -> np.ndarray:
    """Return HU of a body with lungs, in air."""
    rng = np.random.default_rng(seed)
    hu = np.full(SHAPE, 40.0)
    hu[:2] = hu[-2:] = air
    hu[labels() > 0] = lungs
    return (hu + rng.normal(0, 20, SHAPE)).astype(np.int16)


def problems(hu: np.ndarray) -> list[str]:
    """Return what is wrong with HU under the mask of two lungs."""
    return hu_fact_problems(hu_facts(hu, labels() > 0))


def padded(hu: np.ndarray) -> np.ndarray:
    """Return HU as a scanner pads them outside its field of view."""
    hu = hu.copy()
    hu[0] = hu[:, 0] = hu[:, -1] = -2000
    return hu


def test_chests_in_hu_pass() -> None:
    for lungs in (-960, -930, -830, -600, -400):  # emphysema to fibrosis
        assert problems(chest(lungs=lungs)) == []
        assert problems(padded(chest(lungs=lungs))) == []
    assert hu_fact_problems(hu_facts(chest())) == []  # without a mask


@pytest.mark.parametrize(
    "change",
    [
        lambda hu: hu + 1024,
        lambda hu: padded(hu + np.int16(1024)),
        lambda hu: hu + 1000,
        lambda hu: hu - 1024,  # the intercept was applied twice
        lambda hu: hu / 1000,
        lambda hu: hu / 2,
        lambda hu: (hu - hu.mean()) / hu.std(),
        lambda hu: (hu - hu.min()) / np.ptp(hu),
        lambda hu: ((hu + 1024) // 8).astype(np.uint8),
        lambda hu: np.where(hu < -900, -2000, hu + 1024),
        lambda hu: np.where(hu < -900, -1000, hu + 1024),  # padded with the value of air
        lambda hu: hu.clip(-160, 240),
    ],
)
def test_other_values_are_refused(change: object) -> None:
    (problem,) = problems(change(chest()))  # type: ignore[operator]
    assert problem.startswith("is not in HU: its values run from")
    assert "Apply the rescale slope and intercept" in problem


def test_a_single_voxel_does_not_decide() -> None:
    hu = chest() + np.int16(1024)
    hu[0, 0, 0] = -1000
    assert "median of" in problems(hu)[0] and "0.0% of its voxels are air" in problems(hu)[0]
    hu = chest()
    hu[0, 0, 0] = 32767
    assert problems(hu) == []


def test_a_mask_elsewhere_is_named() -> None:
    (problem,) = hu_fact_problems(hu_facts(chest(), chest() < -950))
    assert "its mask or the lung labels are wrong" in problem


def test_values_that_are_not_finite_or_constant() -> None:
    hu = chest().astype(np.float32)
    hu[3, 3, 3] = np.nan
    assert "not finite" in problems(hu)[0]
    assert "is constant (7 everywhere)" in problems(np.full(SHAPE, 7))[0]


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write a NIfTI, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def cohort(folder: Path, cases: int = 6) -> list[tuple[Path | None, Path]]:
    """Write scans and masks, and return their files."""
    files: list[tuple[Path | None, Path]] = []
    for k in range(cases):
        image = save(folder / "img" / f"c{k}.nii.gz", chest(k, -850 + 10 * k))
        files.append((image, save(folder / "gtlung" / f"c{k}.nii.gz", labels())))
    return files


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings so far."""
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_a_good_cohort_gives_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert check_volumes(cohort(tmp_path)).labels == (0, 1, 2)
    assert warned(caplog) == []


def test_one_case_that_differs_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = cohort(tmp_path)
    save(tmp_path / "img" / "c2.nii.gz", chest(2, -520))
    cropped = chest(3).clip(-1100, 100)
    cropped[:2] = cropped[-2:] = 40
    cropped[0, :5] = -1000
    save(tmp_path / "img" / "c3.nii.gz", cropped)
    for path in (tmp_path / "img" / "c4.nii.gz", tmp_path / "gtlung" / "c4.nii.gz"):
        save(path, np.asarray(nib.load(path).dataobj), np.diag([2, 2, 9.0, 1]))
    check_volumes(files)
    first, second, third = sorted(warned(caplog))
    assert "c4.nii.gz has voxels of 2 x 2 x 9 mm, the cohort's median is 2 x 2 x 2 mm" in first
    assert "c2.nii.gz: the median of the lungs is -519 HU, that of the other cases -819" in second
    assert "c3.nii.gz" in third and "of its voxels are air" in third


def test_one_raw_scan_among_others_is_refused(tmp_path: Path) -> None:
    files = cohort(tmp_path)
    save(tmp_path / "img" / "c2.nii.gz", padded(chest(2) + np.int16(1024)))
    with pytest.raises(UserError, match=r"c2\.nii\.gz is not in HU") as caught:
        check_volumes(files)
    assert "c3.nii.gz" not in str(caught.value)


def test_lungs_are_those_of_the_lung_labels(tmp_path: Path) -> None:
    files = cohort(tmp_path)
    for _, mask in files:
        save(mask, labels() * 10 + np.uint8(1))  # 1 is all that is not lung
    with pytest.raises(UserError, match="lung labels are wrong"):
        check_volumes(files)
    assert check_volumes(files, lung_labels=(11, 21)).labels == (0, 1, 11, 21)


def test_lungs_on_the_wrong_side_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = cohort(tmp_path)
    mirrored = np.diag([-2.0, 2.0, 2.0, 1.0])  # the same box, with left and right exchanged
    mirrored[0, 3] = 2.0 * (SHAPE[0] - 1)
    save(files[2][1], labels(), mirrored)
    check_volumes(files)
    (text,) = warned(caplog)
    assert "In 1 of 6 masks the left lung (label 1) lies on the right of the right one" in text
    assert "c2.nii.gz" in text and "--lung_labels 2,1" in text
    caplog.clear()
    check_volumes(files[:2], lung_labels=(2, 1))  # labels that are exchanged in every mask
    assert "In 2 of 2 masks the left lung (label 2)" in warned(caplog)[0]


def test_a_missing_lung_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = cohort(tmp_path)
    left_alone = labels()
    left_alone[left_alone == 2] = 0
    save(files[2][1], left_alone)
    check_volumes(files)
    (text,) = warned(caplog)
    assert "1 of 6 masks without the right lung (label 2): c2.nii.gz" in text
    caplog.clear()
    check_volumes(files[:2], lung_labels=(1, 7))  # a label that no mask has
    assert "2 of 2 masks without the right lung (label 7)" in warned(caplog)[0]


def test_headers_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = cohort(tmp_path)
    for path in (tmp_path / "img" / "c4.nii.gz", tmp_path / "gtlung" / "c4.nii.gz"):
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), None), path)
    check_volumes(files)
    assert sum("neither sform nor qform" in text for text in warned(caplog)) == 2


def test_facts_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = cohort(tmp_path / "cohort")
    cache = tmp_path / "cache"
    check_volumes(files, cache=cache)
    with monkeypatch.context() as patched:
        patched.setattr(
            case_checks, "load_checked", lambda path: pytest.fail(f"{path} is read again")
        )
        check_volumes(files, cache=cache)
    save(files[0][1], labels() * 0)  # another mask: the HU are judged again
    assert "c0.nii.gz" in str(files[0][0])
    check_volumes(files, cache=cache)
    assert any("only background" in text for text in warned(caplog))


@pytest.mark.parametrize(
    "content", ["[1, 2]", '{"a": 1}', "{", "[" * 100_000, "7", '{"a": {"low": 1}}', "\xff"]
)
def test_damaged_facts_are_measured_again(tmp_path: Path, content: str) -> None:
    files = cohort(tmp_path / "cohort", 2)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "checks.json").write_text(content, encoding="latin-1")
    assert check_volumes(files, cache=cache).labels == (0, 1, 2)
    stored = json.loads((cache / "checks.json").read_text())
    assert len(FactStore(cache / "checks.json").facts) == len(stored) >= 2


def shared_files(root: Path, masks: str = "gtlung") -> list[tuple[Path | None, Path]]:
    """Return the files of a shared cohort."""
    return [(path, root / masks / path.name) for path in sorted((root / "img").iterdir())]


def test_constant_air_is_padding() -> None:
    """HU + 1024, padded with exactly -1000; a scan in HU that is cut at -1000 passes."""
    hu = np.maximum(chest(), -1000)
    assert (hu == -1000).any() and constant_air_problems(hu_facts(hu)) == []
    raw = np.where(hu < -900, -1000, hu + 1024)
    facts = hu_facts(raw)
    assert hu_fact_problems(facts) == []  # there is enough air, if it is taken for air
    assert "one value -1000, as padding has" in constant_air_problems(facts)[0]
    assert constant_air_problems(hu_facts(raw + 2000)) == []  # without air, the other rule refuses


@needs_shared
def test_raw_values_with_padding_are_refused() -> None:
    root = SHARED / "cases" / "40_raw_pad2000" / "cohort"
    with pytest.raises(UserError, match=r"case001\.nii\.gz is not in HU.*median of 225"):
        check_volumes(shared_files(root))


@needs_shared
def test_one_raw_scan_among_four_is_refused(tmp_path: Path) -> None:
    good = SHARED / "cases" / "61_merged" / "cohort"
    raw = SHARED / "cases" / "40_raw_pad2000" / "cohort"
    for folder in ("img", "gtlung"):
        for k in (1, 2, 3):
            target = tmp_path / folder / f"case00{k}.nii.gz"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(good / folder / target.name, target)
        shutil.copyfile(raw / folder / "case004.nii.gz", tmp_path / folder / "case004.nii.gz")
    with pytest.raises(UserError) as caught:
        check_volumes(shared_files(tmp_path))
    assert str(caught.value).count("is not in HU") == 1 and "case004" in str(caught.value)


@needs_shared
def test_a_flipped_sform_is_refused() -> None:
    with pytest.raises(UserError, match=r"case001\.nii\.gz contradicts itself: .*RPS.*LPS"):
        check_volumes(shared_files(SHARED / "cases" / "43b_flip" / "cohort"))


@needs_shared
def test_real_chests_pass_and_heads_do_not(caplog: pytest.LogCaptureFixture) -> None:
    files = shared_files(SHARED / "realct") + shared_files(SHARED / "realct2")
    assert len(files) == 9
    assert check_volumes(files).labels == (0, 1, 2, 3)
    assert warned(caplog) == []
    with pytest.raises(UserError) as caught:
        check_volumes(shared_files(SHARED / "brainmri", "tumour"))
    assert str(caught.value).count("is not in HU") == 2
