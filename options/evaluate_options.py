"""Flags of scripts/evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass

from options.parser import flag, group


@dataclass(frozen=True)
class SetOptions:
    """What is compared: results of test.py, a dataroot with img/, or a folder of volumes."""

    real: str = flag("", "Real scans.")
    synthetic: str = flag("", "Synthetic volumes.")
    train: str = flag("", "Scans that the generator was trained on, for the check for copies.")
    out: str = flag(
        "",
        "Folder for the report; what was measured is kept in it, so that a stopped evaluation goes "
        "on.",
    )
    real_split: str = flag(
        "all", "Real scans of this split alone.", choices=("all", "train", "val", "test")
    )
    train_split: str = flag(
        "train",
        "Training scans of this split, where their folder has splits.json.",
        choices=("all", "train", "val", "test"),
    )
    masks: str = flag(
        "",
        "Folder of the masks that the synthetic volumes were made from (default: those of their "
        "dataroot, or of the real scans' cases).",
    )
    real_masks: str = flag("", "Folder of the real scans' masks (default: gtlung/ beside img/).")
    segmented: str = flag(
        "",
        "Folder of lungs found again in the synthetic volumes by any tool (1 left, 2 right lung), "
        "in place of the threshold segmentation.",
    )
    segmented_real: str = flag("", "The same of the real scans, for the ceiling.")
    again: tuple[str, ...] = flag(
        (), "Volumes of the same cases with other noise, for diversity; may be repeated."
    )
    shuffled: str = flag("", "Volumes made with other cases' prompts (control of the text effect).")
    empty: str = flag("", "Volumes made with empty prompts (control of the text effect).")


@dataclass(frozen=True)
class ComparisonGridOptions:
    """The grid and window in which both are compared."""

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
    hu_window: tuple[float, float] = flag(
        (-1000.0, 400.0), "HU compared; what lies outside is cut.", low=-4000, high=8000
    )
    slices: int = flag(24, "Slices a plane and volume.", low=1, high=512)
    match: bool = flag(
        False,
        "Compare sets of different voxel sizes or windows at the coarser size and common window.",
    )
    lung_labels: tuple[int, ...] = flag((1, 2), "Mask labels of the left and the right lung.")
    airway_label: int = flag(3, "Mask label of the airways.")


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured."""

    extractor: tuple[str, ...] = flag(
        (),
        "Network of the slices' features: random, or inception, vgg, radimagenet, swav with a "
        "local file as NAME:FILE; may be repeated. (default: random)",
    )
    extractor_3d: tuple[str, ...] = flag(
        (),
        "Network of the volumes' features: random, or medicalnet:FILE; may be repeated. (default: "
        "random)",
    )
    column: tuple[str, ...] = flag(
        (), "Table column whose effect is read from the volumes; may be repeated."
    )
    template: str = flag(
        "auto", "How values of the table are read: aiib23, osic, auto, or a YAML file."
    )
    key_column: str = flag("File Name", "Table column that names the scan.")
    patient_column: str = flag(
        "", "Table column that names the patient: scans of one patient are no reference for copies."
    )
    pairs: bool = flag(True, "Compare volumes with the real scans of the same name.")
    resegment: bool = flag(True, "Find the lungs again and compare them with the masks.")
    draws: int = flag(100, "Random halves of the real scans, and bootstraps.", low=10, high=10000)
    seed: int = flag(1, "Seed of the draws.", low=0)
    gpu_ids: str = flag(
        "", "GPU that computes features: 0, or -1 for the CPU (default: the first GPU, if any)."
    )


@dataclass(frozen=True)
class EvaluateOptions:
    """Everything the command takes."""

    sets: SetOptions = group(SetOptions, "Sets")
    grid: ComparisonGridOptions = group(ComparisonGridOptions, "Grid")
    measure: MeasureOptions = group(MeasureOptions, "Measures")
