"""Bad input: exit code 2, one message (problem, cause, fix), and nothing half-written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.commands import TINY, TrainedRun, command, kept, program, refused, train

# --- the cohort -----------------------------------------------------------------------------------


def no_dataroot(cohort: Path) -> None:
    shutil.rmtree(cohort)


def empty_masks(cohort: Path) -> None:
    shutil.rmtree(cohort / "gtlung")
    (cohort / "gtlung").mkdir()


def empty_images(cohort: Path) -> None:
    shutil.rmtree(cohort / "img")
    (cohort / "img").mkdir()


def no_mask_folder(cohort: Path) -> None:
    shutil.rmtree(cohort / "gtlung")


def truncated(cohort: Path) -> None:
    path = cohort / "img" / "phantom_003.nii.gz"
    path.write_bytes(path.read_bytes()[:-300])


def not_nifti(cohort: Path) -> None:
    (cohort / "gtlung" / "phantom_003.nii.gz").write_text("this is a letter")


def other_grid(cohort: Path) -> None:
    path = cohort / "gtlung" / "phantom_003.nii.gz"
    image = nib.load(path)
    nib.save(
        nib.Nifti1Image(
            np.asarray(image.dataobj), image.affine + np.outer([1, 0, 0, 0], [0, 0, 0, 25])
        ),
        path,
    )


def other_shape(cohort: Path) -> None:
    path = cohort / "gtlung" / "phantom_003.nii.gz"
    nib.save(nib.load(path).slicer[:-2], path)


def no_key_column(cohort: Path) -> None:
    path = cohort / "clinical.csv"
    path.write_text(path.read_text().replace("File Name", "Scan", 1))


def no_scan(cohort: Path) -> None:
    (cohort / "img" / "phantom_003.nii.gz").unlink()


def half_a_label(cohort: Path) -> None:
    path = cohort / "gtlung" / "phantom_003.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj, np.float32) * 0.5, image.affine), path)


def normalised(cohort: Path) -> None:
    path = cohort / "img" / "phantom_003.nii.gz"
    image = nib.load(path)
    nib.save(
        nib.Nifti1Image(np.asarray(image.dataobj, np.float32) / 2000 + 0.5, image.affine), path
    )


def raw_with_padding(cohort: Path) -> None:
    """Detector values of one scan, with -2000 outside the scanner's field of view."""
    path = cohort / "img" / "phantom_003.nii.gz"
    image = nib.load(path)
    raw = np.asarray(image.dataobj) + np.int16(1024)
    raw[:1] = raw[-1:] = -2000
    nib.save(nib.Nifti1Image(raw, image.affine), path)


def flipped_bit(cohort: Path) -> None:
    path = cohort / "img" / "phantom_003.nii.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def case_twice(cohort: Path) -> None:
    shutil.copy(cohort / "img" / "phantom_003.nii.gz", cohort / "img" / "phantom_003.nii")


def age_in_words(cohort: Path) -> None:
    path = cohort / "clinical.csv"
    lines = path.read_text().splitlines()
    column = lines[0].split(",").index("AGE")
    row = lines[3].split(",")
    row[column] = "old"
    path.write_text("\n".join([*lines[:3], ",".join(row), *lines[4:]]))


COHORTS: dict[Callable[[Path], None], Sequence[str]] = {
    no_dataroot: ("--dataroot", "does not exist"),
    no_mask_folder: ("--dataroot", "gtlung", "img"),
    empty_masks: ("gtlung is empty", ".nii.gz"),
    empty_images: ("img is empty", ".nii.gz"),
    truncated: ("phantom_003.nii.gz", "truncated", "copy or export it again"),
    not_nifti: ("gtlung/phantom_003.nii.gz", "cannot be read", "export it again"),
    other_grid: ("gtlung/phantom_003.nii.gz", "25 mm", "Resample"),
    other_shape: ("gtlung/phantom_003.nii.gz", "(22, 24, 16)", "(24, 24, 16)"),
    no_key_column: ("clinical.csv", "'File Name'", "Scan", "--key_column"),
    no_scan: ("phantom_003", "1 mask without a scan", "Add the scans"),
    half_a_label: ("gtlung/phantom_003.nii.gz", "0.5", "label"),
    normalised: ("img/phantom_003.nii.gz", "not in HU", "slope"),
    raw_with_padding: ("img/phantom_003.nii.gz", "not in HU", "lungs", "slope"),
    flipped_bit: ("img/phantom_003.nii.gz", "cannot be read", "damaged"),
    case_twice: ("phantom_003", "twice"),
    age_in_words: ("phantom_003", "AGE", "'old'"),
}


@pytest.mark.parametrize("spoil", COHORTS, ids=lambda f: f.__name__)
def test_cohorts_that_cannot_be_trained_on(
    spoil: Callable[[Path], None], cohort_copy: Path, tmp_path: Path
) -> None:
    spoil(cohort_copy)
    refused(train(cohort_copy, tmp_path / "ck"), *COHORTS[spoil])
    assert not (tmp_path / "ck").exists()


