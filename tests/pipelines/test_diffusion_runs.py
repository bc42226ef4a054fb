"""Diffusion models through the commands: training, going on, sampling, editing real scans, latents,
and bad input.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from benchmarks import check_processes, check_resume
from benchmarks import diffusion as benchmark_diffusion
from models.networks.autoencoder import load_autoencoder
from options.autoencoder_options import AutoencoderCommand
from options.parser import parse
from pipelines.autoencoder.training import train_autoencoder
from scripts import compare_models
from tests.commands import Outcome, TrainedRun, command, kept, refused, train
from util.cli import UserError, is_out_of_memory
from util.training import checkpoint

SMOKING = "SMOKING HISTORY=Never smoker,Current smoker"
QUICK = ("--model", "diffusion", "--sampling_steps", "3", "--val_cases", "0")
LATENT = (
    "--model",
    "latent_diffusion",
    "--sampling_steps",
    "3",
    "--val_cases",
    "0",
    "--n_downsample_global",
    "1",
    "--patch_size",
    "16,16,16",
)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def array(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def diffusion_run(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A tiny diffusion run of four steps that was interrupted after two of them."""
    run = TrainedRun(tmp_path_factory.mktemp("diffusion"), "tiny", cohort_dir)
    done = train(cohort_dir, run.checkpoints, *QUICK, "--max_steps", "2", name="tiny")
    assert done.code == 0, done.text
    done = train(cohort_dir, run.checkpoints, *QUICK, "--continue_train", name="tiny")
    assert done.code == 0, done.text
    return run


def test_an_autoencoder_of_ten_steps(cohort_dir: Path, tmp_path: Path) -> None:
    """Its schedule would divide by zero."""
    out = tmp_path / "ae.safetensors"
    sizes = ("--patch_size=16,16,8", "--channels=4,8", "--latent_channels=2", "--batch_size=1")
    words = (out, "--dataroot", cohort_dir, *sizes, "--max_steps", "10")
    done = command("scripts/train_autoencoder.py", *words)
    assert done.code == 0 and out.is_file(), done.text


