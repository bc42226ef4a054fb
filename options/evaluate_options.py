"""Flags of scripts/evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.base_options import AIRWAY_LABEL, HU_WINDOW, LUNG_LABELS
from options.parser import check_window, flag, group, path_flag
from util.modality import MODALITIES


@dataclass(frozen=True)
class SetOptions:
    """Sets to compare: results of test.py, a dataroot with img/, or a folder of volumes."""

    real: str = path_flag("", "Real scans.", kind="folder")
    synthetic: str = path_flag("", "Synthetic volumes.", kind="folder")
    train: str = path_flag(
        "", "Scans that the generator was trained on, for the check for copies.", kind="folder"
    )
    out: str = flag(
        "",
        "Folder for the report and the measurements, from which an interrupted evaluation resumes.",
    )
    real_split: str = flag(
        "all", "Use only the real scans of this split.", choices=("all", "train", "val", "test")
    )
    train_split: str = flag(
        "train",
        "Use only the training scans of this split, if their folder has splits.json.",
        choices=("all", "train", "val", "test"),
    )
    masks: str = path_flag(
        "",
        "Folder of the masks that the synthetic volumes were made from (default: those of their "
        "dataroot, or of the real scans' cases).",
        kind="folder",
    )
    real_masks: str = path_flag(
        "", "Folder of the real scans' masks (default: gtlung/ beside img/).", kind="folder"
    )
    segmented: str = path_flag(
        "",
        "Folder of lungs segmented in the synthetic volumes by any tool (1 left, 2 right lung), "
        "in place of the threshold segmentation.",
        kind="folder",
    )
    segmented_real: str = path_flag("", "The same for the real scans, as ceiling.", kind="folder")
    again: tuple[str, ...] = path_flag(
        (),
        "Volumes of the same cases with other noise, for diversity; may be repeated.",
        kind="folder",
    )
    shuffled: str = path_flag(
        "",
        "Volumes made with other cases' prompts (control of the text effect).",
        kind="folder",
    )
    empty: str = path_flag(
        "", "Volumes made with empty prompts (control of the text effect).", kind="folder"
    )
    counterfactuals: tuple[str, ...] = path_flag(
        (),
        "Results of test.py --vary of another run or with --edit_real, whose changed volumes are "
        "judged beside those of --synthetic; may be repeated.",
        kind="folder",
    )


@dataclass(frozen=True)
class ComparisonGridOptions:
    """Grid and window of the comparison."""

    spacing: float = flag(
        0.0,
        "Side in mm of the cubic voxels compared (0: the largest side of the coarser set).",
        low=0,
        high=20,
    )
    extent: tuple[float, float, float] | None = flag(
        None,
        "Size in mm of the box compared, around each volume's centre (default: the real scans' "
        "median size).",
        low=20,
        high=1000,
    )
    modality: str = flag(
        "",
        "What the volumes are, as in train.py: ct, mr, or custom with --intensity_window (default: "
        "that of the run that generated --synthetic, else ct). Other than ct, scans are scaled to "
        "a.u., need masks, and are compared by the masks' labels.",
        choices=("", *MODALITIES),
    )
    intensity_window: tuple[float, float] | None = flag(
        None, "With --modality mr or custom: intensities of the scans at 0 and 1000 a.u."
    )
    percentiles: tuple[float, float] = flag(
        (0.5, 99.5),
        "With --modality mr: percentiles of each scan at 0 and 1000 a.u.",
        low=0,
        high=100,
    )
    mask_folder: str = flag("gtlung", "Folder of the masks in a dataroot.")
    hu_window: tuple[float, float] = flag(
        HU_WINDOW, "HU compared; values outside are clipped.", low=-4000, high=8000
    )
    slices: int = flag(24, "Slices per plane and volume.", low=1, high=512)
    match: bool = flag(
        False,
        "Compare sets of different voxel sizes or windows at the coarser size and common window.",
    )
    lung_labels: tuple[int, ...] = flag(
        LUNG_LABELS,
        "Mask labels of the left and the right lung; with --modality mr or custom the labels that "
        "are compared (1,2: those of the run, else all).",
    )
    airway_label: int = flag(AIRWAY_LABEL, "Mask label of the airways (3: that of the run).")

    def __post_init__(self) -> None:
        """Raise `UserError` where the ends of the window are exchanged."""
        check_window("hu_window", self.hu_window)


@dataclass(frozen=True)
class MeasureOptions:
    """Metrics to compute."""

    extractor: tuple[str, ...] = flag(
        (),
        "Network of the slices' features: random, or inception, vgg, radimagenet, swav with a "
        "local file as NAME:FILE; may be repeated. (default: random)",
    )
    extractor_3d: tuple[str, ...] = flag(
        (),
        "Network of the volumes' features: random, or medicalnet, astra, merlin (chest CT), video "
        "(Fréchet video distance) with a local file as NAME:FILE; may be repeated. (default: "
        "random)",
    )
    column: tuple[str, ...] = flag(
        (), "Table column whose effect is read from the volumes; may be repeated."
    )
    template: str = path_flag(
        "auto",
        "How values of the table are read: aiib23, osic, lesions, auto, or a YAML file.",
        kind="name or path",
    )
    key_column: str = flag("File Name", "Table column that names the scan.")
    patient_column: str = flag(
        "",
        "Table column that names the patient: scans of one patient are not a reference for copies.",
    )
    pairs: bool = flag(True, "Compare volumes with the real scans of the same name.")
    resegment: bool = flag(
        True, "Segment the lungs in the volumes and compare them with the masks."
    )
    axioms: bool = flag(
        True,
        "Judge changed volumes (test.py --vary) by effectiveness, composition, reversibility, "
        "minimality and realism.",
    )
    draws: int = flag(
        100,
        "Number of random divisions of the real scans, and of bootstrap resamples.",
        low=10,
        high=10000,
    )
    seed: int = flag(1, "Seed of the divisions and resamples.", low=0)
    gpu_ids: str = flag(
        "", "GPU that computes features, such as 0; -1 for the CPU; default: a GPU if available."
    )


@dataclass(frozen=True)
class EvaluateOptions:
    """All flags of scripts/evaluate.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("real", "synthetic", "out")
    EXAMPLE: ClassVar[str] = (
        "python scripts/evaluate.py --real phantoms --synthetic results/run1/test_latest "
        "--out evaluation"
    )

    sets: SetOptions = group(SetOptions, "Sets")
    grid: ComparisonGridOptions = group(ComparisonGridOptions, "Grid")
    measure: MeasureOptions = group(MeasureOptions, "Measures")