@pytest.mark.parametrize(
    "spoil",
    [no_dataroot, empty_masks, not_nifti, no_key_column, raw_with_padding, flipped_bit],
    ids=lambda f: f.__name__,
)
def test_cohorts_that_cannot_be_tested_on(
    spoil: Callable[[Path], None],
    trained_run: TrainedRun,
    cohort_copy: Path,
    tmp_path: Path,
) -> None:
    spoil(cohort_copy)
    refused(trained_run.test(tmp_path / "res", cohort=cohort_copy), *COHORTS[spoil])
    assert not (tmp_path / "res").exists()


def test_a_label_that_the_run_does_not_know(
    run_copy: TrainedRun, cohort_copy: Path, tmp_path: Path
) -> None:
    path = cohort_copy / "gtlung" / "phantom_011.nii.gz"  # the second of the test cases
    image = nib.load(path)
    array = np.asarray(image.dataobj).copy()
    array[3, 4, 5] = 7
    nib.save(nib.Nifti1Image(array, image.affine), path)
    parts = ("label 7", str(path), "has only 0, 1, 2, 3", "Relabel")
    refused(run_copy.test(tmp_path / "res", cohort=cohort_copy), *parts)
    assert not (tmp_path / "res").exists()
    refused(
        command("test.py", "--mask", path, "--out", tmp_path / "o.nii.gz", *run_copy.flags()),
        *parts,
    )
    assert not (tmp_path / "o.nii.gz").exists()
    before = kept(run_copy.folder)
    going_on = ("train.py", *run_copy.flags(), "--continue_train", "--max_steps", "6")
    refused(command(*going_on, "--dataroot", cohort_copy), *parts)
    assert kept(run_copy.folder) == before


# --- flags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["--patch_size", "20,16,9"],
            ["--patch_size", "20,16,9", "multiple of 8", "--patch_size 16,16,8"],
        ),
        (["--patch_size", "16,16"], ["--patch_size", "3 values"]),
        (["--name", "../elsewhere"], ["--name", "../elsewhere", "path separators"]),
        (["--name", "a/b"], ["--name", "a/b", "path separators"]),
        (["--gpu_ids", "97"], ["--gpu_ids", "97", "--gpu_ids -1"]),
        (["--gpu_ids", "one"], ["--gpu_ids", "'one'", "numbers"]),
        (["--template", "aiib99"], ["--template", "aiib99", "aiib23", "osic"]),
        (["--fusion", "glue"], ["--fusion", "glue", "affine"]),
        (["--model", "gan"], ["--model", "gan", "pix2pixhd"]),
        (["--norm", "batchnorm"], ["--norm", "batchnorm", "layer"]),
        (["--hu_window", "400,-1000"], ["--hu_window", "400,-1000", "below"]),
        (["--precision", "fp16", "--gpu_ids", "-1"], ["--precision fp16", "bf16"]),
        (["--val_effect", "SMOKING=a,b"], ["--val_effect", "'SMOKING'", "SMOKING HISTORY"]),
        (["--val_effect", "AGE=young,old"], ["--val_effect", "AGE", "'young'"]),
        (["--val_effect", "AGE=1,2", "--val_effect", "SEX=M,F"], ["--val_effect", "2 times"]),
        (
            ["--val_effect", "SMOKING HISTORY=Never smoker,Heavy smoker"],
            ["--val_effect", "Heavy smoker", "Current smoker"],
        ),
        (["--lung_labels", "5,6"], ["--lung_labels is 5,6", "0, 1, 2, 3"]),
        (
            ["--load_global", "x", "--n_local_enhancers", "1", "--patch_size", "16,16,16"],
            ["--load_global x", "no run"],
        ),
        (
            ["--text_encoder", "medclip:/nowhere/weights.bin"],
            ["--text_encoder", "/nowhere/weights.bin"],
        ),
        (["--patch", "16,16,16"], ["--patch", "--help"]),
        (["--max_steps", "many"], ["--max_steps", "whole number", "'many'"]),
        (
            [
                *("--lambda_gan", "0", "--lambda_feat", "0", "--lambda_mean", "0"),
                *("--lambda_patch", "0", "--lambda_quantile", "0"),
            ],
            ["All loss weights (--lambda_gan", "are 0"],
        ),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") and len(value) > 1 else "",
)
def test_flags_of_training(
    words: list[str], parts: list[str], cohort_dir: Path, tmp_path: Path
) -> None:
    refused(train(cohort_dir, tmp_path / "ck", *words), *parts)
    assert not (tmp_path / "ck").exists() and not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--fusion", "glue"],
        ["--model", "gan"],
        ["--val_effect", "SMOKING=a,b"],
        ["--lung_labels", "5,6"],
    ],
)
def test_wrong_flags_are_known_before_the_own_clip_is_trained(
    words: list[str], cohort_dir: Path, tmp_path: Path
) -> None:
    refused(train(cohort_dir, tmp_path / "ck", "--text_encoder", "cohort", *words), words[0])
    assert not (tmp_path / "ck").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--vary", "SMOKING=A,B"], ["--vary", "'SMOKING'", "SMOKING HISTORY"]),
        (["--vary", "AGE"], ["--vary", "'AGE'", "COLUMN=A,B"]),
        (["--vary", "AGE=60"], ["--vary", "'AGE=60'", "COLUMN=A,B"]),
        (["--vary", "AGE=60,60"], ["--vary", "twice"]),
        (["--vary", "AGE=60,old"], ["--vary", "AGE", "'old'"]),
        (["--vary", "Mapping ID=P1,P2"], ["--vary", "'Mapping ID'", "identifier"]),
        (["--set", "HEIGHT=180"], ["--set", "'HEIGHT'", "AGE"]),
        (["--which_epoch", "12"], ["12", "no checkpoint", "latest", "--which_epoch"]),
        (["--which_epoch", "../latest"], ["--which_epoch", "../latest"]),
        (["--split", "holdout"], ["--split", "holdout", "train"]),
        (["--tile", "12,12,12"], ["--tile 12", "multiple of 4", "--tile 16"]),
        (
            ["--text_encoder", "/nowhere/clip"],
            ["--text_encoder /nowhere/clip", "is not a folder", "mask2ct.load"],
        ),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") and len(value) > 1 else "",
)
def test_flags_of_testing(
    words: list[str], parts: list[str], trained_run: TrainedRun, tmp_path: Path
) -> None:
    refused(trained_run.test(tmp_path / "res", *words), *parts)
    assert not (tmp_path / "res").exists()