@pytest.fixture(scope="module")
def autoencoder(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of three steps, that makes four voxels one."""
    return train_autoencoder(
        parse(
            AutoencoderCommand,
            "",
            [
                str(tmp_path_factory.mktemp("autoencoder") / "ae.safetensors"),
                "--dataroot",
                str(cohort_dir),
                "--patch_size",
                "16,16,8",
                "--channels",
                "4,8,8",
                "--max_steps",
                "3",
                "--batch_size",
                "1",
                "--latent_channels",
                "2",
            ],
        )
    )


@pytest.fixture(scope="module")
def latent_run(
    autoencoder: Path, cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainedRun:
    run = TrainedRun(tmp_path_factory.mktemp("latent"), "latent", cohort_dir)
    done = train(cohort_dir, run.checkpoints, *LATENT, "--autoencoder", autoencoder, name="latent")
    assert done.code == 0, done.text
    return run


# --- generating ---


def test_volumes_effects_and_the_same_noise_for_every_arm(
    diffusion_run: TrainedRun, tmp_path: Path
) -> None:
    done = diffusion_run.test(
        tmp_path, "--vary", SMOKING, "--vary", "RISK OCCUPATIONAL=No,Yes", "--how_many", "1"
    )
    assert done.code == 0, done.text
    folder = tmp_path / "tiny" / "test_latest"
    volumes = {row["kind"]: row for row in rows(folder / "volumes.csv")}
    mask = nib.load(next((diffusion_run.cohort / "gtlung").glob(f"{volumes['own']['case']}*")))
    own = nib.load(folder / volumes["own"]["file"])
    assert (
        own.shape == mask.shape
        and np.array_equal(own.affine, mask.affine)
        and own.get_data_dtype() == np.int16
    )
    assert {row["region"] for row in rows(folder / "effects.csv")} >= {"lungs", "outside"}
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


def edit(run: TrainedRun, results: Path, *words: str) -> Path:
    done = run.test(
        results,
        "--edit_real",
        "--vary",
        SMOKING,
        "--how_many",
        "1",
        "--edit_cycles",
        "2",
        "--sampling_steps",
        "6",
        *words,
    )
    assert done.code == 0, done.text
    return results / run.name / "test_latest"


def test_real_scans_are_edited_and_judged(diffusion_run: TrainedRun, tmp_path: Path) -> None:
    folder = edit(diffusion_run, tmp_path, "--page")
    metrics = {
        (row["region"], row["metric"]): float(row["value"]) for row in rows(folder / "metrics.csv")
    }
    case = rows(folder / "volumes.csv")[0]["case"]
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
    assert "Current smoker minus real scan" in page and "real scan" in page


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
            for row in rows(folder / "metrics.csv")
            if row["region"] == "lungs"
        }
        assert not any(name.startswith(("composition", "reversibility")) for name in found)
        values[strength] = found["mae_hu"]
    assert values["0.05"] < values["1"]


# --- latents ---


def test_latents_are_generated_and_edited(latent_run: TrainedRun, tmp_path: Path) -> None:
    folder = edit(latent_run, tmp_path, "--edit_cycles", "0")
    case = rows(folder / "volumes.csv")[0]["case"]
    mask = nib.load(next((latent_run.cohort / "gtlung").glob(f"{case}*")))
    assert nib.load(folder / "volumes" / f"{case}.nii.gz").shape == mask.shape
    done = latent_run.test(tmp_path / "new", "--vary", SMOKING, "--how_many", "1")
    assert done.code == 0, done.text


def test_the_autoencoder_is_written_whole_and_not_replaced_unasked(
    autoencoder: Path, cohort_dir: Path
) -> None:
    found = json.loads(autoencoder.with_suffix(".json").read_text())
    assert found["channel_norm"] and len(found["mean"]) == len(found["std"]) == 2
    before = kept(autoencoder.parent)
    words = (
        autoencoder,
        "--dataroot",
        cohort_dir,
        "--patch_size",
        "16,16,8",
        "--channels",
        "4,8,8",
        "--max_steps",
        "1",
    )
    refused(command("scripts/train_autoencoder.py", *words), str(autoencoder), "--overwrite")
    refused(
        command("scripts/train_autoencoder.py", autoencoder.with_suffix(".pt"), *words[1:]),
        "OUT",
        ".safetensors",
    )
    refused(
        command("scripts/train_autoencoder.py", *words, "--overwrite", "--patch_size", "18,16,8"),
        "--patch_size",
        "4",
    )
    assert kept(autoencoder.parent) == before


@pytest.mark.parametrize("value", [None, [], "x", 5, 1e400, 10**30, {}, True, [1], ["a", "b"]])
def test_a_config_of_wrong_types_is_named(value: Any, autoencoder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(autoencoder, tmp_path))
    file = copy.with_suffix(".json")
    values = json.loads(autoencoder.with_suffix(".json").read_text())
    changed = [{**values, name: value} for name in values]
    changed += [
        {**values, "config": {**values["config"], name: value}} for name in values["config"]
    ]
    for content in changed:
        file.write_text(json.dumps(content))
        try:
            load_autoencoder(copy, (-1000.0, 400.0))
        except UserError as error:
            assert "--autoencoder" in str(error)
        except (MemoryError, RuntimeError) as error:
            assert is_out_of_memory(error)  # a message of the command
    for text in ("", "[]", "null", "[" * 10**5, "9" * 5000):
        file.write_text(text)
        with pytest.raises(UserError, match=r"ae\.json"):
            load_autoencoder(copy, (-1000.0, 400.0))


def test_another_autoencoder_is_refused(
    latent_run: TrainedRun, autoencoder: Path, tmp_path: Path
) -> None:
    checkpoints = Path(shutil.copytree(latent_run.checkpoints, tmp_path / "ck"))
    options = checkpoints / "latent" / "options.json"
    other = tmp_path / "other.safetensors"
    shutil.copyfile(autoencoder, other)
    values = json.loads(autoencoder.with_suffix(".json").read_text())
    other.with_suffix(".json").write_text(json.dumps(values | {"mean": [1.0, 1.0]}))
    options.write_text(options.read_text().replace(str(autoencoder), str(other)))
    run = TrainedRun(checkpoints, "latent", latent_run.cohort)
    refused(run.test(tmp_path / "res"), "--autoencoder", str(other), "sha256")
    assert not (tmp_path / "res").exists()
    other.unlink()
    refused(run.test(tmp_path / "res"), "--autoencoder", str(other), "not there")


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


def test_patches_too_small_for_latents(autoencoder: Path, cohort_dir: Path, tmp_path: Path) -> None:
    done = train(
        cohort_dir, tmp_path, *LATENT, "--autoencoder", autoencoder, "--patch_size", "16,16,8"
    )
    refused(done, "--patch_size is 16,16,8", "--patch_size 16,16,16")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[]", ("kind, config",)),
        ('{"kind": "VAE", "config": {}}', ("'VAE'", "AutoencoderKlMaisi")),
        ('{"kind": "AutoencoderKL", "config": {"x": 1}}', ("refuses",)),
        (
            '{"kind": "AutoencoderKL", "config": {"spatial_dims": 3, "channels": [32], '
            '"num_res_blocks": 1, '
            '"attention_levels": [false], "with_encoder_nonlocal_attn": false, '
            '"with_decoder_nonlocal_attn": false}}',
            ("does not hold the weights",),
        ),
    ],
)
def test_descriptions_that_do_not_fit(
    text: str, parts: tuple[str, ...], autoencoder: Path, cohort_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "ae.safetensors"
    shutil.copyfile(autoencoder, file)
    file.with_suffix(".json").write_text(text)
    refused(
        train(cohort_dir, tmp_path / "ck", *LATENT, "--autoencoder", file), "--autoencoder", *parts
    )


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
    found = {row["run"]: row for row in rows(tmp_path / "out" / "models.csv")}
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
