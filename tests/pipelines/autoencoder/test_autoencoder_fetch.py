"""MAISI's autoencoder from a file of its format: check on scans, latent diffusion, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from torch import nn

from models.diffusion.latent_space import LatentSpace
from options.autoencoder_options import FetchOptions
from pipelines.autoencoder.check import ReconstructionCheck
from pipelines.autoencoder.fetch import describe_repository
from tests.commands import command, refused, train
from util.cli import UserError
from util.metrics.fidelity import metric_rows

SIZES = ("--channels", "4,8", "--res_blocks", "1,1", "--latent_channels", "2", "--norm_groups", "2")
LATENT = ("--model", "latent_diffusion", "--sampling_steps", "2", "--n_downsample_global", "1")


def maisi(**changes: Any) -> AutoencoderKlMaisi:
    """A small network of random weights."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "num_res_blocks": (1, 1),
        "num_channels": (4, 8),
        "attention_levels": (False, False),
        "latent_channels": 2,
        "norm_num_groups": 2,
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
        "num_splits": 1,
        "dim_split": 1,
        "save_mem": False,
    }
    return AutoencoderKlMaisi(**{**arguments, **changes})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as MAISI's training writes it."""
    file = tmp_path_factory.mktemp("maisi") / "autoencoder.pt"
    torch.save({"epoch": 1, "unet_state_dict": maisi().state_dict()}, file)
    return file


