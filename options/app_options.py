"""Flags of scripts/app.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.diffusion_options import SamplingOptions
from options.parser import flag, group, path_flag
from options.test_options import ModelOptions


@dataclass(frozen=True)
class AppOptions:
    """The page and its cases."""

    dataroot: str = path_flag(
        "",
        "Folder of the cohort whose cases can be chosen; without it, masks are dropped on the "
        "page.",
        kind="folder",
    )
    port: int = flag(7860, "Port of the page on this computer.", low=1024, high=65535)
    open_browser: bool = flag(True, "Open the page in the browser once it is ready.")
    work_dir: str = flag(
        "",
        "Folder for the volumes and files of the page (default: a temporary one that is removed "
        "at the end).",
    )
    teach: bool = flag(False, "Add a quiz: what was changed in a chest, and where?")
    case_set: str = flag(
        "",
        "Folder of the quiz's cases.yaml, which is written for a start where it is missing "
        "(default: questions made for the run).",
    )
    draws: int = flag(
        2,
        "Noises over which effects are averaged; the second one is the control on the page.",
        low=1,
        high=8,
    )


@dataclass(frozen=True)
class AppCommand:
    """All flags of scripts/app.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("name",)
    EXAMPLE: ClassVar[str] = "python scripts/app.py --name run1 --dataroot phantoms"

    app: AppOptions = group(AppOptions, "Page")
    model: ModelOptions = group(ModelOptions, "Run")
    sampling: SamplingOptions = group(SamplingOptions, "Sampling of diffusion models")
