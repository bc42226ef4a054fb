"""Diffusion models through the commands: training, going on, sampling, editing real scans."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from benchmarks import check_processes, check_resume
from benchmarks import diffusion as benchmark_diffusion
from scripts import compare_models
from tests.commands import Outcome, TrainedRun, command, kept, refused, train
from tests.diffusion_runs import QUICK, SMOKING, edit
from util.cli import UserError
from util.files import read_csv
from util.training import checkpoint


def array(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(nib.load(path).dataobj)


# --- generating ---


def test_volumes_effects_and_the_same_noise_for_every_arm(
    diffusion_run: TrainedRun, tmp_path: Path
) -> None:
    done = diffusion_run.test(
        tmp_path, "--vary", SMOKING, "--vary", "RISK OCCUPATIONAL=No,Yes", "--how_many", "1"
    )
    assert done.code == 0, done.text
    folder = tmp_path / "tiny" / "test_latest"
    volumes = {row["kind"]: row for row in read_csv(folder / "volumes.csv")}
    mask = nib.load(next((diffusion_run.cohort / "gtlung").glob(f"{volumes['own']['case']}*")))
    own = nib.load(folder / volumes["own"]["file"])
    assert (
        own.shape == mask.shape
        and np.array_equal(own.affine, mask.affine)
        and own.get_data_dtype() == np.int16
    )
    assert {row["region"] for row in read_csv(folder / "effects.csv")} >= {"lungs", "outside"}
    # The untrained text does next to nothing, which other noise would not.
    difference = array(folder / volumes["difference"]["file"])
    assert np.abs(difference).mean() < 0.2 * array(folder / volumes["own"]["file"]).std()
    again = diffusion_run.test(tmp_path / "again", "--how_many", "1")
    assert again.code == 0, again.text
    assert (tmp_path / "again/tiny/test_latest" / volumes["own"]["file"]).read_bytes() == (
        folder / volumes["own"]["file"]
    ).read_bytes()


def test_other_steps_give_another_volume(diffusion_run: TrainedRun, tmp_path: Path) -> None:
    for name, flags in (
        ("run", ()),
        ("given", ("--sampling_steps", "6", "--sampler", "heun", "--guidance", "2")),
    ):
        done = diffusion_run.test(tmp_path / name, "--how_many", "1", *flags)
        assert done.code == 0, done.text
    one, two = (
        array(next((tmp_path / n).glob("tiny/test_latest/volumes/*.nii.gz")))
        for n in ("run", "given")
    )
    assert (one != two).any()


def test_validation_follows_an_effect(cohort_dir: Path, tmp_path: Path) -> None:
    done = train(
        cohort_dir,
        tmp_path,
        "--model",
        "diffusion",
        "--diffusion_target",
        "v",
        "--sampling_steps",
        "2",
        "--val_freq",
        "2",
        "--max_steps",
        "2",
        "--log_freq",
        "1",
        "--val_effect",
        SMOKING,
    )
    assert done.code == 0, done.text
    log = [json.loads(line) for line in (tmp_path / "new" / "log.jsonl").read_text().splitlines()]
    assert any("val_lung_effect_hu" in line for line in log) and any(
        "loss_G_image" in line for line in log
    )


# --- training ---


def test_going_on_gives_what_training_without_a_stop_gives(
    diffusion_run: TrainedRun, cohort_dir: Path, tmp_path: Path
) -> None:
    """Not the schedule of the learning rate, which the first two steps of the fixture went through
    by themselves.
    """
    whole = ("--niter_decay", "0", "--save_latest_freq", "2")
    for name, flags in (("whole", ("--max_steps", "4")), ("halves", ("--max_steps", "2"))):
        done = train(cohort_dir, tmp_path, *QUICK, *whole, *flags, name=name)
        assert done.code == 0, done.text
    done = train(
        cohort_dir, tmp_path, *QUICK, *whole, "--max_steps", "4", "--continue_train", name="halves"
    )
    assert done.code == 0, done.text
    assert not any(
        check_resume.compare_checkpoints(
            tmp_path / "whole" / "latest", tmp_path / "halves" / "latest"
        ).values()
    )
    assert checkpoint.load_state(diffusion_run.folder / "latest")["step"] == 4


@pytest.mark.slow
def test_two_gloo_processes_equal_one() -> None:
    check_processes.main(
        ["--steps", "2", "--batch_size", "2", "--model", "diffusion"]
    )  # raises where they differ


# --- editing ---


def test_real_scans_are_edited_and_judged(diffusion_run: TrainedRun, tmp_path: Path) -> None:
    folder = edit(diffusion_run, tmp_path, "--page")
    metrics = {
        (row["region"], row["metric"]): float(row["value"])
        for row in read_csv(folder / "metrics.csv")
    }
    case = read_csv(folder / "volumes.csv")[0]["case"]
    mask, real = (
        array(next((diffusion_run.cohort / kind).glob(f"{case}*"))) for kind in ("gtlung", "img")
    )
    lungs = np.isin(mask, (1, 2))
    made = array(folder / "volumes" / f"{case}.nii.gz")
    assert metrics["lungs", "composition_1_mae_hu"] == pytest.approx(
        np.abs(made - real)[lungs].mean(), abs=1
    )
    assert metrics["lungs", "composition_1_mae_hu"] < 60
    edited = array(folder / "volumes" / f"{case}__SMOKING_HISTORY=Current_smoker.nii.gz")
    change = metrics["lungs", "edit_change_mean_hu SMOKING HISTORY=Current smoker"]
    assert change == pytest.approx((edited - real)[lungs].mean(), abs=1)
    assert {name for _, name in metrics} >= {
        "composition_2_mae_hu",
        "edit_change_mae_hu SMOKING HISTORY=Never smoker",
        "reversibility_mae_hu SMOKING HISTORY=Current smoker",
    }
    page = (folder / "index.html").read_text()
    assert "Current smoker minus real scan" in page and "real scans edited" in page
    assert "sampled again with the changed one" in page and "1 real scan regenerated" in page
    assert "generated from mask and text" not in page


def test_less_strength_keeps_more_of_the_scan(cohort_dir: Path, tmp_path: Path) -> None:
    """With strong guidance, steps of the old preconditioning are hard to invert."""
    run = TrainedRun(tmp_path / "checkpoints", "tiny", cohort_dir)
    words = (*QUICK, "--preconditioning", "residual")
    done = train(cohort_dir, run.checkpoints, *words, name="tiny")
    assert done.code == 0, done.text
    values = {}
    for strength in ("0.05", "1"):
        flags = ("--edit_strength", strength, "--edit_cycles", "0", "--guidance", "2")
        folder = edit(run, tmp_path / strength, *flags)
        found = {
            row["metric"]: float(row["value"])
            for row in read_csv(folder / "metrics.csv")
            if row["region"] == "lungs"
        }
        assert not any(name.startswith(("composition", "reversibility")) for name in found)
        values[strength] = found["mae_hu"]
    assert values["0.05"] < values["1"]


# --- bad input ---


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (
            ("--model", "diffusion", "--sampler", "ddim"),
            ("--sampler is ddim", "--diffusion_target flow", "euler, heun"),
        ),
        (
            ("--model", "diffusion", "--diffusion_target", "v", "--sampler", "heun"),
            ("--sampler is heun", "ddim, ddpm"),
        ),
        (
            ("--model", "diffusion", "--diffusion_target", "noise"),
            ("--diffusion_target noise", "--no-zero_snr"),
        ),
        (
            ("--model", "diffusion", "--sampling_steps", "2000"),
            ("--sampling_steps is 2000", "1000"),
        ),
        (
            ("--model", "diffusion", "--guidance", "2", "--text_dropout", "0"),
            ("--guidance is 2", "--text_dropout"),
        ),
        (
            ("--model", "diffusion", "--guidance_mask", "2"),
            ("--guidance_mask is 2", "--mask_dropout"),
        ),
        (
            ("--model", "diffusion", "--n_local_enhancers", "1"),
            ("--n_local_enhancers is 1", "pix2pixhd"),
        ),
        (("--model", "diffusion", "--autoencoder", "x"), ("--autoencoder", "latent_diffusion")),
        (
            ("--model", "latent_diffusion"),
            ("--autoencoder is not given", "scripts/train_autoencoder.py"),
        ),
        (
            ("--model", "latent_diffusion", "--autoencoder", "no.pt"),
            ("--autoencoder is no.pt", "not there"),
        ),
        (("--model", "gan"), ("--model is 'gan'", "diffusion, latent_diffusion, pix2pixhd")),
    ],
)
def test_training_flags_that_do_not_fit(
    flags: tuple[str, ...], parts: tuple[str, ...], cohort_dir: Path, tmp_path: Path
) -> None:
    refused(train(cohort_dir, tmp_path, *flags), *parts)
    assert not kept(tmp_path)


def bad_test(run: TrainedRun, results: Path, *words: str) -> Outcome:
    done = run.test(results, *words)
    assert not results.exists()
    return done


def test_sampling_flags_that_do_not_fit(
    diffusion_run: TrainedRun, trained_run: TrainedRun, tmp_path: Path
) -> None:
    results = tmp_path / "res"
    refused(
        bad_test(diffusion_run, results, "--sampler", "ddpm"), "--sampler is ddpm", "euler, heun"
    )
    refused(
        bad_test(diffusion_run, results, "--sampling_steps", "1001"), "--sampling_steps is 1001"
    )
    refused(
        bad_test(diffusion_run, results, "--guidance_mask", "2"),
        "--guidance_mask is 2",
        "--mask_dropout",
    )
    refused(
        bad_test(trained_run, results, "--guidance", "2"), "--guidance", "not a diffusion model"
    )


def test_editing_has_one_noise(diffusion_run: TrainedRun, tmp_path: Path) -> None:
    done = diffusion_run.test(tmp_path / "res", "--edit_real", "--draws", "2", "--vary", SMOKING)
    refused(done, "--draws", "--edit_real")


def test_an_edit_by_a_gan_says_how_far_its_own_volume_is_from_the_scan(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    flags = ("--edit_real", "--how_many", "1", "--edit_cycles", "0", "--vary", SMOKING)
    done = trained_run.test(tmp_path / "res", "--page", *flags)
    assert done.code == 0, done.text
    page = next((tmp_path / "res").rglob("index.html")).read_text()
    assert re.search(r"the run itself makes of this mask and text is off the scan by \d+ HU", page)


def test_editing_needs_scans(diffusion_run: TrainedRun, cohort_copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(cohort_copy / "img")
    done = diffusion_run.test(
        tmp_path / "res", "--edit_real", "--vary", SMOKING, cohort=cohort_copy
    )
    refused(done, "--edit_real", "phantom_", str(cohort_copy / "img"))
    assert not (tmp_path / "res").exists()
    mask = next((cohort_copy / "gtlung").iterdir())
    refused(
        command(
            "test.py",
            "--mask",
            mask,
            "--out",
            tmp_path / "a.nii.gz",
            "--edit_real",
            *diffusion_run.flags(),
        ),
        "--edit_real",
    )


# --- tools ---


def test_models_side_by_side(
    diffusion_run: TrainedRun, trained_run: TrainedRun, cohort_dir: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for run, name in ((trained_run, "gan"), (diffusion_run, "diffusion")):
        shutil.copytree(run.folder, runs / name)
    flags = [
        "--dataroot",
        str(cohort_dir),
        "--checkpoints_dir",
        str(runs),
        "--how_many",
        "1",
        "--vary",
        SMOKING,
    ]
    compare_models.main(
        [str(tmp_path / "out"), *flags, "--run", "gan", "--run", "diffusion", "--noises", "2"]
    )
    found = {row["run"]: row for row in read_csv(tmp_path / "out" / "models.csv")}
    assert {"gan", "diffusion"} == set(found) and found["gan"]["model"] == "pix2pixhd"
    assert float(found["diffusion"]["lung difference of pairs, HU"]) > 0
    assert "SMOKING HISTORY: Never smoker to Current smoker, HU" in found["diffusion"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "gan/test_latest/index.html" in page and "MS-SSIM" in page
    with pytest.raises(UserError, match="twice"):
        compare_models.main([str(tmp_path / "out"), *flags, "--run", "gan"])
    with pytest.raises(UserError, match="nobody"):
        compare_models.main([str(tmp_path / "out"), *flags, "--run", "gan", "--run", "nobody"])


def test_proof_on_planted_truth(diffusion_run: TrainedRun, tmp_path: Path) -> None:
    words = [
        "--OUT",
        str(tmp_path),
        "--dataroot",
        str(diffusion_run.cohort),
        *diffusion_run.flags(),
        "--how_many",
        "1",
        "--steps",
        "2,4",
        "--columns",
        "SMOKING HISTORY",
        "--edit_cycles",
        "1",
        "--sampling_steps",
        "6",
    ]
    benchmark_diffusion.main(words)
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["effects"]["2"]["SMOKING HISTORY"]["lungs"]["true"] == pytest.approx(41, abs=2)
    assert (
        found["steps"]["SMOKING HISTORY"]["4"] == 0 and found["steps"]["SMOKING HISTORY"]["2"] >= 0
    )
    assert found["edits"]["effects"]["SMOKING HISTORY"]["lungs"]["true"] == pytest.approx(41, abs=2)
    assert found["edits"]["means"]["lungs: composition_1_mae_hu"] < 60
    with pytest.raises(UserError, match="--columns is 'X'"):
        benchmark_diffusion.main([*words[:-6], "--columns", "X"])