@pytest.fixture(scope="module")
def fetched(weights: Path, cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fetched") / "maisi.safetensors"
    words = ("--dataroot", cohort_dir, "--file", weights, *SIZES, "--check_cases", "2")
    tiles = ("--tile", "16,16,16", "--overlap", "0.5", "--patch_size", "16,16,8")
    done = command("scripts/fetch_autoencoder.py", out, *words, *tiles)
    assert done.code == 0, done.text
    assert "MB. Its licence is that of its source" in done.text
    assert "A latent diffusion cannot be better than its autoencoder" in done.text
    return out


def test_the_check_stands_on_a_page(fetched: Path) -> None:
    folder = fetched.with_suffix("")
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["case"].nunique() == 2 and {"lungs", "body"} <= set(metrics["region"])
    assert {"mae_hu", "detail_sd_hu", "real_detail_sd_hu"} <= set(metrics["metric"])
    page = (folder / "index.html").read_text()
    assert "reconstructs the lungs of 2 training scans" in page
    assert "reconstruction minus scan" in page and "more than 1.3 times the detail" in page
    record = json.loads(fetched.with_suffix(".json").read_text())
    assert record["kind"] == "AutoencoderKlMaisi" and record["hu_window"] == [-1000, 1000]
    assert len(record["mean"]) == 2 and all(sd > 0 for sd in record["std"])


def test_latents_are_standardised_and_decode(fetched: Path) -> None:
    space = LatentSpace(fetched, (-1000.0, 400.0))
    assert (space.factor, space.channels) == (2, 2)
    image = torch.rand(1, 1, 16, 16, 16) * 2 - 1
    z = space.encode(image)
    assert z.shape == (1, 2, 8, 8, 8) and space.decode(z).shape == image.shape
    network = maisi().eval()
    with torch.no_grad():
        plain = network.encode((image + 1) / 2 * 0.7)[0]  # 0.7: -1000 to 400 of -1000 to 1000
    config = json.loads(fetched.with_suffix(".json").read_text())
    mean, std = (torch.tensor(config[name]).view(1, 2, 1, 1, 1) for name in ("mean", "std"))
    assert torch.allclose(z * std + mean, plain, atol=1e-4)


def test_a_run_checks_its_autoencoder_before_training(
    fetched: Path, cohort_dir: Path, tmp_path: Path
) -> None:
    sizes = ("--patch_size", "16,16,16", "--val_cases", "0", "--max_steps", "2")
    done = train(cohort_dir, tmp_path, *LATENT, "--autoencoder", fetched, *sizes, name="latent")
    assert done.code == 0, done.text
    assert done.text.index("reconstructs the lungs") < done.text.index("Trained latent")
    assert "reconstructs the lungs" in (tmp_path / "latent/web/index.html").read_text()
    assert set(pd.read_csv(tmp_path / "latent/autoencoder.csv")["region"]) == {"lungs", "body"}


def test_a_good_autoencoder_is_not_warned_of() -> None:
    rng = np.random.default_rng(0)
    scan = np.full((24, 24, 24), 40.0, np.float32)
    scan[4:20, 4:20, 4:20] = rng.normal(-850, 60, (16, 16, 16))
    lungs = scan < -400

    def check(result: np.ndarray[Any, Any]) -> ReconstructionCheck:
        return ReconstructionCheck(
            metric_rows("case", result, scan, lungs, (-1000, 400), (2.0, 2.0, 2.0))
        )

    near = check(scan + 5)
    assert near.error_hu == pytest.approx(5, abs=0.5) and near.warning == ""
    assert near.detail_ratio == pytest.approx(1, abs=0.02)
    assert near.table["difference of means, HU"].item() == pytest.approx(5, abs=0.1)
    smooth = np.where(lungs, -850, scan).astype(np.float32)
    assert "above 40 HU and less than 0.7 of the detail" in check(smooth).warning


@pytest.mark.parametrize(
    "words, parts",
    [
        (("--norm_groups", "3"), ("--channels has 4", "--norm_groups 3")),
        (("--res_blocks", "1,1,1"), ("--res_blocks has 3 numbers",)),
        (("--trained_window", "400,-1000"), ("--trained_window is 400,-1000",)),
        (("--channels", "4,8,8", "--res_blocks", "1,1,1"), ("weights of another network",)),
        (("--patch_size", "16,16,9"), ("--patch_size is 16,16,9", "multiple of 2")),
        (("--latent_channels", "3"), ("weights of another network", "other shape")),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    words: tuple[str, ...], parts: tuple[str, ...], weights: Path, cohort_dir: Path, tmp_path: Path
) -> None:
    base = ("--dataroot", cohort_dir, "--file", weights, *SIZES, "--patch_size", "16,16,8")
    out = tmp_path / "ae.safetensors"
    refused(command("scripts/fetch_autoencoder.py", out, *base, *words), *parts)
    assert not list(tmp_path.iterdir())


def test_bad_files_are_refused(weights: Path, cohort_dir: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "damaged.pt").write_bytes(weights.read_bytes()[:500])
    torch.save(nn.Linear(2, 2), bad / "module.pt")  # a pickled module could run code
    out = tmp_path / "ae.safetensors"
    base = (out, "--dataroot", cohort_dir, *SIZES, "--patch_size", "16,16,8", "--file")
    for name in ("damaged.pt", "module.pt"):
        done = command("scripts/fetch_autoencoder.py", *base, bad / name)
        refused(done, "--file", name, "cannot be read as weights")
    refused(command("scripts/fetch_autoencoder.py", *base, bad / "none.pt"), "none.pt")
    shutil.copy(weights, tmp_path / "ae.json")
    refused(command("scripts/fetch_autoencoder.py", *base, weights), "ae.json exists already")


def test_licence_and_size_are_told(
    cohort_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [SimpleNamespace(rfilename="models/autoencoder.pt", size=84_000_000)]
    card = {"license": "other", "license_name": "nsclv1", "license_link": "LICENSE"}
    info = SimpleNamespace(id="MONAI/maisi", sha="abc", siblings=files, card_data=card)
    text = describe_repository(info, FetchOptions(OUT="x").repo_file)
    assert "MONAI/maisi, revision abc" in text and "84.0 MB" in text
    assert text.endswith("Licence: nsclv1 (LICENSE).")
    with pytest.raises(UserError, match=r"does not hold a\.pt; it holds: models/autoencoder\.pt"):
        describe_repository(info, "a.pt")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ("--dataroot", cohort_dir, *SIZES, "--patch_size", "16,16,8")
    done = command("scripts/fetch_autoencoder.py", tmp_path / "ae.safetensors", *words)
    refused(done, "--repo MONAI/maisi_ct_generative", "hf download", "--file")
