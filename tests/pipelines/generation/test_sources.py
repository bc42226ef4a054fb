"""Volumes from masks alone, from one mask, and from cohorts in other formats; DICOM."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from data.body import BodyLabel, add_body
from data.volumes import load_volume, write_like
from tests.commands import TINY, TrainedRun, command, refused
from tests.generated_volumes import SMOKING, generate, own_cases, volumes
from util.files import read_csv


def test_from_masks_alone(
    trained_run: TrainedRun, results: Path, cohort_copy: Path, tmp_path: Path
) -> None:
    """Masks that hold the body need no scan; others get a drawn one (`test_body_label.py`)."""
    for case in own_cases(cohort_copy):
        scan, mask = (cohort_copy / name / f"{case}.nii.gz" for name in ("img", "gtlung"))
        with_body = add_body(load_volume(mask), load_volume(scan), BodyLabel(4, (1, 2)), mask)
        write_like(mask, with_body.array, mask, np.uint8)
    shutil.rmtree(cohort_copy / "img")
    folder = generate(
        trained_run, tmp_path / "res", "--vary", SMOKING, "--page", cohort=cohort_copy
    )
    assert volumes(folder) == volumes(results)
    assert "mean_lung_attenuation_hu" in {row["metric"] for row in read_csv(folder / "metrics.csv")}
    assert not {"mae_hu", "psnr_db", "ssim"} & {
        row["metric"] for row in read_csv(folder / "metrics.csv")
    }
    assert (folder / "index.html").is_file()


def test_one_mask_and_a_text(trained_run: TrainedRun, cohort_dir: Path, tmp_path: Path) -> None:
    mask, out = (
        cohort_dir / "gtlung" / f"{own_cases(cohort_dir)[0]}.nii.gz",
        tmp_path / "new" / "one.nii.gz",
    )
    words = (
        "--mask",
        str(mask),
        "--prompt",
        "Patient age: 60.",
        "--out",
        str(out),
        *trained_run.flags(),
    )
    done = command("test.py", *words)
    assert done.code == 0, done.text
    made, source = nib.load(out), nib.load(mask)
    assert made.shape == source.shape and np.array_equal(made.affine, source.affine)
    assert list(out.parent.iterdir()) == [out]
    assert command("test.py", *words).code == 2
    assert command("test.py", *words, "--overwrite", "--dicom").code == 0
    series = out.parent / "one_dicom"
    assert len(list(series.iterdir())) == source.shape[2]
    assert (out.parent / "one_dicom_mask.dcm").is_file()
    refused(command("test.py", *words, "--overwrite", "--gif"), "--gif draws animations")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--out", "made.nii.gz"), "--out names the volume of --mask"),
        (("--edit_strength", "0.5"), "--edit_strength and --edit_cycles say how real scans"),
        (("--edit_cycles", "0", "--vary", "AGE=45,80"), "Add --edit_real"),
    ],
)
def test_a_flag_without_its_partner_is_refused(
    trained_run: TrainedRun, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    """It would change nothing, and nobody would know."""
    refused(trained_run.test(tmp_path / "results", *flags), message)
    assert not (tmp_path / "results").exists()


def test_scans_edited_to_another_text_are_not_called_unchanged(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    first = own_cases(trained_run.cohort)[0]
    table = {row["File Name"]: row["SEX"] for row in read_csv(trained_run.cohort / "clinical.csv")}
    sex = "Male" if table[first] == "Female" else "Female"
    words = ("--page", "--edit_real", "--edit_cycles", "0", "--how_many", "1")
    for value, title, sentence in (
        (sex, "edited", "1 real scan with another text: mean absolute change in the lungs"),
        (table[first], "regenerated", "1 real scan regenerated without a change"),
    ):
        if not value:
            continue
        where = tmp_path / title
        folder = generate(trained_run, where, *words, "--set", f"SEX={value}")
        page = (folder / "index.html").read_text()
        assert sentence in page and f">{title}<" in page, title
        assert ("regenerated without" in page) == (title == "regenerated")


def test_volumes_are_written_as_dicom(trained_run: TrainedRun, tmp_path: Path) -> None:
    folder = generate(trained_run, tmp_path, "--vary", SMOKING, "--how_many", "1", "--dicom")
    for row in read_csv(folder / "volumes.csv"):
        series = folder / "dicom" / Path(row["file"]).name.removesuffix(".nii.gz")
        assert series.is_dir() == (row["kind"] != "difference")
        if series.is_dir():
            image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series)))
            voxels = sitk.GetArrayFromImage(image).transpose(2, 1, 0)[::-1, ::-1]
            assert np.array_equal(voxels, load_volume(folder / row["file"]).array)
            header = nib.load(folder / row["file"]).header
            assert (float(header["cal_min"]), float(header["cal_max"])) == (-1350.0, 150.0)
    assert len(list((folder / "dicom").glob("*_mask.dcm"))) == 1


def test_a_sheared_mask_is_no_dicom(
    trained_run: TrainedRun, cohort_dir: Path, tmp_path: Path
) -> None:
    mask = tmp_path / "sheared.nii.gz"
    source = nib.load(cohort_dir / "gtlung" / f"{own_cases(cohort_dir)[0]}.nii.gz")
    affine = source.affine.copy()
    affine[0, 2] += 0.5
    nib.save(nib.Nifti1Image(np.asarray(source.dataobj), affine), mask)
    words = ("--mask", str(mask), "--results_dir", str(tmp_path / "results"))
    refused(
        command("test.py", *words, *trained_run.flags(), "--dicom"),
        "not perpendicular",
        "leave --dicom out",
    )
    assert not list(tmp_path.glob("results/*/*/volumes"))


def test_one_mask_is_a_cohort_of_one_case(
    trained_run: TrainedRun, cohort_dir: Path, tmp_path: Path
) -> None:
    mask = cohort_dir / "gtlung" / f"{own_cases(cohort_dir)[0]}.nii.gz"
    prompt = "Patient age: 60. SMOKING HISTORY is Ex smoker. Gender: Male."
    words = ("--mask", str(mask), "--results_dir", str(tmp_path), *trained_run.flags())
    done = command("test.py", *words, "--prompt", prompt, "--vary", SMOKING, "--vary", "AGE=45,80")
    assert done.code == 0, done.text
    (folder,) = tmp_path.glob("*/*")
    assert folder.name == f"{own_cases(cohort_dir)[0]}_latest" and (folder / "index.html").is_file()
    prompts = {
        row["value"]: row["prompt"] for row in read_csv(folder / "volumes.csv") if row["prompt"]
    }
    start = "Lung CT scan :"
    assert prompts[""] == f"{start} {prompt}"
    assert prompts["Never smoker"].replace(",", ".") == f"{start} {prompt.replace('Ex', 'Never')}"
    assert prompts["80"] == f"{start} {prompt.replace('60', '80')}"
    effects = {(row["column"], row["from"], row["to"]) for row in read_csv(folder / "effects.csv")}
    assert ("AGE", "45", "80") in effects and len(volumes(folder)) == len(
        read_csv(folder / "volumes.csv")
    )
    alone = ("--set", "SEX=M", "--vary", "AGE=45,80", "--overwrite", "--no-page")
    done = command("test.py", *words, *alone)
    assert done.code == 0, done.text
    factual, *varied = [row["prompt"] for row in read_csv(folder / "volumes.csv")][:3]
    assert "Male" in factual and all("Male" in prompt for prompt in varied)


def as_xlsx(cohort: Path) -> None:
    table = pd.read_csv(cohort / "clinical.csv", dtype=str, keep_default_na=False)
    numbers = table.assign(
        AGE=table["AGE"].map(lambda v: float(v) if v else None)
    )  # spreadsheets hold numbers
    numbers.to_excel(cohort / "clinical.xlsx", index=False)
    (cohort / "clinical.csv").unlink()


def as_mha(cohort: Path) -> None:
    for path in [*cohort.glob("img/*"), *cohort.glob("gtlung/*")]:
        sitk.WriteImage(
            sitk.ReadImage(str(path)), str(path.with_name(path.name.replace(".nii.gz", ".mha")))
        )
        path.unlink()


def as_lps(cohort: Path) -> None:
    for path in [*cohort.glob("img/*"), *cohort.glob("gtlung/*")]:
        image = nib.load(path)
        turned = image.as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
        assert nib.aff2axcodes(turned.affine) == ("L", "P", "S")
        nib.save(turned, path)


@pytest.mark.parametrize("change", [as_xlsx, as_mha, as_lps])
def test_other_formats_give_the_same_volumes(
    change: Callable[[Path], None],
    trained_run: TrainedRun,
    results: Path,
    cohort_copy: Path,
    tmp_path: Path,
) -> None:
    change(cohort_copy)
    folder = generate(trained_run, tmp_path / "res", "--vary", SMOKING, cohort=cohort_copy)
    for name in volumes(results):
        made, expected = (
            load_volume(folder / "volumes" / name),
            load_volume(results / "volumes" / name),
        )
        assert np.array_equal(made.array, expected.array), name
        assert np.allclose(made.affine, expected.affine, atol=1e-4)
    if change is as_lps:
        assert nib.aff2axcodes(nib.load(folder / "volumes" / name).affine) == ("L", "P", "S")


def test_training_on_other_formats(cohort_copy: Path, tmp_path: Path) -> None:
    as_mha(cohort_copy)
    as_xlsx(cohort_copy)
    done = command(
        "train.py",
        "--dataroot",
        cohort_copy,
        "--name",
        "r",
        "--checkpoints_dir",
        tmp_path / "ck",
        *TINY,
        "--max_steps",
        "2",
    )
    assert done.code == 0, done.text
