"""Flags of scripts/make_picture.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.parser import argument, flag, group, path_flag


@dataclass(frozen=True)
class PictureOptions:
    """What the picture shows."""

    RESULTS: str = argument("Folder that test.py wrote.", kind="folder")
    dataroot: str = path_flag("", "The cohort, for masks and real scans.", kind="folder")
    case: str = flag("", "The case to show (empty: the first).")
    column: str = flag(
        "", "Attribute whose volumes and differences are shown (default: the first varied)."
    )
    limit: float | None = flag(
        None, "Differences are shown from -limit to +limit HU (default: chosen to fit).", low=0.1
    )
    out: str = flag("picture.png", "The picture to write.")


@dataclass(frozen=True)
class PictureCommand:
    """All flags of the command."""

    EXAMPLE: ClassVar[str] = (
        "python scripts/make_picture.py results/run1/test_latest --dataroot phantoms"
    )

    picture: PictureOptions = group(PictureOptions, "Picture")
