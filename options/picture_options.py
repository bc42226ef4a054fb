"""Flags of scripts/make_picture.py and scripts/make_pictures.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.parser import argument, flag, path_flag


@dataclass(frozen=True)
class PictureOptions:
    """What the picture shows."""

    EXAMPLE: ClassVar[str] = (
        "python scripts/make_picture.py results/run1/test_latest --dataroot phantoms"
    )

    RESULTS: str = argument("Folder that test.py wrote.", kind="folder")
    dataroot: str = path_flag("", "The cohort, for masks and real scans.", kind="folder")
    case: str = flag("", "The case to show (empty: the first).")
    column: str = flag(
        "", "Attribute whose volumes and differences are shown (default: the first varied)."
    )
    limit: float | None = flag(
        None, "Differences are shown from -limit to +limit HU (default: chosen to fit).", low=0.1
    )
    scan_title: str = flag(
        "real scan", 'What the scan in the cohort is called, such as "target" for phantoms.'
    )
    out: str = flag("picture.png", "The picture to write.")


@dataclass(frozen=True)
class PictureSetOptions:
    """Pictures to take away."""

    EXAMPLE: ClassVar[str] = (
        "python scripts/make_pictures.py results/run1/test_latest --dataroot phantoms"
    )

    RESULTS: str = argument("Folder that test.py wrote.", kind="folder")
    dataroot: str = path_flag("", "The cohort, for masks and real scans.", kind="folder")
    case: str = flag("", "The only case (default: the first --how_many).")
    how_many: int = flag(1, "Number of cases (0: all).", low=0)
    column: str = flag("", "The only attribute (default: every one that was varied).")
    plane: str = flag("axial", "Plane of the slices.", choices=("axial", "coronal", "sagittal"))
    formats: tuple[str, ...] = flag(
        (),
        "What to write, may be repeated: animations (gif, mp4), a stack of pictures (png), the "
        "slice with the largest difference as a figure (svg), the slices with the largest "
        "differences (top). Default: all, mp4 where ffmpeg or imageio-ffmpeg is installed.",
        choices=("gif", "mp4", "png", "svg", "top"),
    )
    frames: int = flag(60, "Most slices of an animation or a stack.", low=1)
    fps: int = flag(8, "Slices per second of an animation.", low=1, high=60)
    top: int = flag(4, "Number of slices with the largest differences.", low=1, high=20)
    limit: float | None = flag(
        None,
        "Differences are shown from -limit to +limit HU (default: chosen to fit, at least 20).",
        low=0.1,
    )
    lung_labels: tuple[int, ...] = flag(
        (), "Mask labels whose slices are shown (default: those of the run).", low=1
    )
    out: str = flag("pictures", "Folder for the pictures.")
