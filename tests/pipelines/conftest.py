"""Results of the tiny run, and runs of diffusion models, that several tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

from options.autoencoder_options import AutoencoderCommand
from options.parser import parse
from pipelines.autoencoder.training import train_autoencoder
from tests.commands import TrainedRun, train
from tests.diffusion_runs import LATENT, QUICK
from tests.generated_volumes import SMOKING, generate


@pytest.fixture(scope="session")
def results(trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test results with a page and three smoking levels."""
    folder = tmp_path_factory.mktemp("results")
    return generate(trained_run, folder, "--vary", SMOKING, "--draws", "1", "--page")


@pytest.fixture(scope="session")
def diffusion_run(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A tiny diffusion run of four steps that was interrupted after two of them."""
    run = TrainedRun(tmp_path_factory.mktemp("diffusion"), "tiny", cohort_dir)
    done = train(cohort_dir, run.checkpoints, *QUICK, "--max_steps", "2", name="tiny")
    assert done.code == 0, done.text
    done = train(cohort_dir, run.checkpoints, *QUICK, "--continue_train", name="tiny")
    assert done.code == 0, done.text
    return run


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def latent_run(
    autoencoder: Path, cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainedRun:
    run = TrainedRun(tmp_path_factory.mktemp("latent"), "latent", cohort_dir)
    done = train(cohort_dir, run.checkpoints, *LATENT, "--autoencoder", autoencoder, name="latent")
    assert done.code == 0, done.text
    return run
