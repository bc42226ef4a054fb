"""Flags of scripts/expand.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from options.diffusion_options import SamplingOptions
from options.parser import flag, group, path_flag
from options.test_options import ModelOptions


@dataclass(frozen=True)
class ExpandOptions:
    """The synthetic cohort."""

    dataroot: str = path_flag(
        "", "Folder of the real cohort whose masks and rows are used.", kind="folder"
    )
    split: str = flag(
        "train",
        "Split of the cases used; any but train leaks test patients.",
        choices=("train", "val", "test", "all"),
    )
    how: str = flag(
        "generate",
        "Generate new volumes, or change real training scans by one attribute: by adding the "
        "difference of two generated volumes (residual), or by inversion of a diffusion model "
        "(edit).",
        choices=("generate", "edit", "residual"),
    )
    edit_strength: float = flag(
        1.0,
        "With --how residual the factor of the difference; with edit the noise level to which a "
        "scan is inverted, 1 being pure noise. A lower one changes less.",
        low=0.01,
        high=1,
    )
    balance: tuple[str, ...] = flag(
        (),
        "Column whose values are equally frequent in the new cohort; given twice, every "
        "combination of the values of two columns that a real case has.",
    )
    vary_text: tuple[str, ...] = flag(
        (),
        "Instead of --balance, with --how generate: words whose replacements are equally frequent, "
        'as "WORDS=>OTHER[=>...]"; may be repeated. The texts are written to prompts.csv.',
    )
    goal: str = flag(
        "alone",
        "Balance the new cohort alone, or the real split and the new cohort together.",
        choices=("alone", "together"),
    )
    masks: str = flag(
        "deform",
        "Masks of training cases, deformed smoothly (deform) or as they stand (given), or masks "
        "without a patient, drawn from a statistical shape model for each row (shape).",
        choices=("deform", "shape", "given"),
    )
    retrieve: Literal["none", "row", "text"] = flag(
        "none",
        "With --table: whose mask a row gets that names no SYNTHETIC SOURCE. That of training "
        "cases in turn (none), or of the one with the most similar row (row) or text, by the run's "
        "text encoder (text).",
        choices=("none", "row", "text"),
    )
    rows: str = flag(
        "changed",
        "Take any patient and change the column (or the words) and its implications, or only "
        "patients who have the value themselves. Edits always change it.",
        choices=("changed", "own"),
    )
    table: str = path_flag(
        "",
        "Table (.csv, .xlsx) of rows to make, instead of --balance; its column SYNTHETIC SOURCE "
        "may name the case whose mask is used, and must name the scan to edit. A column Prompt may "
        "hold texts in place of rows.",
        kind="file",
    )
    n: int = flag(0, "Cases to make (with --table 0: every row).", low=0)
    out: str = flag("", "Folder of the new cohort.")
    seed: int = flag(0, "Seed of patients, masks and noise.", low=0)
    check_copies: bool = flag(
        True, "Compare every volume with the training scans, and redraw copies."
    )
    redraws: int = flag(5, "Number of redraws of a copy before the case is left out.", low=0)
    overwrite: bool = flag(False, "Replace a synthetic cohort made with other flags.")

    @property
    def edits(self) -> bool:
        """Whether real scans are edited instead of new volumes generated."""
        return self.how != "generate"


@dataclass(frozen=True)
class DeformOptions:
    """Size of the deformations of `--masks deform`."""

    elastic_mm: float = flag(
        8.0, "Largest shift of a node of the smooth deformation.", low=0, high=100
    )
    node_mm: float = flag(60.0, "Distance between these nodes.", low=5)
    turn: float = flag(3.0, "Largest turn about each axis in degrees.", low=0, high=45)
    scale: float = flag(0.05, "Largest relative change of size along each axis.", low=0, high=0.5)
    volume_change: float = flag(
        0.25,
        "Largest relative change of a label's volume; beyond it the mask is redrawn.",
        low=0,
        high=1,
    )


@dataclass(frozen=True)
class ExpandCommand:
    """All flags of scripts/expand.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("dataroot", "name", "out")
    EXAMPLE: ClassVar[str] = (
        "python scripts/expand.py --dataroot phantoms --name run1 --balance DIAGNOSIS --n 50 "
        "--out synthetic"
    )

    expand: ExpandOptions = group(ExpandOptions, "Cohort")
    model: ModelOptions = group(ModelOptions, "Run")
    sampling: SamplingOptions = group(SamplingOptions, "Sampling of diffusion models")
    deform: DeformOptions = group(DeformOptions, "Masks")
