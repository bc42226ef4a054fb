"""Flags of test.py; everything about the network comes from the run."""

from __future__ import annotations

from dataclasses import dataclass

from options.diffusion_options import EditOptions, SamplingOptions
from options.parser import flag, group


@dataclass(frozen=True)
class CaseOptions:
    """What is generated from."""

    dataroot: str = flag("", "Folder of the cohort; img/ may be absent.")
    split: str = flag("test", "Cases to generate.", choices=("train", "val", "test", "all"))
    how_many: int = flag(0, "Only the first so many cases (0: all).", low=0)
    mask: str = flag("", "A single mask file instead of a cohort, with --prompt and --out.")
    out: str = flag("", "File of the volume made from --mask (.nii.gz).")
    strict: bool = flag(False, "Make scans without a row, and rows without a scan, an error.")


@dataclass(frozen=True)
class ModelOptions:
    """Which run generates."""

    name: str = flag("", "Name of the run.")
    checkpoints_dir: str = flag("checkpoints", "Folder of all runs.")
    which_epoch: str = flag("latest", "Checkpoint of the run: latest, or the number of an epoch.")
    text_encoder: str = flag(
        "", "Where the run's text encoder lies now (empty: where it lay in training)."
    )
    gpu_ids: str = flag("", "GPU to use, such as 0; -1 for the CPU; empty: what is there.")
    tile: tuple[int, int, int] | None = flag(
        None, "Voxels of a tile (none: the run's patch size; 0,0,0: whole volumes)."
    )
    overlap: float = flag(0.5, "Share of a tile that its neighbour covers too.", low=0, high=0.9)
    tile_batch: int = flag(4, "Tiles worked on at once.", low=1)
    use_average: bool = flag(True, "Generate with the moving average of the weights.")


@dataclass(frozen=True)
class InterventionOptions:
    """What is changed in a case's row."""

    set: tuple[str, ...] = flag(
        (), 'Change the own row of every case, as "COLUMN=VALUE"; may be repeated.'
    )
    vary: tuple[str, ...] = flag(
        (),
        'Generate every case with each value of a column, as "COLUMN=A,B[,C...]"; may be '
        "repeated. A value with a comma is put in double quotes.",
    )
    prompt: str = flag("", "Free text instead of every case's own row.")
    seed: int = flag(0, "Seed of the noise; the same seed gives the same volumes.", low=0)


@dataclass(frozen=True)
class OutputOptions:
    """What is written."""

    results_dir: str = flag("results", "Folder of all results.")
    overwrite: bool = flag(False, "Replace results that another run or other options left there.")
    page: bool = flag(True, "Write index.html beside the volumes.")


@dataclass(frozen=True)
class TestOptions:
    """All flags of test.py."""

    source: CaseOptions = group(CaseOptions, "Cases")
    model: ModelOptions = group(ModelOptions, "Run")
    arms: InterventionOptions = group(InterventionOptions, "Text")
    sampling: SamplingOptions = group(SamplingOptions, "Sampling of diffusion models")
    edit: EditOptions = group(EditOptions, "Editing of real scans")
    output: OutputOptions = group(OutputOptions, "Results")
