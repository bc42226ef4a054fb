"""Preparation of scans that are not chest CT: intensities stay, masks are given."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset

from data.preparation.pixels import read_stack
from data.preparation.run import training_command
from data.preparation.series import stack_slices
from data.preparation.sources import discover_sources
from data.volumes import load_volume
from options.prepare_options import SeriesOptions
from tests.chests import SIZE, SPACING, write_series
from tests.commands import command, refused
from tests.mr_cohort import write_mr_cohort
from util.files import read_csv

MR = ("--modality", "mr", "--jobs", "0")
CHEST = re.compile(r"\bHU\b|[Ll]ungs?\b|[Aa]irway|Hounsfield|\bCT\b")


def seen_words(page: Path) -> list[str]:
    """What a reader sees that is of a chest CT, but for names of flags."""
    text = re.sub(r"<script.*?</script>", " ", page.read_text(), flags=re.DOTALL)
    text = re.sub(r'class="option-groups".*?</details>', " ", text, flags=re.DOTALL)
    return [line for line in re.sub(r"<[^>]+>", "\n", text).split("\n") if CHEST.search(line)]


def test_volumes_keep_their_intensities(tmp_path: Path) -> None:
    cohort = write_mr_cohort(tmp_path / "heads", 3)
    out = tmp_path / "out"
    words = ("scripts/prepare_data.py", cohort, out, *MR)
    done = command(*words, "--table", cohort / "clinical.csv")
    assert done.code == 0, done.text
    names = sorted(path.name for path in (out / "img").iterdir())
    assert len(names) == 3
    arrays = {load_volume(cohort / "img" / f"head{k}.nii.gz").array.tobytes() for k in range(3)}
    assert {load_volume(out / "img" / name).array.tobytes() for name in names} == arrays
    assert set(np.unique(load_volume(out / "gtlung" / names[0]).array)) == {0, 1, 5}
    assert {row["SEX"] for row in read_csv(out / "clinical.csv")} == {"F", "M"}
    row = read_csv(out / "report.csv")[0]
    assert float(row["label_5_ml"]) > float(row["label_1_ml"]) > 0 and "p50" in row
    assert not any("hu" in name or "lung" in name for name in row)
    page = out / "report.html"
    assert seen_words(page) == [] and "Label 5" in page.read_text()
    assert training_command(out, "custom").count(" --intensity_window LOW,HIGH ") == 1
    again = command(*words, "--table", cohort / "clinical.csv")
    assert again.code == 0 and "3 cases are already there and unchanged" in again.text
    refused(command(*words, "--masks", "threshold"), "finds lungs in chest CT", "--mask_dir")
    refused(command(*words, "--kernel", "soft"), "which chest CT has")
    refused(command(*words, "--source", "aiib23"), "is a cohort of chest CT (aiib23)")


def test_resampled_volumes_keep_the_range_of_their_intensities(tmp_path: Path) -> None:
    cohort = write_mr_cohort(tmp_path / "heads", 2)
    gains = {"head0": 8, "head1": 0.001}  # beyond the range of HU, and fractions
    for name, gain in gains.items():
        path = cohort / "img" / f"{name}.nii.gz"
        scan = load_volume(path)
        array = scan.array * gain
        nib.save(
            nib.Nifti1Image(array.astype(np.int16 if gain > 1 else np.float32), scan.affine), path
        )
    words = ("--ids", "keep", "--spacing", "2,2,2")
    done = command("scripts/prepare_data.py", cohort, tmp_path / "out", *MR, *words)
    assert done.code == 0, done.text
    for name in gains:
        before, after = (
            load_volume(root / "img" / f"{name}.nii.gz").array
            for root in (cohort, tmp_path / "out")
        )
        assert after.shape == (20, 20, 20) and after.dtype == before.dtype
        np.testing.assert_allclose(after.max(), before.max(), rtol=0.05)
        np.testing.assert_allclose(after.mean(), before.mean(), rtol=0.02)


def test_uneven_slices_of_fractions_are_interpolated(tmp_path: Path) -> None:
    def thin(d: Dataset, z: int) -> None:
        head(d, z)
        d.RescaleSlope, d.RescaleIntercept = 0.001, 0.0

    whole = np.broadcast_to(np.arange(1000, 1000 + 10 * SIZE[2], 10), SIZE).astype(np.int16)
    files = write_series(tmp_path / "in", edit=thin, hu=whole - np.int16(1024))
    files[10].unlink()
    source = discover_sources(tmp_path / "in", "dicom", SeriesOptions(), modality="mr").sources[0]
    assert source.series is not None
    scan = read_stack(stack_slices(source.series, "resample", is_ct=False), is_ct=False)
    np.testing.assert_allclose(scan.volume.array, whole / 1000, atol=1e-5)


def head(d: Dataset, z: int) -> None:
    """Make a slice one of an MR of a head, which has no rescale tags."""
    d.Modality, d.BodyPartExamined = "MR", "HEAD"
    del d.RescaleSlope, d.RescaleIntercept, d.KVP


def test_series_take_the_mask_of_their_patient(tmp_path: Path) -> None:
    intensities = np.random.default_rng(0).integers(0, 4000, SIZE).astype(np.int16)
    write_series(tmp_path / "in", edit=head, hu=intensities - np.int16(1024))
    write_series(tmp_path / "in" / "two", patient="P2", study="2", edit=head)
    labels = np.zeros(SIZE, np.uint8)
    labels[20:40, 10:30, 20:50] = 7
    (tmp_path / "masks").mkdir()
    affine = np.diag([*SPACING, 1.0])
    read = command("scripts/prepare_data.py", tmp_path / "in", tmp_path / "ct", "--jobs", "0")
    assert read.code == 3 and "its modality is MR, not CT" in read.text
    # The grid of the series: its first pixel is at 0, and x and y run to the left and the back.
    affine[:2, 3] = [-(SIZE[0] - 1) * SPACING[0], -(SIZE[1] - 1) * SPACING[1]]
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "masks" / "P1.nii.gz")
    out = tmp_path / "out"
    words = (tmp_path / "in", out, *MR, "--mask_dir", tmp_path / "masks", "--ids", "keep")
    done = command("scripts/prepare_data.py", *words)
    assert done.code == 3 and "It has no mask of its name" in done.text
    (image,) = (out / "img").iterdir()
    (mask,) = (out / "gtlung").iterdir()
    assert np.array_equal(load_volume(image).array, intensities)
    assert np.array_equal(load_volume(mask).array, labels)
