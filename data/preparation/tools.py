"""Segmentation by programs that are installed separately: lungmask and TotalSegmentator."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.preparation.lungs import AIRWAY, LEFT, RIGHT
from data.volumes import load_volume
from util.cli import UserError

PROGRAMS = {"lungmask": "lungmask", "totalsegmentator": "TotalSegmentator"}
TOTALSEGMENTATOR_LABELS = {
    "lung_upper_lobe_left": LEFT,
    "lung_lower_lobe_left": LEFT,
    "lung_upper_lobe_right": RIGHT,
    "lung_middle_lobe_right": RIGHT,
    "lung_lower_lobe_right": RIGHT,
    "trachea": AIRWAY,
}
MAX_OUTPUT_SHOWN = 300  # characters of a tool's last messages


def check_installed(tool: str) -> None:
    """Raise `UserError` that says how to get a tool which is not installed."""
    if shutil.which(PROGRAMS[tool]) is None:
        raise UserError(
            f"--masks {tool}: the program {PROGRAMS[tool]} is not installed. Install it (pip "
            f"install {PROGRAMS[tool]}) and run it once on any scan on a machine with network: it "
            "fetches its weights into your home folder, which can be copied. Or use --masks "
            "threshold, which needs neither."
        )


def segment_with_tool(
    tool: str, image: Path, folder: Path, tool_args: str = "", hours: float = 2.0
) -> NDArray[np.uint8]:
    """Run a tool on a NIfTI file.

    Args:
        tool: "lungmask" or "totalsegmentator".
        image: The CT.
        folder: Empty folder for the files that the tool writes.
        tool_args: Further words of its command line.
        hours: It is stopped after this time.

    Returns:
        (X, Y, Z) in RAS: left lung 1, right lung 2; airway 3 from TotalSegmentator (its trachea).

    Raises:
        UserError: The tool is missing, fails, takes too long, or writes nothing usable.
    """
    check_installed(tool)
    words = shlex.split(tool_args)
    if tool == "lungmask":
        out = folder / "lungs.nii.gz"
        _run_tool([PROGRAMS[tool], str(image), str(out), *words], hours)
        return _label_sides(_read_output(tool, out))
    command = [PROGRAMS[tool], "-i", str(image), "-o", str(folder)]
    _run_tool([*command, "--roi_subset", *TOTALSEGMENTATOR_LABELS, *words], hours)
    labels: NDArray[np.uint8] | None = None
    for name, label in TOTALSEGMENTATOR_LABELS.items():
        part = _read_output(tool, folder / f"{name}.nii.gz")
        if labels is None:
            labels = np.zeros(part.shape, np.uint8)
        labels[part > 0] = label
    assert labels is not None
    return labels


def _run_tool(command: list[str], hours: float) -> None:
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=hours * 3600, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]} took longer than --tool_hours {hours:g} and was stopped."
        ) from None
    if finished.returncode:
        output = " ".join((finished.stderr or finished.stdout).split())[-MAX_OUTPUT_SHOWN:]
        raise UserError(
            f"{command[0]} failed with exit code {finished.returncode}: {output or 'no message'}. "
            "If it could not fetch its weights, run it once on a machine with network and copy "
            "them."
        )


def _read_output(tool: str, path: Path) -> NDArray[np.integer]:
    if not path.is_file():
        raise UserError(
            f"{PROGRAMS[tool]} ended without an error, but wrote no {path.name}. Is its version "
            "too old or too new?"
        )
    return load_volume(path).array


def _label_sides(lungs: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return left 1 and right 2 by position: the numbers differ between models of lungmask."""
    labels = np.zeros(lungs.shape, np.uint8)
    centres: dict[int, float] = {}
    for value in np.unique(lungs[lungs > 0]):
        centres[value] = float(np.nonzero((lungs == value).any((1, 2)))[0].mean())
    middle = (lungs.shape[0] - 1) / 2
    if len(centres) > 1:
        middle = (min(centres.values()) + max(centres.values())) / 2
    for value, centre in centres.items():
        labels[lungs == value] = LEFT if centre < middle else RIGHT
    return labels