def test_a_value_never_seen_is_a_warning_with_the_known_ones(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    done = trained_run.test(
        tmp_path, "--vary", "DIAGNOSIS=IPF,Asthma", "--vary", "AGE=60,120,64.5", "--how_many", "1"
    )
    assert done.code == 0
    assert (
        "WARNING --vary: no training case has DIAGNOSIS=Asthma" in done.text
        and "CTD-ILD, HP, IPF" in done.text
    )
    assert "no training case has AGE=120. Known: " in done.text
    assert (
        "no training case has AGE=64.5; the model interpolates between its neighbours. Known: "
        in done.text
    )


def test_a_mask_and_what_goes_with_it(
    trained_run: TrainedRun, cohort_dir: Path, tmp_path: Path
) -> None:
    mask, flags = str(cohort_dir / "gtlung" / "phantom_001.nii.gz"), trained_run.flags()
    refused(command("test.py", *flags), "--dataroot", "--mask")
    refused(
        command("test.py", "--mask", mask, "--dataroot", cohort_dir, *flags), "--dataroot", "--mask"
    )
    refused(
        command("test.py", "--mask", mask, "--out", tmp_path / "o.png", *flags),
        "--out",
        "o.png",
        ".nii.gz",
    )
    refused(
        command(
            "test.py", "--mask", tmp_path / "no.nii.gz", "--out", tmp_path / "o.nii.gz", *flags
        ),
        "no.nii.gz",
    )
    refused(
        command("test.py", "--mask", mask, "--set", "AGE=60", "--prompt", "a nodule", *flags),
        "--set",
        "'AGE'",
    )
    vary = ("--vary", "AGE=45,80", "--out", tmp_path / "o.nii.gz")
    refused(command("test.py", "--mask", mask, *vary, *flags), "--out", "--results_dir")
    vary = ("--vary", "SHOE SIZE=40,45", "--results_dir", tmp_path / "res")
    refused(command("test.py", "--mask", mask, *vary, *flags), "--vary", "SHOE SIZE")
    assert not list(tmp_path.iterdir())


# --- separate processes ---------------------------------------------------------------------------

PROGRAMS: dict[tuple[str, ...], Sequence[str]] = {
    (
        "train.py",
        "--dataroot",
        "{cohort}",
        "--name",
        "r",
        "--checkpoints_dir",
        "{tmp}/ck",
        *TINY,
    ): COHORTS[other_grid],
    ("train.py", "--name", "a/b", "--dataroot", "."): ("--name", "'a/b'", "path separators"),
    ("train.py", "--name", "r", "--dataroot", ".", "--patch_size", "30,30,30"): (
        "--patch_size 32,32,32",
    ),
    ("test.py", "--name", "r", "--dataroot", ".", "--checkpoints_dir", "{tmp}"): (
        "there is no run",
        "Runs in",
    ),
    ("scripts/pretrain_clip.py", "--dataroot", "/nowhere", "--out", "{tmp}/clip"): (
        "--dataroot /nowhere",
    ),
    ("scripts/make_phantoms.py", "{tmp}/phantoms", "--cases", "3"): ("--cases is 3", "11"),
}


@pytest.mark.slow
def test_programs(cohort_copy: Path, tmp_path: Path) -> None:
    """Their start takes seconds, so they run side by side."""
    other_grid(cohort_copy)
    out = tmp_path / "out"
    out.mkdir()
    filled = [
        [w.replace("{tmp}", str(out)).replace("{cohort}", str(cohort_copy)) for w in words]
        for words in PROGRAMS
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = pool.map(lambda words: program(*words), filled)
        for done, parts in zip(outcomes, PROGRAMS.values(), strict=True):
            refused(done, *parts)
    assert not list(out.iterdir())
