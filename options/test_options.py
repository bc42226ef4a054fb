"""Flags of test.py; everything about the network comes from the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.diffusion_options import EditOptions, SamplingOptions
from options.parser import flag, group, path_flag
from util.training.shared_runs import is_shared, shared_title


@dataclass(frozen=True)
class CaseOptions:
    """The cases to generate."""

    dataroot: str = path_flag("", "Folder of the cohort; img/ may be absent.", kind="folder")
    split: str = flag("test", "Cases to generate.", choices=("train", "val", "test", "all"))
    how_many: int = flag(0, "Generate only the first cases (0: all).", low=0)
    mask: str = path_flag(
        "",
        "A single mask file instead of a cohort. With --out one file, otherwise a results folder.",
        kind="file",
    )
    out: str = flag("", "File of the volume that is generated from --mask (.nii.gz).")
    strict: bool = flag(False, "Treat scans without a row, and rows without a scan, as an error.")
    accept_changes: bool = flag(
        False,
        "Test with the splits of the run although splits.json of its cohort was changed since.",
    )


@dataclass(frozen=True)
class ModelOptions:
    """The run that generates."""

    name: str = path_flag(
        "", "Name of the run, or a zip or folder that scripts/export.py wrote.", kind="run"
    )
    checkpoints_dir: str = flag("checkpoints", "Folder of all runs.")
    which_epoch: str = flag("latest", "Checkpoint of the run: latest, or the number of an epoch.")
    text_encoder: str = flag(
        "", "Folder of the run's text encoder, if it was moved since training."
    )
    paraphrases: str = path_flag(
        "",
        "File of other words for the template's phrases (YAML), beside those that the run was "
        "trained with.",
        kind="file",
    )
    gpu_ids: str = flag("", "GPU to use, such as 0; -1 for the CPU; default: a GPU if available.")
    tile: tuple[int, int, int] | None = flag(
        None,
        "Voxels of a tile (none: by the free memory; where tiles are blended, a volume of less "
        "than 4 GiB at once, others by the run's patch size; 0,0,0: whole volumes).",
    )
    overlap: float = flag(0.5, "Share of a tile that overlaps its neighbour.", low=0, high=0.9)
    tile_batch: int = flag(4, "Tiles that are generated at once.", low=1)
    use_average: bool = flag(True, "Generate with the moving average of the weights.")

    @property
    def title(self) -> str:
        """What results call the run: its name, or that of a shared run's file or folder."""
        return shared_title(self.name) if is_shared(self.name) else self.name


@dataclass(frozen=True)
class InterventionOptions:
    """Changes of a case's row."""

    set: tuple[str, ...] = flag(
        (), 'Change the factual row of every case, as "COLUMN=VALUE"; may be repeated.'
    )
    vary: tuple[str, ...] = flag(
        (),
        'Generate every case with each value of a column, as "COLUMN=A,B[,C...]"; may be '
        "repeated. A value with a comma is put in double quotes.",
    )
    vary_text: tuple[str, ...] = flag(
        (),
        'Generate every case with other words in its text, as "WORDS=>OTHER[=>...]"; may be '
        "repeated. The words are part of a phrase, or several phrases; nothing behind the arrow "
        "removes them.",
    )
    prompt: str = flag("", "Free text instead of every case's row.")
    seed: int = flag(0, "Seed of the noise; the same seed gives the same volumes.", low=0)
    draws: int = flag(
        0,
        "Noises over which effects are averaged, each shared by all values of a case. The volumes "
        "of the first are written; the second is the control on the page. (0: two with --vary, one "
        "without and with --edit_real)",
        low=0,
    )


@dataclass(frozen=True)
class OutputOptions:
    """Files to write."""

    results_dir: str = flag("results", "Folder of all results.")
    overwrite: bool = flag(False, "Replace results that another run or other options left there.")
    page: bool = flag(True, "Write index.html beside the volumes.")
    dicom: bool = flag(
        False,
        "Also write every generated volume as a DICOM CT series into dicom/, with the mask as a "
        "DICOM segmentation; with --out beside the file.",
    )
    gif: bool = flag(
        False,
        "Write animations through the slices of every case and attribute into pictures/, as GIF, "
        "and as MP4 where ffmpeg or imageio-ffmpeg is installed; scripts/make_pictures.py draws "
        "more.",
    )


@dataclass(frozen=True)
class TestOptions:
    """All flags of test.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("name",)
    EXAMPLE: ClassVar[str] = (
        'python test.py --dataroot phantoms --name run1 --vary "SMOKING HISTORY=Never smoker,'
        'Current smoker"'
    )

    source: CaseOptions = group(CaseOptions, "Cases")
    model: ModelOptions = group(ModelOptions, "Run")
    arms: InterventionOptions = group(InterventionOptions, "Text")
    sampling: SamplingOptions = group(SamplingOptions, "Sampling of diffusion models")
    edit: EditOptions = group(EditOptions, "Editing of real scans")
    output: OutputOptions = group(OutputOptions, "Results")
