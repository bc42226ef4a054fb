"""Flags of scripts/make_picture.py."""

from __future__ import annotations

from dataclasses import dataclass

from options.parser import argument, flag, group


@dataclass(frozen=True)
class PictureOptions:
    """What the picture shows."""

    RESULTS: str = argument("Folder that test.py wrote.")
    dataroot: str = flag("", "The cohort, for masks and real scans.")
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

    picture: PictureOptions = group(PictureOptions, "Picture")
