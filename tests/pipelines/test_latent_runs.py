"""Latent diffusion through the commands: its autoencoder, generation, editing, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

from models.networks.autoencoder import load_autoencoder
from tests.commands import TrainedRun, command, kept, refused, train
from tests.diffusion_runs import LATENT, SMOKING, edit
from util.cli import UserError, is_out_of_memory
from util.files import read_csv


def test_an_autoencoder_of_ten_steps(cohort_dir: Path, tmp_path: Path) -> None:
    """Its schedule would divide by zero."""
    out = tmp_path / "ae.safetensors"
    sizes = ("--patch_size=16,16,8", "--channels=4,8", "--latent_channels=2", "--batch_size=1")
    words = (out, "--dataroot", cohort_dir, *sizes, "--max_steps", "10")
    done = command("scripts/train_autoencoder.py", *words)
    assert done.code == 0 and out.is_file(), done.text


# --- latents ---


def test_latents_are_generated_and_edited(latent_run: TrainedRun, tmp_path: Path) -> None:
    folder = edit(latent_run, tmp_path, "--edit_cycles", "0")
    case = read_csv(folder / "volumes.csv")[0]["case"]
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
    refused_entries = 0
    for content in changed:
        file.write_text(json.dumps(content))
        try:
            load_autoencoder(copy, (-1000.0, 400.0))
        except UserError as error:
            assert "--autoencoder" in str(error)
            refused_entries += 1
        except (MemoryError, RuntimeError) as error:
            assert is_out_of_memory(error)  # a message of the command
    assert refused_entries >= len(changed) / 4
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
