"""The benchmarks of one GPU and of the published reference's networks, in sizes of seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, step
from options.benchmarks.speed import GpuBenchmarkOptions, StepBenchmarkOptions
from options.parser import parse
from options.train_options import TrainOptions
from util.cli import UserError

HELPER = """
import torch
from models.networks3D import Layers

def define_G(labels, channels, ngf, name, *settings):
    return Layers(labels, channels, name)

def define_D(channels, ndf, name, *settings):
    return torch.nn.Conv3d(channels, 1, 3)
"""
NETWORKS = """
import torch

class GANLoss(torch.nn.Module):
    def __init__(self, use_lsgan):
        super().__init__()

    def forward(self, scores, real):
        return (scores - float(real)).square().mean()

def Cor_CoeLoss(a, b):
    return 1 - torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] ** 2

class Layers(torch.nn.Module):
    def __init__(self, labels, channels, name):
        super().__init__()
        print("networks may print")
        self.needs_device = name.endswith("encoder3")
        self.conv = torch.nn.Conv3d(labels, channels, 3, padding=1)

    def forward(self, mask, prompts, opt=None):
        assert prompts.shape[1] == 512 and (opt is not None) == self.needs_device
        return self.conv(mask)
"""


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A folder with the interface of the reference's packages."""
    models = tmp_path / "reference" / "models"
    models.mkdir(parents=True)
    (models / "__init__.py").touch()
    (models / "model_helper.py").write_text(HELPER)
    (models / "networks3D.py").write_text(NETWORKS)
    return models.parent


@pytest.mark.parametrize("form", step.REFERENCE_FORMS)
def test_the_reference_is_measured_with_its_own_packages(
    reference: Path, tmp_path: Path, form: str
) -> None:
    o = StepBenchmarkOptions(
        reference=str(reference), patch_size=(8, 8, 8), steps=2, gpu_ids="-1", ngf=4
    )
    figures = step.measure_reference(o, form, tmp_path)
    assert len(figures["all_s"]) == 2
    assert figures["median_s"] > 0
    assert figures["peak_gib"] > 0


def test_a_reference_of_another_depth_or_without_its_files_is_refused(
    reference: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--n_downsample_global 2 --n_blocks_global 9"):
        step.check_reference(StepBenchmarkOptions(reference=str(reference)))
    with pytest.raises(UserError, match="Clone"):
        step.check_reference(StepBenchmarkOptions(reference=str(tmp_path)))


def test_a_reference_that_fails_names_its_error(reference: Path, tmp_path: Path) -> None:
    (reference / "models" / "networks3D.py").write_text("raise ImportError('no such network')")
    o = StepBenchmarkOptions(reference=str(reference), steps=1, gpu_ids="-1")
    with pytest.raises(UserError, match="no such network"):
        step.measure_reference(o, "affine", tmp_path)


def test_every_part_of_the_gpu_benchmark_is_measured(tmp_path: Path) -> None:
    gpu.main([str(tmp_path), "--tiny", "--gpu_ids", "-1"])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert not [name for name, part in figures.items() if "error" in part or "left_out" in part]
    assert figures["machine"]["device"].endswith(("core", "cores"))
    assert figures["step cpu"]["steps_per_s"] > 0
    assert 0 <= figures["step cpu, not channels-last"]["waiting_for_data"] < 1
    assert figures["GAN 16x16x16"]["seconds"] > 0
    assert figures["flow of 2 steps 16x16x16"]["seconds"] > 0
    assert "slope of AGE" in figures["training"]
    twice = figures["same seed twice"]
    assert twice["volumes"] == twice["equal"] > 0
    assert figures["reference size"]["median_s"] > 0


def test_without_a_named_device_the_flags_of_the_training_are_still_read(tmp_path: Path) -> None:
    benchmark = gpu.GpuBenchmark(GpuBenchmarkOptions(OUT=str(tmp_path)), gpu.TINY)
    options = benchmark.effects_options(3)
    words = ["--dataroot", ".", *options.train_flags.split()]
    assert parse(TrainOptions, "", words).generator.ngf == 4
    assert not options.test_flags


def test_a_part_that_fails_or_comes_too_late_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    o = GpuBenchmarkOptions(OUT=str(tmp_path), minutes=0.01, gpu_ids="-1")
    benchmark = gpu.GpuBenchmark(o, gpu.TINY)

    def fails() -> gpu.Figures:
        raise RuntimeError("CUDA out of memory")

    benchmark.part("large", fails)
    monkeypatch.setattr(benchmark, "start", benchmark.start - 60)
    benchmark.part("late", fails)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["large"]["error"] == "CUDA out of memory"
    assert "minutes were over" in figures["late"]["left_out"]


def test_the_script_passes_its_words_on(tmp_path: Path) -> None:
    command = ["bash", "benchmarks/gpu.sh", str(tmp_path), "--no_such_flag"]
    process = subprocess.run(
        command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "VENV": sys.prefix}
    )
    assert process.returncode == 2
    assert "--no_such_flag" in process.stderr
